"""An avatar's own video is dubbed: other lips, and nothing else."""

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from support.certificates import issue
from support.films import (
    FPS,
    Chewing,
    dubbed,
    scene,
    syllables,
    talking_frames,
    told_pipeline,
    write_film,
)

from letstalk_rt.cli.main import main
from letstalk_rt.dubbing.dub_film import DubOptions, Speech, dub_film
from letstalk_rt.dubbing.extension import Longer
from letstalk_rt.dubbing.film import Film
from letstalk_rt.dubbing.lip_track import LipTrack
from letstalk_rt.errors import FilmError
from letstalk_rt.inference.face_reader import FaceReader
from letstalk_rt.inference.pipeline import AvatarPipeline
from letstalk_rt.inference.reference_frames import mouth_gap
from letstalk_rt.portrait.watermark import DUBBED_SOURCE_TYPE
from letstalk_rt.recording.credentials import SigningCredentials, read_authority
from letstalk_rt.recording.provenance import Provenance
from letstalk_rt.recording.signing import verify_recording

SECONDS = 1.6


@pytest.fixture(scope="module")
def pipeline() -> AvatarPipeline:
    return AvatarPipeline.load(dtype="float32")


@pytest.fixture(scope="module")
def talking(pipeline: AvatarPipeline) -> list[np.ndarray]:
    return talking_frames(pipeline, SECONDS)


@pytest.fixture(scope="module")
def film(talking: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_film(tmp_path_factory.mktemp("film") / "talking.mp4", talking)


def track(pipeline: AvatarPipeline, speech: np.ndarray) -> LipTrack:
    assert pipeline.model.motion is not None
    return LipTrack(pipeline.model.motion, [speech], 16_000)


def gaps(pipeline: AvatarPipeline, frames: list[np.ndarray]) -> list[float]:
    """Return the lip gap of each frame in mouth widths, as the encoder reads it."""
    assert pipeline.model.face is not None
    reader = FaceReader(pipeline.finder, pipeline.model.face.autoencoder)
    faces = [reader.read(rgb) for rgb in frames]
    return [mouth_gap(face.points) for face in faces if face is not None]


def test_lips_follow_the_new_speech_and_nothing_else_changes(pipeline, talking):
    lips = Chewing(3.1)
    shown, masks = dubbed(pipeline, talking, lips)
    assert len(shown) == len(talking)
    for old, new, mask in zip(talking, shown, masks, strict=True):
        np.testing.assert_array_equal(old[~mask], new[~mask])
        assert 0.01 < mask.mean() < 0.35
    meant = [float(lips.at((i + 0.5) / FPS)[0]) for i in range(len(shown))]
    new_gaps, old_gaps = gaps(pipeline, shown), gaps(pipeline, talking)
    r_new, r_old = (np.corrcoef(new_gaps, other)[0, 1] for other in (meant, old_gaps))
    assert r_new > 0.9
    assert abs(r_old) < 0.3


def test_frames_without_a_face_pass_and_cuts_are_noticed(pipeline, talking):
    wall = scene(6, talking[0].shape[:2])
    frames = talking[:8] + wall + talking[8:16]
    shown, masks = dubbed(pipeline, frames, Chewing(3.0))
    for index in range(8, 14):
        np.testing.assert_array_equal(shown[index], frames[index])
    assert masks[7].any() and masks[14].any(), "the change goes up to the cut"


def test_a_film_is_written_with_its_size_and_the_new_sound(pipeline, film, tmp_path):
    speech = np.append(syllables(SECONDS - 0.6, 44_100), np.zeros(round(1.2 * 44_100), np.float32))
    stereo = np.stack([speech, 0.5 * speech], 1)
    out = tmp_path / "out.mp4"
    keys = issue(tmp_path)
    made = Provenance("tiny", True, None)
    options = DubOptions(
        Longer.LOOP, provenance=made, credentials=SigningCredentials.read(keys.chain, keys.key)
    )
    result = dub_film(pipeline, Film(film), Speech(stereo, 44_100), out, options)
    assert result.frames == round((SECONDS + 0.6) * FPS) == result.changed
    with av.open(str(out)) as container:
        assert "composite" in container.metadata["comment"]
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.width, video.height) == (result.width, result.height)
        assert audio.rate == 44_100 and audio.channels == 2
        sound = np.concatenate([f.to_ndarray() for f in container.decode(audio)], 1)
    assert sound.shape[1] >= len(speech)
    assert np.corrcoef(sound[0, : len(speech)], speech)[0, 1] > 0.95
    found = verify_recording(out, read_authority(keys.authority))
    assert found.state == "trusted" and found.source_type == DUBBED_SOURCE_TYPE
    frames = [frame.rgb.astype(int) for frame in Film(out).frames()]
    end = round(SECONDS * FPS) - 1
    for step in (1, 2, 3):  # the lips rest, so what is shown again is the same
        assert np.abs(frames[end + step] - frames[end - step]).mean() < 1.5


