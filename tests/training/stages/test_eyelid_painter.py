"""Training data of the eyelid painter, and its training."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from support.faces import SKIN, average_face
from support.mouths import mesh

from letstalk_rt.errors import InputError
from letstalk_rt.models.autoencoder.eyelid_painter import EyelidPainter
from letstalk_rt.models.geometry.eye_crop import EYE_SIZE, LOWER_LIDS, UPPER_LIDS, lid_mask
from letstalk_rt.training.data.dataset import Clip
from letstalk_rt.training.data.eye_crops import EyeSource, eye_pairs
from letstalk_rt.training.loop import LoopConfig
from letstalk_rt.training.stages.eyelid_painter import eyelid_errors, train_eyelid_painter

WHITE, SHADOW = (240, 240, 240), (150, 90, 70)
OPENINGS = (1.0, 1.0, 1.0, 0.6, 0.05, 0.05, 0.6, 1.0, 1.0, 1.0)


def blinking(openings: tuple[float, ...] = OPENINGS, name: str = "person-1") -> Clip:
    """Return a clip of a face whose eyes are white, and whose closed lids are dark."""
    points = average_face(at=(90, 120)).repeat(len(openings), 1, 1)
    images = []
    for face, share in zip(points, openings, strict=True):
        image = Image.new("RGB", (256, 256), SKIN)
        for upper, lower in zip(UPPER_LIDS, LOWER_LIDS, strict=True):
            whole = face[upper + lower[::-1]].flatten().tolist()
            face[upper] = torch.lerp(face[lower], face[upper], share)
            draw = ImageDraw.Draw(image)
            draw.polygon(whole, fill=SHADOW)
            draw.polygon(face[upper + lower[::-1]].flatten().tolist(), fill=WHITE)
        images.append(np.asarray(image))
    count = len(openings)
    return Clip(
        name, "real", np.stack(images), mesh(points), np.zeros((count, 52), np.float32),
        np.zeros(640 * count, np.float32), has_audio=False,
    )  # fmt: skip


def test_the_frames_of_a_blink_are_paired_with_open_eyes():
    pairs = eye_pairs([blinking()])
    assert len(pairs) == 2 * 2 * 2, "two closed frames, each with two open ones, of two eyes"
    batch = pairs.batch(torch.arange(len(pairs)))
    y, x = EYE_SIZE[0] // 2, EYE_SIZE[1] // 2
    assert batch.opened[:, :, y, x].min() > 0.8, "the white of an eye"
    assert batch.shut[:, 2, y, x].max() < 0.0, "the shadow on a lid"
    assert (batch.lids.lower - batch.lids.upper)[:, x].min() > 5
    assert (batch.closed - batch.lids.upper)[:, x].min() > 5


def test_clips_without_a_blink_are_refused():
    with pytest.raises(InputError, match="eyes close for at least one frame"):
        eye_pairs([blinking((1.0,) * 8)])


def test_a_face_that_is_lit_differently_when_it_blinks_is_made_alike():
    clip = blinking()
    clip.frames[4:6] = (clip.frames[4:6] * 0.97).astype(np.uint8)
    batch = eye_pairs([clip]).batch(torch.arange(8))
    below = (batch.opened - batch.shut)[..., -8:, :]
    assert below.abs().max() < 0.02
    clip.frames[4:6, :, ::8] = 0  # another picture, not another light
    with pytest.raises(InputError):
        eye_pairs([clip])


def test_lines_stay_with_the_lids_however_a_crop_is_changed():
    source = EyeSource(eye_pairs([blinking()]))
    batch = source.draw(64, torch.Generator().manual_seed(0))
    white = batch.opened.amin(1) > batch.opened.amin(1).flatten(1).quantile(0.5, 1)[:, None, None]
    y = torch.arange(EYE_SIZE[0])[:, None] + 0.5
    inside = (y > batch.lids.upper[:, None] + 2) & (y < batch.lids.lower[:, None] - 2)
    assert white[inside].float().mean() > 0.9


def test_training_learns_what_closed_eyes_look_like(tmp_path):
    clips = [blinking(name=f"person{i}-1") for i in range(7)]
    config = LoopConfig(steps=100, learning_rate=4e-3, warm_up=5, ema=0.8, evaluate_every=1000)
    trained = train_eyelid_painter(clips, tmp_path, config, batch_size=8, critic_start=90)
    pairs = eye_pairs(clips)
    before, after = (eyelid_errors(painter, pairs) for painter in (EyelidPainter(), trained))
    assert after["eyelid_l1"] < 0.6 * before["eyelid_l1"], (before, after)
    assert before["eyelid_l1_open"] == after["eyelid_l1_open"]
    assert list(tmp_path.glob("eyes-*.png"))


def test_the_errors_of_true_lids_are_none():
    class Known(EyelidPainter):
        def forward(self, crops, lids, closed):  # type: ignore[no-untyped-def]
            return pairs.batch(torch.arange(len(pairs))).shut

    pairs = eye_pairs([blinking()])
    figures = eyelid_errors(Known(), pairs)
    assert figures["eyelid_l1"] == pytest.approx(0) and figures["eyelid_light"] == pytest.approx(0)
    assert figures["eyelid_contrast"] == pytest.approx(1)
    mask = lid_mask(pairs.lids.upper, pairs.closed)
    assert mask.sum() > 0 and figures["eyelid_l1_open"] > 0.1
