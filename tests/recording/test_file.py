"""Video files contain every frame and sample at its time when they are read back."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from letstalk_rt.audio.files import read_audio
from letstalk_rt.errors import ConfigError, DependencyError
from letstalk_rt.recording import av_encoder
from letstalk_rt.recording.file import Recording, VideoWriter, write_video
from letstalk_rt.types import AVFrame

FLASH_FRAME = 37


def scene(count: int = 75, size: tuple[int, int] = (96, 128)) -> Iterator[np.ndarray]:
    for index in range(count):
        yield np.full((*size, 3), 250 if index == FLASH_FRAME else 20, np.uint8)


def beep(rate: int, channels: int, seconds: float = 3.0) -> np.ndarray:
    audio = np.zeros((int(rate * seconds), channels), np.float32)
    start = FLASH_FRAME * rate // 25
    audio[start : start + rate // 25, 0] = 0.8 * np.sin(np.arange(rate // 25) * 0.3)
    return audio if channels > 1 else audio[:, 0]


def read_video(path: Path) -> list[tuple[float, np.ndarray]]:
    with av.open(str(path)) as container:
        frames = container.decode(container.streams.video[0])
        return [(float(f.pts * f.time_base), f.to_ndarray(format="rgb24")) for f in frames]


def audio_start_s(path: Path, threshold: float = 0.2) -> float:
    """Return when the beep begins, by the timestamps of the decoded frames."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        for frame in container.decode(stream):
            loud = np.abs(frame.to_ndarray()[0]) > threshold
            if loud.any():
                return float(frame.pts * frame.time_base) + int(loud.argmax()) / frame.sample_rate
    raise AssertionError("no beep")


@pytest.mark.parametrize(("rate", "channels"), [(48_000, 2), (16_000, 1), (10_000, 1)])
def test_flash_and_beep_stay_together(tmp_path: Path, rate: int, channels: int) -> None:
    path = tmp_path / "out.mp4"
    assert write_video(path, scene(), beep(rate, channels), rate) == 75
    frames = read_video(path)
    assert len(frames) == 75
    times = np.array([time for time, _ in frames])
    assert np.allclose(times, np.arange(75) / 25, atol=1e-4)
    flash_s = times[np.argmax([rgb.mean() for _, rgb in frames])]
    assert flash_s == pytest.approx(FLASH_FRAME / 25)
    assert abs(audio_start_s(path) - flash_s) < 0.005


