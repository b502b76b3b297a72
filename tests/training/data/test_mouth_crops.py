"""The training data of the mouth painter: crops of open mouths, and batches of them."""

import json
import wave
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from support.mouth_crops import MIDDLE, make_crops
from support.mouths import frontal_face, mesh, skin

from letstalk_rt.errors import InputError
from letstalk_rt.models.audio_encoder.mouth_sound import MOUTH_SOUND
from letstalk_rt.models.geometry.landmarks import SUBSET
from letstalk_rt.training.data.mouth_batches import MouthSource
from letstalk_rt.training.data.mouth_crops import KINDS, STORED_SIZE, load_mouth_crops


@pytest.fixture
def source():
    crops = make_crops()
    return MouthSource(crops, np.arange(len(crops)))


class TestCrops:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """Clips whose mouths open, a still, and rows that must not be trained on."""
        root = tmp_path / "data"
        (root / "clips").mkdir(parents=True)
        (root / "openmouth").mkdir()
        rows = []
        for name, split, tag in (
            ("anna-1", "train", "ship"),
            ("lent-1", "train", "lab"),
            ("dora-1", "eval", "ship"),
        ):
            gaps = np.linspace(0, 10, 8)
            points = torch.cat([frontal_face(gap, scale=0.7, at=(128, 140)) for gap in gaps])
            np.savez(root / "clips" / f"{name}.npz", landmarks=mesh(points), ok=np.arange(8) != 6)
            with av.open(str(root / "clips" / f"{name}.mp4"), "w") as container:
                stream = container.add_stream("libx264", rate=25, options={"crf": "12"})
                stream.width = stream.height = 256
                stream.pix_fmt = "yuv420p"
                for _ in range(8):
                    frame = av.VideoFrame.from_ndarray(skin(), "rgb24")
                    container.mux(stream.encode(frame))
                container.mux(stream.encode())
            with wave.open(str(root / "clips" / f"{name}.flac"), "wb") as audio:
                audio.setparams((1, 2, 16000, 0, "NONE", ""))
                loud = np.random.default_rng(0).normal(0, 3000, 8 * 640)
                loud[: 4 * 640] *= 0.05
                audio.writeframes(loud.astype(np.int16).tobytes())
            rows.append({"name": name, "split": split, "tag": tag, "kind": "real", "upscale": 1.3})
        (root / "clips.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        Image.fromarray(skin(512)).save(root / "openmouth" / "film-1-0042.jpg")
        still = mesh(frontal_face(12.0, scale=1.4, at=(256, 280)))[0]
        np.savez(root / "openmouth_landmarks.npz", **{"film-1-0042": still})
        row = {"file": "film-1-0042.jpg", "split": "train", "tag": "ship"}
        (root / "openmouth.jsonl").write_text(json.dumps(row) + "\n")
        return root

    def test_open_mouths_of_the_split_with_tag_ship_are_cropped(self, folder, tmp_path):
        mouths = load_mouth_crops(folder, tmp_path / "cache", "train")
        assert mouths.frames.shape[1:] == (*STORED_SIZE, 3)
        assert mouths.stills.shape == (1, 2 * STORED_SIZE[0], 2 * STORED_SIZE[1], 3)
        assert mouths.is_still(np.arange(len(mouths))).tolist() == [True] + [False] * 5
        assert [KINDS[k] for k in mouths.kind] == ["openmouth", *["real"] * (len(mouths.kind) - 1)]
        # gaps up to 1.5 px are shut, and of frame 6 no face is known
        assert mouths.time.tolist() == [0, 2, 3, 4, 5, 7]
        assert len(set(mouths.source.tolist())) == len(set(mouths.person.tolist())) == 2
        assert mouths.weight[0] == 1 and mouths.weight[1] == pytest.approx(1 / 1.3**2)

    def test_clips_of_one_person_are_one_source(self, folder, tmp_path):
        index = folder / "clips.jsonl"
        rows = [json.loads(line) for line in index.read_text().splitlines()]
        for row, person in zip(rows, ("anna", "anna", "dora"), strict=True):
            row |= {"person": person, "tag": "ship"}
        index.write_text("".join(json.dumps(r) + "\n" for r in rows))
        mouths = load_mouth_crops(folder, tmp_path / "cache", "train")
        assert len(mouths) == 1 + 5 + 5 and len(set(mouths.source.tolist())) == 2

    def test_crops_match_their_landmarks(self, folder, tmp_path):
        mouths = load_mouth_crops(folder, tmp_path / "cache", "train")
        centre = mouths.points[:, [SUBSET.index(i) for i in (61, 291, 13, 14)]].mean(1)
        assert np.abs(centre - MIDDLE.numpy()).max() < 2
        # the picture under the middle of the mouth is what it was in the frame
        assert np.abs(mouths.frames[0, 58, 80].astype(int) - skin()[140, 128]).max() < 8
        assert np.abs(mouths.stills[0, 116, 160].astype(int) - skin(512)[280, 256]).max() < 8

    def test_frames_come_with_the_sound_around_them(self, folder, tmp_path):
        mouths = load_mouth_crops(folder, tmp_path / "cache", "train")
        assert mouths.sound.shape == (6, MOUTH_SOUND) and not mouths.sound[0].any()
        hiss = mouths.sound[mouths.time >= 4].astype(float).mean()
        assert hiss > mouths.sound[1 : 1 + 2].astype(float).mean() + 0.5

    def test_without_stills_or_clips_it_says_what_is_missing(self, folder, tmp_path):
        (folder / "openmouth.jsonl").unlink()
        with pytest.raises(InputError, match="found 0 stills and 1 clips"):
            load_mouth_crops(folder, tmp_path / "cache", "train")

    def test_they_are_cached(self, folder, tmp_path):
        first = load_mouth_crops(folder, tmp_path / "cache", "train")
        (folder / "clips.jsonl").unlink()
        again = load_mouth_crops(folder, tmp_path / "cache", "train")
        assert np.array_equal(first.frames, again.frames)
        assert np.array_equal(first.stills, again.stills)
        assert np.array_equal(first.points, again.points)


class TestBatches:
    def test_both_frames_of_a_pair_are_augmented_alike(self, source):
        batch = source.draw(8, torch.Generator().manual_seed(0))
        assert batch.pairs == 2 and len(batch.crops) == 8
        first, second = batch.crops[:2], batch.crops[-2:]
        assert float((first - second).abs().mean()) < 0.05
        assert torch.equal(batch.teeth[:2, 3], batch.teeth[-2:, 3])

    def test_the_opening_matches_the_mouth(self, source):
        generator = torch.Generator().manual_seed(1)
        batch = source.gather(torch.arange(4), 0, generator, augment=False)
        red = (batch.crops[:, 0] - batch.crops[:, 2] > 1.0).float()
        inside = (batch.opening[:, 0] > 0.5).float()
        assert float((inside * red).sum() / inside.sum()) > 0.8

    def test_landmarks_are_augmented_with_their_images(self, source):
        generator = torch.Generator().manual_seed(2)
        batch = source.gather(torch.arange(20), 0, generator)
        red = (batch.crops[:, 0] - batch.crops[:, 2] > 0.35 * batch.crops[:, 0].amax()).float()
        coloured = batch.crops.std(1).flatten(1).amax(1) > 0.05  # some are black and white
        inside = (batch.opening[:, 0] > 0.5).float()
        share = (inside * red).sum((1, 2)) / inside.sum((1, 2))
        assert float(share[coloured].median()) > 0.75

    def test_frames_of_video_are_compared_without_details(self, source):
        batch = source.gather(torch.tensor([0, 5]), 0, torch.Generator().manual_seed(3))
        noise = torch.zeros_like(batch.crops)
        noise[..., ::2], noise[..., 1::2] = 0.1, -0.1
        change = batch.comparable(batch.crops + noise) - batch.comparable(batch.crops)
        assert batch.is_still.tolist() == [True, False]
        assert float(change[0].abs().min()) > 0.09 and float(change[1].abs().max()) < 1e-5

    def test_sound_is_missing_for_stills_and_one_frame_in_five(self, source):
        batch = source.gather(torch.arange(2, 22).repeat(10), 0, torch.Generator().manual_seed(4))
        assert 0.7 < float(batch.sound.any(1).float().mean()) < 0.9
        stills = source.gather(torch.tensor([0, 1]), 0, torch.Generator().manual_seed(4))
        assert not stills.sound.any()
