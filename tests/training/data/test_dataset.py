"""The data folder is read as documented."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from support.data_folder import (
    FRAMES,
    face_points,
    frame_level,
    write_data_folder,
)
from support.small_model import make_speech
from support.training import generator

from letstalk_rt.errors import InputError
from letstalk_rt.models.geometry.landmarks import NUM_LANDMARKS
from letstalk_rt.training.data import dataset
from letstalk_rt.training.data.audio_features import (
    augment_mel,
    clip_mel,
)
from letstalk_rt.training.data.dataset import (
    affine_augment,
    clip_rows,
    color_augment,
    load_clips,
    load_stills,
)
from letstalk_rt.training.data.pairs import PairSource
from letstalk_rt.training.stages.audio_encoder import (
    split_by_source,
)


class TestClips:
    def test_split_and_tag_are_respected(self, root, cache):
        names = {split: [c.name for c in load_clips(root, cache, split)] for split in
                 ("train", "eval")}  # fmt: skip
        assert names == {"train": ["anna-GRID-1", "bert-1", "mute-1"], "eval": ["dora-1"]}

    def test_lab_clips_come_only_when_they_are_asked_for(self, root, cache):
        both = load_clips(root, cache, "eval", tags=("ship", "lab"))
        assert [clip.name for clip in both] == ["dora-1", "lent-2"]

    def test_frames_come_in_order_beside_their_tracks(self, clips):
        clip = clips[1]
        assert clip.num_frames == FRAMES and clip.frames.shape == (FRAMES, 256, 256, 3)
        levels = clip.frames[:, :60].mean((1, 2, 3))
        assert np.abs(levels - [frame_level(1, i) for i in range(FRAMES)]).max() < 4
        assert clip.points.shape == (FRAMES, NUM_LANDMARKS, 2) and np.abs(clip.points).max() < 1
        opening = 4 + 4 * np.sin(np.arange(FRAMES))
        assert np.abs(clip.landmarks - face_points(opening)).max() < 0.1
        assert clip.blendshapes.shape == (FRAMES, 52)

    def test_sound_lasts_as_long_as_the_picture(self, clips):
        for clip in clips:
            assert clip.pcm.shape == (FRAMES * 640,) and clip.pcm.dtype == np.float32
        assert np.abs(clips[0].pcm - make_speech(FRAMES / 25, 0)).max() < 1e-3

    def test_a_clip_without_sound_is_silent_and_says_so(self, clips):
        mute = clips[2]
        assert not mute.has_audio and not mute.pcm.any()
        assert clips[0].has_audio and clips[0].pcm.any()

    def test_kind_and_corpus_are_known(self, clips):
        assert [clip.kind for clip in clips] == ["real", "generated", "real"]
        assert [clip.is_grid for clip in clips] == [True, False, False]

    def test_frames_are_decoded_once(self, root, clips, cache, monkeypatch):
        monkeypatch.setattr(dataset, "decode_frames", None)
        again = load_clips(root, cache, "train")
        assert np.array_equal(again[0].frames, clips[0].frames)

    @pytest.mark.parametrize("suffix", [".mp4", ".npz", ".flac"])
    def test_a_damaged_clip_is_listed_and_left_out(self, tmp_path, suffix, capsys):
        folder = write_data_folder(tmp_path / "data")
        names = [str(row["name"]) for row in clip_rows(folder, "train")]
        file = folder / "clips" / f"{names[0]}{suffix}"
        file.write_bytes(file.read_bytes()[:40])
        loaded = load_clips(folder, tmp_path / "cache", "train")
        assert [clip.name for clip in loaded] == names[1:]
        assert f"clip {names[0]!r} cannot be read" in capsys.readouterr().err

    def test_a_missing_list_is_named(self, tmp_path):
        with pytest.raises(InputError, match=r"no clips.jsonl in the data folder.*docs/training"):
            load_clips(tmp_path, tmp_path, "train")

    def test_a_broken_list_is_named(self, tmp_path):
        (tmp_path / "clips.jsonl").write_text('{"name": "a"}\n{"name"\n')
        with pytest.raises(InputError, match="clips.jsonl holds a line that is not JSON"):
            load_clips(tmp_path, tmp_path, "train")

    def test_empty_lines_are_passed_over(self, root, tmp_path, cache):
        lines = (root / "clips.jsonl").read_text().replace("\n", "\n\n")
        (tmp_path / "clips.jsonl").write_text(lines)
        (tmp_path / "clips").symlink_to(root / "clips")
        assert len(load_clips(tmp_path, cache, "train")) == 3

    def test_people_set_aside_stay_together(self, clips):
        kept, validation = split_by_source(clips, every=2)
        assert [c.name for c in validation] == ["anna-GRID-1", "mute-1"]
        assert [c.name for c in kept] == ["bert-1"]


class TestStills:
    def test_the_cache_is_read(self, stills):
        assert stills.frames.shape == (3, 320, 320, 3) and stills.landmarks.shape == (3, 478, 2)

    def test_only_the_splits_own_ship_portraits_are_prepared(self, tmp_path, monkeypatch):
        class FixedLandmarker:
            """A landmarker that sees the same face in each picture, but none in a black one."""

            def __init__(self, model):
                pass

            def __call__(self, rgb):
                return face_points(1.0)[0] if rgb.any() else None

        monkeypatch.setattr(dataset, "Landmarker", FixedLandmarker)
        (tmp_path / "portraits").mkdir()
        rows = []
        for level, split, tag in [(10, "train", "ship"), (20, "train", "lab"), (30, "eval", "ship"),
                                  (0, "train", "ship"), (40, "train", "ship")]:  # fmt: skip
            Image.new("RGB", (256, 256), (level,) * 3).save(tmp_path / "portraits" / f"{level}.png")
            rows.append(json.dumps({"file": f"{level}.png", "split": split, "tag": tag}))
        (tmp_path / "portraits.jsonl").write_text("\n".join(rows))
        found = load_stills(tmp_path, tmp_path / "cache", "train")
        assert found.frames[:, 160, 160, 0].tolist() == [10, 40]
        height = np.ptp(found.landmarks[0, :, 1])
        assert height / 320 == pytest.approx(0.557 * 256 / 320, rel=0.01)


class TestAugmentation:
    def test_picture_and_landmarks_move_alike(self):
        axis = torch.arange(256) - 127.5
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        point = torch.tensor([0.2, -0.3])
        blob = torch.exp(-((x - point[0] * 128) ** 2 + (y - point[1] * 128) ** 2) / 200)
        frames = blob.expand(3, 2, 3, 256, 256)
        moved, placed = affine_augment(
            frames, point.expand(3, 2, 1, 2), generator(), max_scale=0.2, max_turn=0.3
        )
        assert (placed[:, 0] - point).abs().amax() > 0.02
        for item in range(3):
            weight = moved[item, 1, 0]
            found = torch.stack([(weight * x).sum(), (weight * y).sum()]) / weight.sum() / 128
            torch.testing.assert_close(found, placed[item, 1, 0], atol=0.01, rtol=0)

    def test_frames_of_an_item_move_alike_and_items_apart(self):
        frames = torch.rand(2, 1, 3, 256, 256).expand(2, 2, 3, 256, 256)
        moved, placed = affine_augment(frames, torch.zeros(2, 2, 1, 2), generator())
        assert torch.equal(moved[:, 0], moved[:, 1]) and torch.equal(placed[:, 0], placed[:, 1])
        assert not torch.allclose(placed[0], placed[1])

    def test_colours_stay_in_range(self):
        frames = torch.rand(2, 2, 3, 8, 8) * 2 - 1
        changed = color_augment(frames, generator())
        assert changed.abs().max() <= 1 and not torch.equal(changed, frames)

    def test_some_portraits_are_black_and_white_in_all_their_frames(self):
        frames = torch.rand(200, 1, 3, 2, 2).expand(200, 2, 3, 2, 2) - 0.5
        changed = color_augment(frames, generator())
        assert torch.equal(changed[:, 0], changed[:, 1])
        pixels = changed[:, 0].flatten(2)
        sizes = torch.linalg.svdvals(pixels - pixels.mean(2, keepdim=True))
        of_one_tint = (sizes[:, 1] < 1e-5).sum()
        assert 10 <= of_one_tint <= 45

    def test_pairs_are_decided_by_the_generator(self, clips, stills):
        source = PairSource(clips, stills, 4)
        frames, points = source.draw(generator(3))
        again, _ = source.draw(generator(3))
        assert frames.shape == (4, 2, 3, 256, 256) and points.shape == (4, 2, NUM_LANDMARKS, 2)
        assert torch.equal(frames, again) and frames.abs().max() <= 1
        assert source.mean_points().shape == (NUM_LANDMARKS, 2)

    def test_augmented_sound_stays_in_shape(self):
        mel = clip_mel(make_speech(1.0))[None].repeat(3, 1, 1)
        changed = augment_mel(mel, generator())
        assert changed.shape == mel.shape and changed.isfinite().all()
        assert not torch.allclose(changed[0], changed[1])

    def test_sound_is_followed_by_silence_for_the_look_ahead(self):
        assert clip_mel(np.zeros(10 * 640, np.float32)).shape == (64, 4 * 12)
