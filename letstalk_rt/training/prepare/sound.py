"""Loudness of a recording, and the offset between its lips and its sound.

Loudness is integrated loudness after EBU R 128, by FFmpeg. The offset is found with the motion
denoiser of the embedded model: it predicts the lip gap from sound, and the lag at which the
prediction fits the lips in the picture best is the offset.
"""

import shlex
import subprocess
from pathlib import Path

import av
import numpy as np
import torch

from letstalk_rt.audio.files import read_audio
from letstalk_rt.errors import InputError
from letstalk_rt.models.loading import EMBEDDED, load_model
from letstalk_rt.models.parts import MOTION
from letstalk_rt.training.data.audio_features import correlation
from letstalk_rt.types import SAMPLE_RATE, SAMPLES_PER_FRAME

REACH = 15
"""Largest offset that is looked for, in frames either way."""

MIN_GAIN = 0.08
"""How much better than no offset an offset must fit to be believed, in Pearson's r."""

MIN_FIT = 0.3
"""Pearson's r below which an offset is not believed."""

_PEAK = 0.98
_SILENCE = -70.0


def loudness(pcm: np.ndarray) -> float:
    """Return the integrated loudness of 16 kHz mono sound in LUFS; -70 for silence."""
    graph = av.filter.Graph()
    source = graph.add_abuffer(sample_rate=SAMPLE_RATE, format="flt", layout="mono")
    meter = graph.add("ebur128", "metadata=1:framelog=quiet")
    sink = graph.add("abuffersink")
    source.link_to(meter)
    meter.link_to(sink)
    graph.configure()
    frame = av.AudioFrame.from_ndarray(
        np.ascontiguousarray(pcm, np.float32)[None], format="flt", layout="mono"
    )
    frame.sample_rate = SAMPLE_RATE
    source.push(frame)
    source.push(None)
    found = _SILENCE
    while True:
        try:
            found = float(sink.pull().metadata.get("lavfi.r128.I", found))
        except (av.EOFError, av.BlockingIOError):
            return found if np.isfinite(found) else _SILENCE


def gain_to(pcm: np.ndarray, target: float) -> float:
    """Return the factor that brings sound to a loudness in LUFS without clipping its peaks."""
    peak = float(np.abs(pcm).max(initial=1e-9))
    return float(min(10 ** ((target - loudness(pcm)) / 20), _PEAK / peak))


def separate(pcm: np.ndarray, command: str, folder: Path) -> np.ndarray:
    """Run a program that separates speech from music, and return what it wrote.

    Args:
        pcm: 16 kHz mono.
        command: The program with its arguments; `{input}` and `{output}` stand for wav files.
        folder: Where these files are written.

    Raises:
        InputError: The program fails, or writes nothing that can be read.
    """
    before, after = folder / "mixture.wav", folder / "speech.wav"
    with av.open(str(before), "w", format="wav") as container:
        stream = container.add_stream("pcm_s16le", rate=SAMPLE_RATE, layout="mono")
        whole = (np.clip(pcm, -1, 1) * 32767).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(whole, format="s16", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    words = [word.format(input=before, output=after) for word in shlex.split(command)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode or not after.exists():
        told = (done.stderr or done.stdout).strip().splitlines()
        raise InputError(
            f"the separation {words[0]!r} failed with status {done.returncode}: "
            f"{told[-1] if told else 'it wrote nothing'}"
        )
    samples, rate = read_audio(after)
    mono = samples if samples.ndim == 1 else samples.mean(1)
    if rate != SAMPLE_RATE:
        raise InputError(f"the separation wrote {rate} Hz, expected {SAMPLE_RATE} Hz")
    speech = np.zeros_like(pcm)
    speech[: len(mono)] = mono[: len(pcm)]
    return speech


class SyncMeter:
    """Measures how well lips fit sound at each offset, by the embedded model's motion denoiser."""

    def __init__(self) -> None:
        self._motion = load_model(EMBEDDED).part(MOTION)

    @torch.inference_mode()
    def fits(self, gap: np.ndarray, pcm: np.ndarray) -> np.ndarray:
        """Return Pearson's r at each lag from `-REACH` to `REACH`.

        Args:
            gap: Lip gap in each frame, `(T,)`.
            pcm: The sound from `REACH` frames before the first frame to `REACH` after the last.

        Returns:
            `(2 * REACH + 1,)`; entry `REACH + k` is the fit if the sound is moved `k` frames
            earlier.
        """
        count = len(gap)
        assert len(pcm) == (count + 2 * REACH) * SAMPLES_PER_FRAME
        ahead = self._motion.speech.lookahead_frames
        tail = np.zeros(ahead * SAMPLES_PER_FRAME, np.float32)
        sound = torch.from_numpy(np.concatenate([pcm, tail]).astype(np.float32))
        heard = self._motion.lip_values(sound[None])[0, ahead:, 0].numpy()
        return np.array(
            [correlation(heard[k : k + count], gap) for k in range(2 * REACH + 1)], np.float32
        )


def best_offset(fits: list[np.ndarray], frames: list[int]) -> tuple[int, float, float]:
    """Return the offset of several clips of one recording that they agree on.

    Args:
        fits: From `SyncMeter.fits`, one for each clip.
        frames: The clips' lengths.

    Returns:
        The offset in frames by which the sound is late, or 0 if none is believed; the mean r at
        that offset, and the mean r without any.
    """
    mean = np.average(np.stack(fits), axis=0, weights=frames)
    best = int(mean.argmax())
    believed = mean[best] >= MIN_FIT and mean[best] >= mean[REACH] + MIN_GAIN
    believed = believed and 0 < best < 2 * REACH
    place = best if believed else REACH
    return place - REACH, float(mean[place]), float(mean[REACH])