def test_no_face_at_all_is_an_error_and_leaves_no_file(pipeline, tmp_path):
    wall = write_film(tmp_path / "wall.mp4", scene(10))
    out = tmp_path / "out.mp4"
    with pytest.raises(FilmError, match="No face"):
        dub_film(pipeline, Film(wall), Speech(syllables(0.3), 16_000), out)
    assert list(tmp_path.iterdir()) == [wall]


def test_lip_values_are_the_same_in_any_chunks_and_rest_after_the_end(pipeline):
    speech = syllables(2.3)
    whole = track(pipeline, speech)
    parts = LipTrack(pipeline.model.motion, np.array_split(speech, 37), 16_000)
    times = [0.0, 0.1, 0.5, 0.5, 1.99, 2.2, 4.0]
    for time in times:
        torch.testing.assert_close(whole.at(time), parts.at(time))
    assert float(whole.at(6.0)[0]) < 0.01
    assert not track(pipeline, speech).is_over(2.29) and track(pipeline, speech).is_over(2.31)


def test_audio_tokens_are_the_same_in_any_chunks_and_before_or_after_lip_values(pipeline):
    speech, model = syllables(1.3), pipeline.model
    assert track(pipeline, speech).tokens_at([0.1]) is None, "nothing needs them"
    whole, parts = (
        LipTrack(model.motion, chunks, 16_000, model.audio)
        for chunks in ([speech], np.array_split(speech, 23))
    )
    times = [0.1, 0.14, 0.18, 0.22]
    first = whole.tokens_at(times)
    torch.testing.assert_close(parts.tokens_at(times), first)
    whole.at(0.1)
    assert torch.equal(whole.tokens_at(times), first)
    state = model.audio.init_state(1)
    with torch.inference_mode():
        model.audio(torch.zeros(1, 52 * 640), state)
        heard = model.audio(torch.from_numpy(speech[None, : 20 * 640]), state)[0]
    skipped = model.audio.lookahead_frames
    torch.testing.assert_close(first[0], heard[skipped + 2], atol=1e-4, rtol=1e-4)


def test_lower_faces_are_generated_where_there_is_a_face(pipeline, talking):
    told, speech = told_pipeline(pipeline), syllables(1.0)
    frames = [*talking[:9], *scene(2, talking[0].shape[:2]), *talking[9:14]]
    model = told.model

    def shown(encoder: object) -> tuple[list[np.ndarray], list[np.ndarray]]:
        lips = LipTrack(model.motion, [speech], 16_000, encoder)
        return dubbed(told, frames, lips)

    first, masks = shown(model.audio)
    again, _ = shown(model.audio)
    without, _ = shown(None)
    for index, (old, new, mask) in enumerate(zip(frames, first, masks, strict=True)):
        np.testing.assert_array_equal(old[~mask], new[~mask])
        np.testing.assert_array_equal(new, again[index])
        is_wall = 9 <= index < 11
        assert mask.any() != is_wall and np.array_equal(new, without[index]) == is_wall


@pytest.mark.parametrize(
    ("film_bytes", "message"), [(b"nonsense", "not a video file"), (None, "Check the path")]
)
def test_the_command_reports_errors_in_one_line(tmp_path, capsys, film_bytes, message):
    path = tmp_path / "clip.mp4"
    if film_bytes is not None:
        path.write_bytes(film_bytes)
    code = main(["dub", str(path), str(path), "-o", str(tmp_path / "out.mp4")])
    assert code == 2 and message in capsys.readouterr().err
