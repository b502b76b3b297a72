"""Raw videos become a data folder that training reads."""

import json
import sys

import numpy as np
import pytest
from support.raw_videos import on_a_wall, speech, talking_faces, write_raw

from letstalk_rt.cli.prepare import main as prepare
from letstalk_rt.errors import ConfigError, InputError
from letstalk_rt.models.geometry.landmarks import mouth_opening
from letstalk_rt.training.data.audio_features import correlation
from letstalk_rt.training.data.dataset import load_clips
from letstalk_rt.training.prepare.sound import separate

COMMON = ["--landmarks", "own", "--workers", "1", "--min-s", "0.9", "--size", "128",
          "--tag", "ship", "--eval-share", "0.01"]  # fmt: skip
LATE = 5
HALVE = """
import sys, wave
import numpy as np
with wave.open(sys.argv[1]) as file:
    facts, sound = file.getparams(), np.frombuffer(file.readframes(10**9), np.int16)
with wave.open(sys.argv[2], "wb") as file:
    file.setparams(facts)
    file.writeframes((sound // 2).astype(np.int16).tobytes())
"""


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Two people; the one's sound is late, the other's video has two shots and 30 fps."""
    folder = tmp_path_factory.mktemp("raw")
    mira, leon = (on_a_wall(faces) for faces in talking_faces())
    write_raw(folder / "late.mp4", mira, speech(), late_s=LATE / 25)
    cut = 30
    both = np.concatenate([leon[:cut], 255 - leon[cut:, :, ::-1] // 2])
    both[cut:] = np.roll(leon[cut:], 60, 2) // 2  # another place, another light
    write_raw(folder / "shots.mkv", both, speech(), rate=30)
    write_raw(folder / "mute.mp4", mira[:30], None)
    (folder / "broken.mp4").write_bytes(b"no video at all")
    return folder


@pytest.fixture(scope="module")
def data(raw, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    assert prepare([str(raw), "-o", str(folder), *COMMON]) == 0
    return folder


def rows(folder):
    return {
        row["name"]: row
        for row in map(json.loads, (folder / "clips.jsonl").read_text().splitlines())
    }


class TestPreparation:
    def test_training_reads_what_it_writes(self, data, tmp_path):
        clips = [
            c for split in ("train", "eval") for c in load_clips(data, tmp_path, split, size_px=128)
        ]
        assert {clip.name.rsplit("-", 1)[0] for clip in clips} == {"late", "shots"}
        for clip in clips:
            assert clip.frames.shape == (clip.num_frames, 128, 128, 3)
            assert clip.has_audio and len(clip.pcm) == clip.num_frames * 640
            assert not clip.has_blendshapes
            height = np.ptp(clip.landmarks[:, :, 1], axis=1).mean()
            assert height / 128 == pytest.approx(0.557, abs=0.03)
            assert np.abs(clip.points).max() < 1.1

    def test_an_offset_of_the_sound_is_mended(self, data, tmp_path):
        late = rows(data)["late-0000"]
        assert abs(late["audio_shift"] - LATE) <= 1 and late["sync_before"] < late["sync_s"]
        clips = {
            c.name: c for s in ("train", "eval") for c in load_clips(data, tmp_path, s, size_px=128)
        }
        clip, true = clips["late-0000"], speech()[: len(clips["late-0000"].pcm)]
        heard = clip.pcm[: len(true)]
        loud = [
            np.sqrt((x[: len(x) // 640 * 640].reshape(-1, 640) ** 2).mean(1)) for x in (heard, true)
        ]
        fits = [
            correlation(loud[0][: -LATE or None], loud[1][: -LATE or None]),
            correlation(loud[0][LATE:], loud[1][:-LATE]),
        ]
        assert fits[0] > 0.9 > fits[1]

    def test_a_shot_ends_where_the_picture_jumps(self, data):
        shots = [row for name, row in rows(data).items() if name.startswith("shots")]
        assert len(shots) == 2
        first, second = sorted(shots, key=lambda row: row["start_s"])
        assert first["start_s"] + first["frames"] / 25 <= 30 / 25 + 0.05 <= second["start_s"] + 0.1
        assert second["crop_px"][0] - first["crop_px"][0] == pytest.approx(60, abs=6)

    def test_people_are_in_one_split(self, data):
        splits = {}
        for row in rows(data).values():
            splits.setdefault(row["person"], set()).add(row["split"])
        assert all(len(found) == 1 for found in splits.values())
        assert set.union(*splits.values()) == {"train", "eval"}

    def test_loudness_is_even(self, data):
        for row in rows(data).values():
            assert row["loudness_lufs"] + row["gain_db"] == pytest.approx(-23, abs=0.6)

    def test_the_report_says_what_was_dropped_and_why(self, data):
        report = json.loads((data / "prepared.json").read_text())
        why = {part["source"]: part["reason"] for part in report["stretches"]}
        assert why["mute"] == "no sound" and why["broken"] == "unreadable"
        assert report["clips"] == len(rows(data)) and report["dropped"]["no sound"] == 1

    def test_it_resumes_and_takes_new_videos(self, raw, data, tmp_path, capsys):
        before = {p.name: p.stat().st_mtime_ns for p in (data / "clips").iterdir()}
        (data / "prepared" / "mute.json").unlink()
        assert prepare([str(raw), "-o", str(data), *COMMON, "--json"]) == 0
        assert {p.name: p.stat().st_mtime_ns for p in (data / "clips").iterdir()} == before
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["dropped"]["no sound"] == 1

    def test_other_settings_need_another_folder(self, raw, data):
        with pytest.raises(InputError, match="size was 128, now 256"):
            prepare([str(raw), "-o", str(data), *COMMON[:-4], "--size", "256"])

    def test_small_clips_are_not_enlarged_for_a_model(self, data, tmp_path):
        with pytest.raises(InputError, match=r"128x128 px, expected 256x256.*--size 256"):
            load_clips(data, tmp_path, "train")

    def test_larger_clips_are_made_smaller_with_their_landmarks(self, data, tmp_path):
        large = load_clips(data, tmp_path, "train", size_px=128)[0]
        small = load_clips(data, tmp_path, "train", size_px=64)[0]
        assert small.frames.shape[1:] == (64, 64, 3)
        assert small.landmarks * 2 == pytest.approx(large.landmarks, abs=1e-3)
        assert mouth_opening(small.points) == pytest.approx(mouth_opening(large.points), abs=1e-4)


@pytest.mark.slow
def test_several_processes_prepare_the_same(raw, data, tmp_path):
    folder = tmp_path / "data"
    at = COMMON.index("--workers")
    assert (
        prepare([str(raw), "-o", str(folder), *COMMON[:at], "--workers", "2", *COMMON[at + 2 :]])
        == 0
    )
    assert rows(folder) == rows(data)


class TestSeparation:
    def test_the_program_s_sound_is_used(self, tmp_path):
        """Here the program halves it."""
        pcm = speech()[:16_000]
        program = tmp_path / "halve.py"
        program.write_text(HALVE)
        command = f"{sys.executable} {program} {{input}} {{output}}"
        halved = separate(pcm, command, tmp_path)
        assert halved.shape == pcm.shape and halved.dtype == np.float32
        assert halved == pytest.approx(pcm / 2, abs=1e-4)

    @pytest.mark.parametrize("command", ["false {input} {output}", "true {input} {output}"])
    def test_a_program_that_fails_or_writes_nothing_is_named(self, tmp_path, command):
        with pytest.raises(InputError, match=f"the separation '{command[:4].strip()}.* failed"):
            separate(speech()[:1600], command, tmp_path)


@pytest.mark.parametrize(
    "options, message",
    [(["--size", "100"], "multiple of 32"), (["--min-s", "9", "--max-s", "3"], "at most --max-s")],
)
def test_settings_out_of_range_are_named(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        prepare([str(tmp_path), "-o", str(tmp_path / "data"), *options])
