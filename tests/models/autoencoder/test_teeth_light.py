"""Teeth under another light."""

import pytest
import torch

from letstalk_rt.models.autoencoder.mouth_painter import masked_teeth
from letstalk_rt.models.autoencoder.teeth_light import (
    TeethLight,
    light_inside,
    relit,
    shows_teeth,
    skin_light,
)


def mouth() -> tuple[torch.Tensor, torch.Tensor]:
    """Return a crop of grey teeth in orange skin, and its opening."""
    skin = torch.tensor([0.6, 0.4, 0.2]).view(1, 3, 1, 1) * 2 - 1
    opening = torch.zeros(1, 1, 40, 60)
    opening[..., 15:25, 20:40] = 1
    return torch.lerp(skin.expand(1, 3, 40, 60), torch.zeros(1, 3, 40, 60), opening), opening


def test_the_light_on_skin_does_not_depend_on_the_inside_of_the_mouth():
    crop, opening = mouth()
    light = skin_light(crop, opening)
    expected = torch.tensor([[0.6 / 0.4, 0.2 / 0.4, 0.4]]).log()
    torch.testing.assert_close(light, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(light_inside(crop, opening)[0, :2], torch.zeros(2))


def test_teeth_change_their_light_by_what_was_asked_for():
    crop, opening = mouth()
    change = torch.tensor([[0.3, -0.2, 0.1]])
    lit = relit(masked_teeth(crop, opening), change)
    found = light_inside(lit[:, :3], opening) - light_inside(crop, opening)
    torch.testing.assert_close(found, change, atol=1e-3, rtol=0)
    assert not lit[:, :3][(opening == 0).expand(1, 3, -1, -1)].any()


def test_no_change_leaves_teeth_as_they_are():
    crop, opening = mouth()
    teeth = masked_teeth(crop, opening)
    torch.testing.assert_close(relit(teeth, torch.zeros(1, 3)), teeth)


def test_a_tinted_portrait_changes_the_light_within_bounds():
    light = TeethLight(torch.zeros(3), torch.zeros(3), torch.ones(3))
    change = light.change(torch.tensor([[5.0, -5.0, 0.2]]))
    assert change.tolist() == [pytest.approx([0.7, -0.7, 0.2])]


@pytest.mark.parametrize(
    "light, height, seen", [(0.6, 10, True), (0.1, 10, False), (0.6, 2, False)]
)
def test_teeth_are_visible_if_enough_of_the_mouth_is_as_bright_as_skin(light, height, seen):
    crops, opening = mouth()
    crops[..., 15:25, 20:40] = 0.05 * 2 - 1
    crops[..., 15 : 15 + height, 20:40] = light * 2 - 1
    assert shows_teeth(crops, opening).tolist() == [seen]
