"""The probes of the session benchmark: speech, a fake model, a timed model, recording sinks."""

import asyncio
import math
import time
from collections.abc import Hashable, Sequence

import numpy as np

from letstalk_rt.inference.protocol import DEFAULT_OPTIONS, Deliver, Pipeline, State, StateOptions
from letstalk_rt.sinks.audio_buffer import AudioBuffer
from letstalk_rt.sinks.speaker import BUFFER_S
from letstalk_rt.types import FPS, SAMPLE_RATE, AVFrame, Portrait

CHUNK_MS = 10
CHUNKS_PER_FRAME = round(1000 / FPS / CHUNK_MS)
FRAME_S = 1 / FPS
WARM_UP_S = 5.0
SPARE_S = 30.0
"""Time beyond the measurement for which memory is allocated."""


def voice(seconds: float, seed: int = 0) -> np.ndarray:
    """Return noise with the rhythm of syllables; the content does not change the work."""
    time_s = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    noise = np.random.default_rng(seed).standard_normal(len(time_s))
    return (0.1 * noise * (0.1 + np.sin(np.pi * 4 * time_s) ** 2)).astype(np.float32)


class FakePipeline(Pipeline[None]):
    """A model that takes no time and returns grey frames."""

    frames_per_window, hop, lookahead_frames = 4, 4 * 640, 2
    partial_sizes, device = (4,), "cpu"

    def __init__(self, size: int) -> None:
        self._frames = np.full((1, 4, size, size, 3), 128, np.uint8)

    def init_state(self, portrait: Portrait, options: StateOptions = DEFAULT_OPTIONS) -> None:
        """Do nothing: this model has no state."""

    def interrupt(self, state: None, *, unseen: int = 0) -> None:
        """Do nothing."""

    def change_portrait(self, state: None, portrait: Portrait) -> None:
        """Do nothing."""

    def batch_key(self, state: None) -> Hashable:
        """Return a key of its own, since the frames are those of one session."""
        return object()

    def step(
        self, pcm: np.ndarray, states: Sequence[None], deliver: Deliver | None = None
    ) -> np.ndarray:
        """Return a grey window."""
        window = self._frames.copy()
        if deliver is not None:
            deliver(window)
        return window


class Series:
    """A ring buffer of numbers, allocated in advance.

    Lists that grow with every frame look like a leak of the engine: 55 MB per hour.

    Args:
        most: The capacity; beyond it, the oldest numbers are dropped.
    """

    def __init__(self, most: int) -> None:
        self._numbers = np.full(most, math.nan)
        self._count = 0

    def append(self, number: float) -> None:
        """Append a number."""
        self._numbers[self._count % len(self._numbers)] = number
        self._count += 1

    def clear(self) -> None:
        """Drop all numbers."""
        self._count = 0

    def values(self) -> np.ndarray:
        """Return the numbers, oldest first, `(n,)`."""
        kept = min(self._count, len(self._numbers))
        return np.roll(self._numbers, -self._count)[-kept:] if kept else self._numbers[:0]


class TimedPipeline(Pipeline[State]):
    """A wrapper around a model that times its steps."""

    def __init__(self, inner: Pipeline[State], seconds: float) -> None:
        self._inner = inner
        self.frames_per_window, self.hop = inner.frames_per_window, inner.hop
        self.lookahead_frames, self.partial_sizes = inner.lookahead_frames, inner.partial_sizes
        most = int((seconds + SPARE_S) * FPS / inner.frames_per_window)
        self.started_s, self.took_s = Series(most), Series(most)

    @property
    def device(self) -> object:
        """The device of the model."""
        return self._inner.device

    def init_state(self, portrait: Portrait, options: StateOptions = DEFAULT_OPTIONS) -> State:
        """Return a new state."""
        return self._inner.init_state(portrait, options)

    def interrupt(self, state: State, *, unseen: int = 0) -> None:
        """Drop the speech."""
        self._inner.interrupt(state, unseen=unseen)

    def change_portrait(self, state: State, portrait: Portrait) -> None:
        """Change the portrait."""
        self._inner.change_portrait(state, portrait)

    def batch_key(self, state: State) -> Hashable:
        """Return the batch key of the model."""
        return self._inner.batch_key(state)

    def step(
        self, pcm: np.ndarray, states: Sequence[State], deliver: Deliver | None = None
    ) -> np.ndarray:
        """Run a step and record how long it took."""
        started_s = time.monotonic()
        frames = self._inner.step(pcm, states, deliver)
        self.started_s.append(started_s)
        self.took_s.append(time.monotonic() - started_s)
        return frames


