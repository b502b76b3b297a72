"""A short film in place of a picture: it goes back and forth, and its lips speak."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.films import FPS, scene, syllables, talking_film, told_pipeline, write_film

from letstalk_rt.cli.main import main
from letstalk_rt.dubbing.footage import prepare_footage
from letstalk_rt.dubbing.footage_reader import is_film
from letstalk_rt.errors import NoFaceError, PortraitError
from letstalk_rt.inference.face_reader import FaceReader
from letstalk_rt.inference.footage_player import FootagePlayer
from letstalk_rt.inference.lip_control import LipControl
from letstalk_rt.inference.pipeline import AvatarPipeline
from letstalk_rt.inference.protocol import StateOptions
from letstalk_rt.models.autoencoder.latents import LATENT_SIZE
from letstalk_rt.models.face.lip_values import LIP_VALUES, NUM_LIP_VALUES
from letstalk_rt.models.geometry.landmarks import MOUTH_LEFT, MOUTH_RIGHT
from letstalk_rt.models.parts import MOTION
from letstalk_rt.portrait.image import read_image
from letstalk_rt.session.avatar import Avatar
from letstalk_rt.types import Footage, Portrait


@pytest.fixture(scope="module")
def pipeline() -> AvatarPipeline:
    return AvatarPipeline.load(dtype="float32")


@pytest.fixture(scope="module")
def film(pipeline: AvatarPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return talking_film(pipeline, tmp_path_factory.mktemp("film") / "talking.mp4", 0.6)


@pytest.fixture(scope="module")
def portrait(pipeline: AvatarPipeline, film: Path) -> Portrait:
    return prepare_footage(film, pipeline, size=256)


def shown_frames(portrait: Portrait) -> list[np.ndarray]:
    assert portrait.footage is not None
    return [read_image(data) for data in portrait.footage.frames]


def step(pipeline: AvatarPipeline, state: object, pcm: np.ndarray | None = None) -> np.ndarray:
    """Return the next window of one session, `(N, H, W, 3)`."""
    hop = np.zeros((1, pipeline.hop), np.float32) if pcm is None else pcm[None]
    return pipeline.step(hop, [state])[0]


def nearest(rgb: np.ndarray, frames: list[np.ndarray]) -> int:
    """Return which of the frames this is, by its upper half, which dubbing does not touch."""
    half = len(rgb) // 2
    return int(np.argmin([np.abs(rgb[:half].astype(int) - f[:half]).mean() for f in frames]))


def test_the_footage_goes_back_and_forth_and_only_the_lower_face_changes(pipeline, portrait):
    frames = shown_frames(portrait)
    count = len(frames)
    state = pipeline.init_state(portrait)
    shown = np.concatenate([step(pipeline, state) for _ in range(-(-2 * count // 4))])
    for number, rgb in enumerate(shown[: 2 * count]):
        place = number % (2 * count - 2)
        index = place if place < count else 2 * count - 2 - place
        np.testing.assert_array_equal(rgb[:90], frames[index][:90])
    changed = np.abs(shown[8].astype(int) - frames[8]).max(-1) > 0
    assert 0.01 < changed.mean() < 0.35


def test_delivery_batches_and_repetition_give_the_same_frames(pipeline, portrait):
    pcm = syllables(0.32).reshape(2, -1)
    one, other = (pipeline.init_state(portrait) for _ in range(2))
    delivered: list[np.ndarray] = []
    both = pipeline.step(np.stack([pcm[0], 0 * pcm[0]]), [one, other], delivered.append)
    np.testing.assert_array_equal(np.concatenate(delivered, 1), both)
    alone = pipeline.init_state(portrait)
    frames = step(pipeline, alone, pcm[0])
    # Lip values that are read in a batch differ by 2e-8, because its sums are rounded differently.
    difference = np.abs(frames.astype(int) - both[0])
    assert difference.max() <= 1 and np.count_nonzero(difference) < 1e-4 * difference.size
    one.reset()
    np.testing.assert_array_equal(step(pipeline, one, pcm[0]), frames)
    assert pipeline.batch_key(one) == pipeline.batch_key(alone)


def test_lower_faces_of_footage_are_generated_too(pipeline, portrait):
    told = told_pipeline(pipeline)
    state, plain = told.init_state(portrait), pipeline.init_state(portrait)
    hops = syllables(0.48).reshape(3, -1)
    first, without = (
        [step(p, s, pcm) for pcm in hops] for p, s in ((told, state), (pipeline, plain))
    )
    for new, old in zip(first, without, strict=True):
        np.testing.assert_array_equal(new[:, :90], old[:, :90])
        assert not np.array_equal(new, old)
    told.interrupt(state, unseen=4)
    after = step(told, state, hops[2])
    assert nearest(after[0], shown_frames(portrait)) == nearest(first[2][0], shown_frames(portrait))
    state.reset()
    np.testing.assert_array_equal(step(told, state, hops[0]), first[0])


def rendered(pipeline: AvatarPipeline, footage: Footage, count: int) -> list[np.ndarray]:
    """Return the first frames of footage with lips at rest."""
    player = FootagePlayer(pipeline.model, footage, 1.0)
    still = torch.zeros(count, NUM_LIP_VALUES)
    return [player.render(frame) for frame in player.next(still)]


def test_noise_of_landmarks_does_not_move_the_lower_face_of_a_still_head(pipeline, portrait):
    data, face = portrait.footage.frames[0], portrait.footage.faces[0]
    noise = np.random.default_rng(0).normal(scale=0.1, size=(12, *face.latent.shape))
    noisy = [replace(face, latent=(face.latent + n).astype(np.float32)) for n in noise]
    moving = [replace(f, shift=(f.shift[0] + 0.01 * i, f.shift[1])) for i, f in enumerate(noisy)]
    change = []
    for faces in (noisy, moving):
        shown = np.stack(rendered(pipeline, Footage((data,) * 12, tuple(faces)), 12)).astype(float)
        change.append(np.abs(np.diff(shown, axis=0)).mean())
    assert change[0] < 0.6 * change[1]


def test_a_smile_of_the_film_is_kept(pipeline, portrait):
    model, footage = pipeline.model, portrait.footage
    data, face = footage.frames[0], footage.faces[0]
    autoencoder = model.face.autoencoder
    points = autoencoder.decode_landmarks(torch.from_numpy(face.latent))
    mouth, scale = model.part(MOTION).expression.mouth, torch.ones(LATENT_SIZE)
    control = LipControl.of(mouth, points, autoencoder.landmark_matrix, scale)
    width = control.write[:, LIP_VALUES.index("width")].view(face.latent.shape).numpy()
    wide = replace(face, latent=face.latent + 0.15 * width)
    reader = FaceReader(pipeline.finder, autoencoder)
    widths = []
    for other in (face, wide):
        blurred = replace(other, sharpness=face.sharpness / 2)  # the first stays the reference
        shown = rendered(pipeline, Footage((data,) * 40, (face, *(blurred,) * 39)), 40)[35]
        found = reader.read(shown).frame_points
        widths.append(float((found[MOUTH_LEFT] - found[MOUTH_RIGHT]).norm()))
    assert widths[1] > 1.02 * widths[0]


def test_an_interrupt_goes_back_by_what_was_not_shown(pipeline, portrait):
    frames = shown_frames(portrait)
    state = pipeline.init_state(portrait)
    window = step(pipeline, state, syllables(0.16))
    pipeline.interrupt(state, unseen=2)
    assert nearest(window[2], frames) == 2
    assert nearest(step(pipeline, state)[0], frames) == 2


def test_a_session_changes_from_a_picture_to_a_film_and_back(pipeline, portrait):
    picture = Portrait(portrait.canvas, portrait.crop, portrait.box)
    state = pipeline.init_state(picture, StateOptions())
    before = pipeline.batch_key(state)
    step(pipeline, state)
    pipeline.change_portrait(state, portrait)
    assert pipeline.batch_key(state) != before, "the two cannot share a step"
    np.testing.assert_array_equal(step(pipeline, state)[0][:90], shown_frames(portrait)[0][:90])
    pipeline.change_portrait(state, picture)
    assert pipeline.batch_key(state) == before
    assert step(pipeline, state).shape == (4, *portrait.canvas.shape)


def test_an_avatar_is_loaded_from_a_film(pipeline, portrait):
    with Avatar.from_pipeline(pipeline, portrait) as avatar:
        speech = syllables(0.5)
        frames = list(avatar.render(speech))
    assert len(frames) == round(0.5 * FPS) + 1
    np.testing.assert_array_equal(np.concatenate([f.pcm for f in frames])[: len(speech)], speech)


def test_films_that_cannot_be_used_are_refused(pipeline, tmp_path):
    with pytest.raises(NoFaceError):
        prepare_footage(write_film(tmp_path / "a.mp4", scene(12)), pipeline)
    with pytest.raises(PortraitError, match="at least 10"):
        prepare_footage(write_film(tmp_path / "b.mp4", scene(3)), pipeline)


def test_films_are_told_from_pictures(film, tmp_path):
    assert is_film(film) and is_film(str(film)) and is_film(film.read_bytes())
    assert not is_film("face.jpg") and not is_film(np.zeros((4, 4, 3), np.uint8))
    heic = b"\x00\x00\x00\x18ftypheic" + bytes(16)
    assert not is_film(heic) and not is_film(b"\x89PNG\r\n\x1a\n" + bytes(16))


def test_a_damaged_film_as_portrait_is_one_line(tmp_path, capsys):
    film, sound = tmp_path / "a.mp4", tmp_path / "a.wav"
    film.write_bytes(b"no film")
    sound.write_bytes(b"no sound")
    assert main(["render", str(film), str(sound), "-o", str(tmp_path / "o.mp4")]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