def test_stereo_at_48_khz_stays_stereo_at_48_khz(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    write_video(path, scene(), beep(48_000, 2), 48_000)
    samples, rate = read_audio(path)
    assert rate == 48_000 and samples.shape[1] == 2
    assert np.abs(samples[:, 0]).max() > 0.5 and np.abs(samples[:, 1]).max() < 0.05


def test_codecs_are_those_that_every_player_supports(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    write_video(path, scene(), beep(16_000, 1), 16_000)
    with av.open(str(path)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, audio.codec_context.name) == ("h264", "aac")
        assert video.codec_context.pix_fmt == "yuv420p" and video.average_rate == 25


def test_colours_are_preserved(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    colours = np.array([[200, 40, 40], [40, 160, 60], [50, 60, 190], [220, 180, 150]], np.uint8)
    rgb = np.repeat(np.repeat(colours[None], 64, 0), 32, 1)
    write_video(path, [rgb] * 10, np.zeros(6400, np.float32), 16_000)
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        seen = frame.reformat(format="rgb24", src_colorspace="ITU709").to_ndarray()
    assert np.abs(seen[32, 16::32].astype(int) - colours).max() <= 6


def test_audio_may_be_longer_or_shorter_than_the_video(tmp_path: Path) -> None:
    write_video(tmp_path / "long.mp4", scene(50), beep(16_000, 1), 16_000)
    assert len(read_audio(tmp_path / "long.mp4")[0]) >= 3 * 16_000
    write_video(tmp_path / "short.mp4", scene(75), beep(16_000, 1)[:16_000], 16_000)
    assert len(read_video(tmp_path / "short.mp4")) == 75


def test_odd_sizes_become_even(tmp_path: Path) -> None:
    write_video(tmp_path / "odd.mp4", scene(3, (97, 129)), np.zeros(1920, "f4"), 16_000)
    assert read_video(tmp_path / "odd.mp4")[0][1].shape == (96, 128, 3)


@pytest.mark.parametrize("size", [(200, 300), (48, 72), (250, 100)], ids=str)
def test_a_picture_of_another_size_is_shown_as_a_whole(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    """As after a change of the portrait. The right half of the new picture is bright."""
    height, width = size
    other = np.full((height, width, 3), 60, np.uint8)
    other[:, width // 2 :] = 220
    pictures = [*scene(2), *[other] * 8]
    write_video(tmp_path / "a.mp4", pictures, np.zeros(6400, "f4"), 16_000, badge=False)
    shown = read_video(tmp_path / "a.mp4")[-1][1].astype(int)
    assert shown.shape == (96, 128, 3)
    scale = min(128 / width, 96 / height)
    left, top = (128 - scale * width) / 2, (96 - scale * height) / 2
    assert np.abs(shown[48, int(left) + 4 : 60] - 60).max() < 12, "the left half"
    assert np.abs(shown[48, 68 : int(128 - left) - 4] - 220).max() < 12, "the right half"
    outside = np.ones((96, 128), bool)
    outside[max(0, int(top) - 4) : int(96 - top) + 5, max(0, int(left) - 4) : int(132 - left)] = 0
    assert shown[outside].max(initial=0) < 30


def test_an_error_leaves_no_new_file_and_keeps_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    path.write_bytes(b"older")
    with pytest.raises(RuntimeError, match="model"), VideoWriter(path, 16_000) as writer:
        writer.write(next(scene()), np.zeros(640, "f4"))
        raise RuntimeError("the model failed")
    assert [p.name for p in tmp_path.iterdir()] == ["out.mp4"] and path.read_bytes() == b"older"


def test_the_file_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    with VideoWriter(path, 16_000) as writer:
        writer.write(next(scene()), np.zeros(640, "f4"))
        assert not path.exists()
    assert path.exists() and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("name", "reason"),
    [("missing/out.mp4", "No such file"), ("out.txt", "ends in")],
)
def test_unwritable_paths_are_refused(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        write_video(tmp_path / name, scene(), beep(16_000, 1), 16_000)


def test_the_error_of_a_missing_encoder_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(av_encoder, "VIDEO_CODEC", "libnone")
    with pytest.raises(DependencyError, match="libnone.*PyPI"):
        write_video(tmp_path / "out.mp4", scene(), beep(16_000, 1), 16_000)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_that_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out.mp4").mkdir()
    with pytest.raises(ConfigError, match="folder"):
        write_video(tmp_path / "out.mp4", scene(), beep(16_000, 1), 16_000)


def av_frame(index: int, rgb: np.ndarray) -> AVFrame:
    return AVFrame(rgb, np.full(640, 0.1, np.float32), index, 0, 0)


@pytest.mark.parametrize("name", ["out.mp4", "out.mkv"])
def test_a_recording_contains_the_frames_that_were_shown(tmp_path: Path, name: str) -> None:
    recording = Recording(tmp_path / name)
    recording.open(128, 96)
    for index, rgb in enumerate(scene(45)):
        recording.show(av_frame(index, rgb))
    recording.close()
    recording.close()
    times = np.array([time for time, _ in read_video(tmp_path / name)])
    assert len(times) == 45 and np.allclose(times, np.arange(45) / 25, atol=2e-3)
    assert abs(len(read_audio(tmp_path / name)[0]) - 45 * 640) < 2100
    assert recording.skipped == 0


def test_a_recording_survives_a_crash_of_its_process(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    code = f"""
import os, numpy as np
from letstalk_rt.recording.file import VideoWriter
writer = VideoWriter({str(path)!r}, 16_000, crash_safe=True, x264={{"preset": "superfast"}})
writer.__enter__()
for index in range(150):
    writer.write(np.full((96, 128, 3), index, np.uint8), np.zeros(640, "f4"))
os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9
    assert len(read_video(path)) >= 100


def test_a_slow_recording_drops_images_and_keeps_the_audio(
    tmp_path: Path,
) -> None:
    recording = Recording(tmp_path / "out.mp4", max_video_frames=1)
    recording.open(128, 96)
    for index, rgb in enumerate(scene(30)):
        recording.show(av_frame(index, rgb))
    recording.close()
    assert 0 < recording.skipped < 30
    assert len(read_video(tmp_path / "out.mp4")) == 30 - recording.skipped
    assert abs(len(read_audio(tmp_path / "out.mp4")[0]) - 30 * 640) < 2100


def test_a_recording_that_cannot_be_opened_raises(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "missing" / "out.mp4")
    with pytest.raises(ConfigError, match="No such file"):
        recording.open(128, 96)
    recording.close()
