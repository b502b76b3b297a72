"""The eyelid painter does not see the eye that it covers."""

import torch
from support.faces import average_face
from support.small_model import stir

from letstalk_rt.models.autoencoder.eyelid_painter import EyelidPainter, without_eyes
from letstalk_rt.models.geometry.eye_crop import EYE_SIZE, LidEdges, align_eyes, lid_edges

FACE = average_face(at=(90, 120))


def edges_of_an_eye() -> LidEdges:
    return lid_edges(align_eyes(FACE, 0)(FACE), 0)


def between(edges: LidEdges) -> torch.Tensor:
    """Return the pixels between the lids, `(64, 80)` bool."""
    y = torch.arange(EYE_SIZE[0])[:, None] + 0.5
    inside: torch.Tensor = (y > edges.upper) & (y < edges.lower)
    return inside


def test_what_lies_between_the_lids_has_no_influence():
    torch.manual_seed(0)
    painter, edges = EyelidPainter().eval(), edges_of_an_eye()
    stir(painter)
    crops = torch.rand(1, 3, *EYE_SIZE) - 0.5
    changed = crops.clone()
    changed[..., between(edges)] = 1.0
    assert between(edges).sum() > 100
    torch.testing.assert_close(
        painter(crops, edges, edges.closed), painter(changed, edges, edges.closed)
    )


def test_where_the_lashes_shall_be_has_influence():
    torch.manual_seed(0)
    painter, edges = EyelidPainter().eval(), edges_of_an_eye()
    stir(painter)
    crops = torch.rand(1, 3, *EYE_SIZE) - 0.5
    here, there = painter(crops, edges, edges.closed), painter(crops, edges, edges.closed + 3)
    assert (here - there).abs().max() > 0.01


def test_the_eye_is_replaced_by_colours_of_the_skin_around_it():
    edges = edges_of_an_eye()
    skin = torch.tensor([0.5, 0.1, -0.2]).view(1, 3, 1, 1).expand(1, 3, *EYE_SIZE)
    crops = skin.clone()
    crops[..., between(edges)] = -1.0
    torch.testing.assert_close(without_eyes(crops, edges), skin)


def test_an_untrained_painter_shows_skin():
    edges = edges_of_an_eye()
    crops = torch.rand(1, 3, *EYE_SIZE) - 0.5
    torch.testing.assert_close(
        EyelidPainter()(crops, edges, edges.closed), without_eyes(crops, edges)
    )
