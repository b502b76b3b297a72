"""Films are dubbed by a toy of `b`, whose latents hold no landmarks; by the command at 512 px."""

import json

import av
import numpy as np
import pytest
import torch
from support.data_folder import write_flac
from support.films import FPS, scene, syllables, talking_frames, write_film
from support.toys import TOY_B, make_film_model

from letstalk_rt.cli.main import main
from letstalk_rt.dubbing.dub_film import dubber_of, heard_by
from letstalk_rt.dubbing.dubber import Dubber
from letstalk_rt.dubbing.latent_dubber import LatentDubber
from letstalk_rt.errors import ConfigError
from letstalk_rt.inference.face_reader import FaceReader
from letstalk_rt.inference.film_faces import FilmFaces
from letstalk_rt.inference.pipeline import AvatarPipeline
from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.models.loading import save_model
from letstalk_rt.models.parts import without_part
from letstalk_rt.models.presets import PRESETS

pytest.importorskip("diffusers", reason="the extra `paper` is not installed")


@pytest.fixture(scope="module")
def talking():
    return talking_frames(AvatarPipeline.load(dtype="float32"), 0.48)


@pytest.fixture(scope="module")
def pipeline():
    return AvatarPipeline.on(make_film_model(256), dtype="float32")


def dubbed(pipeline, frames, speech):
    """Return the patches of frames."""
    timed = ((i, rgb, (i + 0.5) / FPS) for i, rgb in enumerate(frames))
    lips = heard_by(pipeline.model, [speech], 16_000)
    made = list(dubber_of(pipeline).dub(timed, lips))
    assert [index for index, _ in made] == list(range(len(frames)))
    return [patch for _, patch in made]


def test_lower_faces_follow_the_speech_and_nothing_else_changes(pipeline, talking):
    assert isinstance(dubber_of(pipeline), LatentDubber)
    frames = talking[:10]  # two windows and a half
    one, same, other = (
        dubbed(pipeline, frames, speech)
        for speech in (syllables(1.0), syllables(1.0), syllables(1.0, per_s=1.3))
    )
    reader = FaceReader(pipeline.finder, pipeline.finder.autoencoder)
    for rgb, patch, again in zip(frames, one, same, strict=True):
        assert patch is not None
        np.testing.assert_array_equal(patch.rgb, again.rgb)
        before = rgb[patch.rows, patch.columns]
        np.testing.assert_array_equal(patch.rgb[patch.mask == 0], before[patch.mask == 0])
        assert (patch.rgb[patch.mask > 0.9] != before[patch.mask > 0.9]).any()
        face = reader.read(rgb)
        chin = face.frame_points[:, 1].max()
        assert patch.rows.start < chin < patch.rows.stop + 8
        assert patch.mask.size < 0.6 * rgb[..., 0].size
    assert any((a.rgb != b.rgb).any() for a, b in zip(one, other, strict=True))


def test_frames_without_a_face_pass_and_a_cut_begins_anew(pipeline, talking):
    wall = scene(3, talking[0].shape[:2])
    patches = dubbed(pipeline, [*talking[:5], *wall, *talking[5:9]], syllables(1.0))
    assert [patch is None for patch in patches] == [False] * 5 + [True] * 3 + [False] * 4
    first = dubbed(pipeline, talking[:5], syllables(1.0))
    for one, other in zip(patches[:4], first[:4], strict=True):
        np.testing.assert_array_equal(one.rgb, other.rgb)


def test_a_film_is_dubbed_by_the_command(talking, tmp_path, monkeypatch, capsys):
    model = make_film_model(512)
    monkeypatch.setitem(PRESETS, TOY_B.name, model.preset)
    save_model(model, tmp_path / "b.safetensors")
    film = write_film(tmp_path / "film.mp4", talking[:8])
    write_flac(tmp_path / "voice.flac", syllables(8 / FPS))
    words = ["dub", str(film), str(tmp_path / "voice.flac"), "-o", str(tmp_path / "out.mp4")]
    words += ["--preset", TOY_B.name, "--weights", str(tmp_path / "b.safetensors"), "--json"]
    assert main([*words, "--device", "cpu"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["frames"] == told["changed"] == 8
    with av.open(str(tmp_path / "out.mp4")) as container:
        shown = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    changed = np.abs(shown[3].astype(int) - talking[3]).max(-1) > 40
    assert changed.any() and not changed[: len(changed) // 4, : changed.shape[1] // 2].any()


def test_a_large_model_without_the_conditions_is_refused(pipeline):
    plain = make_film_model(64)
    preset = without_part(plain.preset, "denoiser.landmarks")
    with pytest.raises(ConfigError, match="letstalk train landmarks"):
        Dubber(AvatarModel(preset), pipeline.finder)


def test_memory_goes_on_from_window_to_window_until_the_face_is_lost(pipeline, talking):
    """With the same noise, the second window differs by what is remembered of the first."""
    reader = FaceReader(pipeline.finder, pipeline.finder.autoencoder)
    frames, tokens = talking[:4], torch.zeros(4, 4, pipeline.model.denoiser.config.audio_width)
    faces = [reader.read(rgb) for rgb in frames]

    def second(*, forget):
        person = FilmFaces(pipeline.model)
        person.refer_to(frames[0], faces[0])
        first = person.generate(frames, faces, tokens)
        if forget:
            person.forget()
        return first, person.generate(frames, faces, tokens)

    (one, after), (same, anew) = second(forget=False), second(forget=True)
    np.testing.assert_array_equal(one, same)
    assert np.abs(after - anew).max() > 0.5