class Loudspeaker:
    """A simulation of `letstalk_rt.sinks.speaker`: its buffer, and a device that reads from it.

    The device's own buffer is left out: 10 to 30 ms that no program can clear.
    """

    def __init__(self, skews_ms: Series) -> None:
        self.heard_s = 0.0  # when audio was last heard
        self._buffer = AudioBuffer(SAMPLE_RATE, BUFFER_S)
        self._skews_ms = skews_ms
        self._coming: list[tuple[float, int]] = []  # display time, and samples queued before

    def push(self, pcm: np.ndarray, now_s: float) -> None:
        """Add the audio of a frame that is shown now."""
        self._coming.append((now_s, self._buffer.level))
        self._buffer.push(pcm)
        if self._buffer.running:
            for shown_s, before in self._coming:
                heard_s = now_s + before / SAMPLE_RATE
                self._skews_ms.append(abs(heard_s - shown_s - (BUFFER_S - FRAME_S)) * 1000)
            self._coming.clear()

    def flush(self) -> None:
        """Drop the audio."""
        self._buffer.clear()
        self._coming.clear()

    async def run(self) -> None:
        """Read audio in real time until cancelled."""
        started_s, taken = time.monotonic(), 0
        while True:
            await asyncio.sleep(CHUNK_MS / 1000)
            now_s = time.monotonic()
            count = int((now_s - started_s) * SAMPLE_RATE) - taken
            taken += count
            loud = np.flatnonzero(self._buffer.pull(count))
            if loud.size:
                self.heard_s = now_s + int(loud[-1]) / SAMPLE_RATE


class Recorder:
    """A sink that records when frames and audio are released."""

    latency_s = 0.0

    def __init__(self, seconds: float) -> None:
        frames = int((seconds + SPARE_S) * FPS)
        self.parts_ms = {name: Series(frames) for name in ("queue", "compute", "playout")}
        self.parts_ms["av_skew"] = Series(frames)
        for name in ("mic_to_lips", "algorithmic"):
            self.parts_ms[name] = Series(CHUNKS_PER_FRAME * frames)
        # When each step was requested, and when its last frame arrived.
        self.asked_s, self.had_s = Series(frames), Series(frames)
        self._step = (0.0, 0.0)  # the latest
        self.last_frame_ms: list[float] = []
        self.silence_ms: list[float] = []
        self.first_s = time.monotonic()
        self.speaker = Loudspeaker(self.parts_ms["av_skew"])
        self._interrupted_s: float | None = None
        self._stale_s = 0.0

    def open(self, width: int, height: int) -> None:
        """Do nothing."""

    def show(self, frame: AVFrame) -> None:
        """Record a frame that is due."""
        now_s = time.monotonic()
        self.speaker.push(frame.pcm, now_s)
        assert frame.stamps is not None
        if self._interrupted_s is not None and frame.stamps.model_start_s < self._interrupted_s:
            self._stale_s = now_s
        if now_s - self.first_s > WARM_UP_S:
            self._note_path(frame, now_s)

    def repeat(self, frame: AVFrame) -> None:
        """Record a repeated frame."""
        assert frame.stamps is not None
        if self._interrupted_s is not None and frame.stamps.model_start_s < self._interrupted_s:
            self._stale_s = time.monotonic()

    def flush(self) -> None:
        """Drop the audio that was not played yet."""
        self.speaker.flush()

    def close(self) -> None:
        """Do nothing."""

    def interrupted(self) -> None:
        """Record an interrupt that was just made."""
        self._interrupted_s = self._stale_s = time.monotonic()

    def resumed(self) -> None:
        """Record that speech continues after an interrupt."""
        if self._interrupted_s is not None:
            since_s = self._interrupted_s
            self.last_frame_ms.append((self._stale_s - since_s) * 1000)
            self.silence_ms.append(max(0.0, self.speaker.heard_s - since_s) * 1000)
            self._interrupted_s = None

    def _note_path(self, frame: AVFrame, now_s: float) -> None:
        stamps = frame.stamps
        if stamps is None or stamps.audio_in_s is None:
            return
        parts = self.parts_ms
        asked_s, had_s = self._step
        if stamps.model_start_s != asked_s and asked_s:
            self.asked_s.append(asked_s)
            self.had_s.append(had_s)
        self._step = stamps.model_start_s, stamps.model_end_s
        parts["queue"].append((stamps.model_start_s - stamps.hop_complete_s) * 1000)
        parts["compute"].append((stamps.model_end_s - stamps.model_start_s) * 1000)
        parts["playout"].append((now_s - stamps.model_end_s) * 1000)
        for chunk in range(CHUNKS_PER_FRAME):  # the time stamp is that of the last chunk
            arrived_s = stamps.audio_in_s - chunk * CHUNK_MS / 1000
            parts["algorithmic"].append((stamps.hop_complete_s - arrived_s) * 1000)
            parts["mic_to_lips"].append((now_s - arrived_s) * 1000)
