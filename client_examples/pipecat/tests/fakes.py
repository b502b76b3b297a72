"""A quick model, an avatar of it, speech, and the frames of a TTS service."""

import asyncio
import time
from dataclasses import dataclass, field

import numpy as np
from pipecat.frames.frames import (
    OutputTransportReadyFrame,
    StartFrame,
    TTSAudioRawFrame,
    TTSStartedFrame,
    TTSStoppedFrame,
)
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor

from letstalk_rt import Avatar
from letstalk_rt.inference.protocol import DEFAULT_OPTIONS, Pipeline
from letstalk_rt.types import SAMPLES_PER_FRAME, Portrait

RATE = 24_000
SIDE = 96
LEVELS, LEVEL_STEP = 6, 40
LOUD = 0.2


@dataclass
class PaintedState:
    number: int = 0
    past: np.ndarray = field(default_factory=lambda: np.zeros(2 * SAMPLES_PER_FRAME, np.float32))


class PaintedModel(Pipeline[PaintedState]):
    """A model with the timing of the real one and painted frames.

    The left half of a frame has the grey of its number, so that any two successive frames differ;
    the right half is white while the audio is loud.

    Args:
        fail_at: number of the step that fails.
        step_s: how long a step takes at least.
    """

    is_directable = True
    hop, frames_per_window, lookahead_frames = 4 * SAMPLES_PER_FRAME, 4, 2
    partial_sizes, device = (4,), "cpu"

    def __init__(self, fail_at=None, step_s=0.0):
        self.fail_at, self.step_s = fail_at, step_s
        self.steps, self.directed = 0, []

    def direct(self, state, window):
        self.directed.append((state.number, window))

    def init_state(self, portrait, options=DEFAULT_OPTIONS):
        return PaintedState()

    def step(self, pcm, states, deliver=None):
        if self.steps == self.fail_at:
            raise RuntimeError("the accelerator is gone")
        self.steps += 1
        time.sleep(self.step_s)
        windows = np.stack([self._paint(*one) for one in zip(pcm, states, strict=True)])
        if deliver is not None:
            deliver(windows)
        return windows

    def interrupt(self, state, *, unseen=0):
        state.past[:] = 0

    def change_portrait(self, state, portrait):
        pass

    def batch_key(self, state):
        return ()

    def _paint(self, pcm, state):
        audio = np.concatenate([state.past, pcm])
        state.past = audio[-2 * SAMPLES_PER_FRAME :]
        window = np.empty((4, SIDE, SIDE, 3), np.uint8)
        for frame, piece in zip(window, audio[: pcm.size].reshape(4, -1), strict=True):
            frame[:, : SIDE // 2] = grey_of(state.number)
            frame[:, SIDE // 2 :] = 255 if np.abs(piece).max() > LOUD else 0
            state.number += 1
        return window


def grey_of(number):
    return 20 + LEVEL_STEP * (number % LEVELS)


class WatchedAvatar(Avatar):
    """An avatar that keeps its sessions, and their events, for the test to look at."""

    @classmethod
    def of(cls, model):
        image = np.zeros((SIDE, SIDE, 3), np.uint8)
        avatar = cls.from_pipeline(model, Portrait(image, image, (0.0, 0.0, float(SIDE))))
        avatar.sessions, avatar.events = [], []
        return avatar

    def session(self, **options):
        session = super().session(**options)
        session.on_event(self.events.append)
        self.sessions.append(session)
        return session


class ReadyOutput(FrameProcessor):
    """Stands where the output transport does, and is ready `after_s` seconds after the start."""

    def __init__(self, after_s=0.0):
        super().__init__()
        self._after_s = after_s
        self._waiting = None

    async def process_frame(self, frame, direction):
        await super().process_frame(frame, direction)
        await self.push_frame(frame, direction)
        if isinstance(frame, StartFrame):
            self._waiting = self.create_task(self._announce())

    async def _announce(self):
        await asyncio.sleep(self._after_s)
        await self.push_frame(OutputTransportReadyFrame(), FrameDirection.UPSTREAM)


def tone(seconds, rate=RATE, hz=440, level=0.5):
    """Return loud int16 audio without a pause."""
    time_s = np.arange(round(seconds * rate)) / rate
    return (np.sin(2 * np.pi * hz * time_s) * level * 32767).astype(np.int16)


def audio_frame(pcm, rate=RATE, channels=1):
    return TTSAudioRawFrame(pcm.tobytes(), rate, channels)


def utterance(pcm, rate=RATE, chunk_s=0.04):
    """Return the frames by which a TTS service says `pcm`."""
    step = round(rate * chunk_s)
    chunks = [audio_frame(pcm[start : start + step], rate) for start in range(0, len(pcm), step)]
    return [TTSStartedFrame(), *chunks, TTSStoppedFrame()]


def samples_of(frames):
    """Return the audio of all frames, joined."""
    audio = [np.frombuffer(f.audio, np.int16) for f in frames if isinstance(f, TTSAudioRawFrame)]
    return np.concatenate([np.zeros(0, np.int16), *audio])
