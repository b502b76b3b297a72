"""Speech on its way to the model: checked, resampled, held in step with time, cut into hops.

Everything here is bounded: when enough hops wait, the caller waits. Knows no model and no pictures.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from letstalk_rt.audio.clock_drift import ClockDriftCorrector
from letstalk_rt.audio.resample import Resampler, check_pcm, check_rate
from letstalk_rt.audio.segmenter import Hop, SegmentBoundary, Segmenter
from letstalk_rt.errors import SessionClosed
from letstalk_rt.metrics import Metrics
from letstalk_rt.session.events import EventHub
from letstalk_rt.types import SAMPLE_RATE

_SLICE_S = 0.1  # sound resampled in one go; keeps the event loop free
_CHECKED_AT_ONCE = 500_000  # samples looked through in one go, likewise
_LOUDEST = 1.01  # a filter's overshoot is no mistake of the caller

# Speech that waits, as after a stall, is caught up on in its pauses: nobody hears them shortened.
_WAITS = 12  # hops
_TOO_LONG_S, _ENOUGH_S = 0.01, 0.005
_QUIET_RMS = 0.005
_GRACE_S = 0.1  # speech is waited for no longer than this
_MARGIN_S = 0.02
_PUSHES = 16, 256  # as many must be known, and are remembered
_LATE_S = 0.5  # speech that comes so soon after it was filled up was late, not over


@dataclass(frozen=True, slots=True)
class StepInput:
    """A hop or an end mark that waits for the model.

    Attributes:
        item: what waits.
        queued_s: since when.
    """

    item: Hop | SegmentBoundary
    queued_s: float


class AudioInput:
    """Takes speech from callers, one at a time, and holds it until the model asks.

    Args:
        segmenter: cuts the speech.
        max_hops: bound of what waits here.
        live: speech may come from a live source, whose clock may be off and whose delay must not
            add up.
        now_s: monotonic seconds.
        wake: called when something new is to be had.
        metrics: counts corrections.
        hub: is warned.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        max_hops: int,
        live: bool,
        now_s: Callable[[], float],
        wake: Callable[[], None],
        metrics: Metrics,
        hub: EventHub,
    ) -> None:
        self.epoch = 0
        self._expected_s = -math.inf  # when a live source gives more, if it goes on
        self._delays_s: deque[float] = deque(maxlen=_PUSHES[1])  # how much later it gave it
        self._segmenter = segmenter
        self._max_hops, self._live = max_hops, live
        self._now_s, self._wake = now_s, wake
        self._metrics, self._hub = metrics, hub
        self._resampler = Resampler(SAMPLE_RATE)
        self._drift = ClockDriftCorrector()
        self._pushing = asyncio.Lock()
        self._space = asyncio.Event()  # for speech in _work
        self._work: deque[StepInput] = deque()
        self._waits_s: deque[float] = deque(maxlen=_WAITS)
        self._arrivals: deque[tuple[int, float]] = deque()  # samples taken until then, and when
        self._arriving = 0.0  # samples in calls that wait, at 16 kHz
        self._taken = self._handed_out = 0  # samples, since the last interrupt
        self._filled_s = -math.inf  # when speech was filled up last
        self._closed: Callable[[], SessionClosed] | None = None

    # For callers of the session

    async def push(self, pcm: np.ndarray, sample_rate: int) -> None:
        """Take speech; see `AvatarSession.push_audio`."""
        check_rate(sample_rate)
        await _check_pcm_in_slices(pcm)
        self._check_open()
        epoch, scale, now_s = self.epoch, SAMPLE_RATE / sample_rate, self._now_s()
        self._note_expected(now_s, len(pcm) / sample_rate)
        if self._live and len(pcm):
            self._note_arrival(len(pcm) * scale, now_s)
        self._arriving += len(pcm) * scale
        try:
            async with self._pushing:
                while len(pcm) and epoch == self.epoch:
                    piece = pcm[: int(sample_rate * _SLICE_S)]
                    samples = await self._resample(piece, sample_rate, epoch)
                    await self._feed(self._correct_drift(samples), epoch, now_s)
                    if epoch == self.epoch:
                        self._arriving -= len(piece) * scale
                        pcm = pcm[len(piece) :]
        finally:  # an interrupt has cleared the account
            if epoch == self.epoch:
                self._drift.observe_wait(self._now_s())
                self._arriving -= len(pcm) * scale

    async def end_segment(self) -> None:
        """End the utterance; see `AvatarSession.end_segment`."""
        self._check_open()
        epoch = self.epoch
        async with self._pushing:
            await self._feed(self._resampler.flush(), epoch, self._now_s())
            if await self._wait_for_space(epoch):
                self._queue(self._segmenter.end_segment())

    def interrupt(self) -> None:
        """Drop everything, what callers wait with included."""
        self.epoch += 1
        self._segmenter.interrupt()
        self._resampler.reset()
        self._drift.reset()
        self._waits_s.clear()
        self._arrivals.clear()
        self._arriving, self._taken, self._handed_out = 0.0, 0, 0
        self._expected_s = -math.inf
        self.drop_waiting()

    def close(self, closed: Callable[[], SessionClosed]) -> None:
        """Refuse all that comes with an error that `closed` makes, and wake those that wait."""
        self._closed = closed
        self._space.set()

    # For the model's side

    @property
    def speech_end_s(self) -> float:
        """When speech that has not gone on is taken to be over.

        A live source that gave sound of some length gives more after that time, or as much later as
        it did before.
        """
        known = len(self._delays_s) >= _PUSHES[0]
        delay_s = max(self._delays_s) + _MARGIN_S if known else _GRACE_S
        return self._expected_s + min(delay_s, _GRACE_S)

    @property
    def backlog(self) -> float:
        """Samples that were given and not handed out yet."""
        return self._taken - self._handed_out + self._arriving

    @property
    def in_speech(self) -> bool:
        """The last hop ended with speech of a segment that is not over."""
        return self._segmenter.in_speech

    @property
    def segment_id(self) -> int:
        """The segment that the next speech belongs to."""
        return self._segmenter.segment_id

    @property
    def waiting(self) -> int:
        """Hops and end marks that wait."""
        return len(self._work)

    def take(self) -> StepInput:
        """Give the oldest that waits."""
        work = self._work.popleft()
        wait_s = self._now_s() - work.queued_s
        if isinstance(work.item, Hop):
            self._metrics.stamp("queue", wait_s)
            self._waits_s.append(wait_s)
        self._space.set()
        return work

    def fill(self) -> StepInput:
        """Give a hop at once, with silence for what has not come."""
        if self._segmenter.in_speech:
            self._metrics.filled += 1
            self._filled_s = self._now_s()
        return StepInput(self._segmenter.fill(), self._now_s())

    def note_handed_out(self, spoken: int) -> float | None:
        """Note that a frame with so many samples of speech is handed out.

        Returns:
            When the last of them had arrived; None for a frame of silence.
        """
        if not spoken:
            return None
        self._handed_out += spoken
        while len(self._arrivals) > 1 and self._arrivals[0][0] < self._handed_out:
            self._arrivals.popleft()
        return self._arrivals[0][1] if self._arrivals else None

    def drop_waiting(self) -> None:
        """Drop the hops that wait."""
        self._work.clear()
        self._space.set()
        self._wake()

    # Within

    def _note_expected(self, now_s: float, duration_s: float) -> None:
        if self.in_speech:
            self._delays_s.append(max(0.0, now_s - self._expected_s))
        self._expected_s = max(self._expected_s, now_s + duration_s)

    def _note_arrival(self, samples: float, now_s: float) -> None:
        self._drift.observe(samples, now_s)
        if now_s - self._filled_s < _LATE_S:
            self._hub.warn(
                "speech-late",
                "Speech came too late, and there is a gap in it; look for the delay at its source.",
                now_s,
            )

    async def _resample(self, piece: np.ndarray, sample_rate: int, epoch: int) -> np.ndarray:
        if sample_rate != self._resampler.sample_rate:
            await self._feed(self._resampler.flush(), epoch, self._now_s())
            if epoch != self.epoch:
                return np.zeros(0, np.float32)  # the next speech must not hear this piece
            self._resampler = Resampler(sample_rate)
        if piece.dtype == np.float32 and max(piece.max(), -piece.min()) > _LOUDEST:
            self._hub.warn(
                "clipped",
                "The sound goes beyond [-1, 1] and is clipped; scale it before pushing it.",
                self._now_s(),
            )
        return self._resampler.push(piece)

    def _correct_drift(self, samples: np.ndarray) -> np.ndarray:
        """Correct the drift of a live source, and leave out pauses when speech is late for good."""
        if not (self._live and self._drift.live and samples.size):
            return samples
        corrected = self._drift.correct(self._catch_up(samples))
        self._metrics.corrected = self._drift.corrected
        return corrected

    def _catch_up(self, samples: np.ndarray) -> np.ndarray:
        """Leave out of a pause what all hops of the last two seconds waited for nothing."""
        waited_s = min(self._waits_s) if len(self._waits_s) == _WAITS else 0.0
        if waited_s <= _TOO_LONG_S or np.square(samples).mean() >= _QUIET_RMS**2:
            return samples
        count = min(samples.size, round((waited_s - _ENOUGH_S) * SAMPLE_RATE))
        self._metrics.skipped += count
        less_s = count / SAMPLE_RATE
        self._waits_s = deque((wait_s - less_s for wait_s in self._waits_s), _WAITS)
        return samples[count:]

    async def _feed(self, samples: np.ndarray, epoch: int, arrived_s: float) -> None:
        """Queue a slice of 16 kHz speech, once there is room for a hop."""
        if samples.size and await self._wait_for_space(epoch):
            self._taken += samples.size
            self._arrivals.append((self._taken, arrived_s))
            self._queue(self._segmenter.push(samples))

    async def _wait_for_space(self, epoch: int) -> bool:
        """Wait until a hop may be queued; False when an interrupt came first."""
        while epoch == self.epoch and len(self._work) >= self._max_hops and not self._closed:
            self._space.clear()
            await self._space.wait()
        self._check_open()
        return epoch == self.epoch

    def _queue(self, items: Iterable[Hop | SegmentBoundary]) -> None:
        now_s, waiting = self._now_s(), len(self._work)
        self._work.extend(StepInput(item, now_s) for item in items)
        if len(self._work) > waiting:
            self._wake()

    def _check_open(self) -> None:
        if self._closed is not None:
            raise self._closed()


async def _check_pcm_in_slices(pcm: np.ndarray) -> None:
    """Check sound as `check_pcm` does, and let the event loop go on while a long one is read."""
    if not isinstance(pcm, np.ndarray) or pcm.ndim == 0:
        check_pcm(pcm)
    check_pcm(pcm[:_CHECKED_AT_ONCE])
    for start in range(_CHECKED_AT_ONCE, len(pcm), _CHECKED_AT_ONCE):
        await asyncio.sleep(0)
        check_pcm(pcm[start : start + _CHECKED_AT_ONCE])
