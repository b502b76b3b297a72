"""Training data of the eye painter, and its training."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from support.faces import SKIN, average_face
from support.mouths import mesh

from letstalk_rt.errors import InputError
from letstalk_rt.models.autoencoder.eye_painter import EyePainter
from letstalk_rt.models.geometry.eye_region import EYE_POINTS, LOWER_LID, UPPER_LID
from letstalk_rt.models.presets import EYE_PAINTER
from letstalk_rt.training.data.dataset import Clip
from letstalk_rt.training.data.eye_frames import EyeFrameSource, eye_clips
from letstalk_rt.training.loop import LoopConfig
from letstalk_rt.training.stages.eye_motion import ridge
from letstalk_rt.training.stages.eye_painter import eye_differences, paint, train_eye_painter

WHITE, LID = (240, 240, 240), (150, 90, 70)
OPENINGS = (1.0, 1.0, 1.0, 0.6, 0.05, 0.05, 0.6, 1.0, 1.0, 1.0)


def blinking(name: str = "person-1", openings: tuple[float, ...] = OPENINGS) -> Clip:
    """Return a clip of a face whose eyes are white, and whose closed lids are dark."""
    points = average_face(at=(90, 120)).repeat(len(openings), 1, 1)
    images = []
    for face, share in zip(points, openings, strict=True):
        image = Image.new("RGB", (256, 256), SKIN)
        for indices in EYE_POINTS:
            upper, lower = indices[UPPER_LID], indices[LOWER_LID]
            whole = face[upper + lower[::-1]].flatten().tolist()
            face[upper] = torch.lerp(face[lower], face[upper], share)
            draw = ImageDraw.Draw(image)
            draw.polygon(whole, fill=LID)
            draw.polygon(face[upper + lower[::-1]].flatten().tolist(), fill=WHITE)
        images.append(np.asarray(image))
    count = len(openings)
    return Clip(
        name, "real", np.stack(images), mesh(points), np.zeros((count, 52), np.float32),
        np.zeros(640 * count, np.float32), has_audio=False,
    )  # fmt: skip


def test_all_frames_with_closed_lids_are_kept_and_some_of_the_others():
    eyes = eye_clips([blinking()])
    assert len(eyes) == 2
    for eye in eyes:
        assert len(eye.crops) == len(eye.points) == len(eye.openings)
        assert (eye.openings < 0.1).sum() == 2 and (eye.openings > 0.2).sum() < 8


def test_clips_of_too_few_frames_are_refused():
    with pytest.raises(InputError, match="at least 5 frames"):
        eye_clips([blinking(openings=(1.0, 1.0))])


@pytest.mark.parametrize("augmented", [False, True])
def test_maps_stay_with_the_lids_however_a_crop_is_changed(augmented):
    source = EyeFrameSource(eye_clips([blinking()]), augmented=augmented)
    batch = source.draw(64, torch.Generator().manual_seed(0))
    for image, maps in ((batch.portrait, batch.portrait_maps), (batch.frame, batch.maps)):
        light = image.mean(1)
        bright = light > light.flatten(1).quantile(0.3, 1)[:, None, None] + 0.1
        inside = maps[:, 2] == 1
        assert inside.any() and bright[inside].float().mean() > 0.85


def test_training_learns_lids_from_their_landmarks(tmp_path):
    clips = [blinking(f"person{i}-1") for i in range(7)]
    config = LoopConfig(steps=60, learning_rate=3e-3, warm_up=5, ema=0.8, evaluate_every=1000)
    trained = train_eye_painter(clips, tmp_path, config, batch_size=8, critic_start=55)
    source = EyeFrameSource(eye_clips(clips), augmented=False)
    batch = source.draw(64, torch.Generator().manual_seed(1))
    with torch.no_grad():
        before, after = (
            float(eye_differences(paint(painter, batch)[1], batch)["l1"])
            for painter in (EyePainter(EYE_PAINTER), trained)
        )
    assert after < 0.6 * before, (before, after)
    assert list(tmp_path.glob("eyes-*.png"))


def test_a_ridge_regression_finds_a_linear_map():
    inputs, true = torch.randn(400, 6), torch.randn(2, 6)
    torch.testing.assert_close(
        ridge(inputs, inputs @ true.mT, 1e-8 * torch.eye(6)), true, atol=1e-4, rtol=0
    )
    blind = torch.zeros(6, 6)
    blind[2, 2] = 1e6
    fitted = ridge(inputs, inputs @ true.mT, blind)
    assert fitted[:, 2].abs().max() < 1e-4, "what costs much is not used"
