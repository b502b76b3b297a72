"""The bounded input of a session: speech is checked, resampled, drift-corrected and cut into hops.

When `max_hops` hops wait, the caller waits.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from letstalk_rt.audio.clock_drift import ClockDriftCorrector
from letstalk_rt.audio.resample import check_pcm, check_rate
from letstalk_rt.audio.segmenter import Hop, SegmentBoundary, Segmenter
from letstalk_rt.audio.speech_resampler import Speech, SpeechResampler, block_sizes
from letstalk_rt.errors import SessionClosed
from letstalk_rt.metrics import Metrics
from letstalk_rt.session.events import EventHub
from letstalk_rt.types import SAMPLE_RATE

_SLICE_S = 0.1  # resampled at once; short, so that the event loop is not blocked
_CHECKED_AT_ONCE = 500_000  # samples, likewise
_LOUDEST = 1.01  # above 1, because filters of the caller may overshoot

# A backlog, as after a stall, is reduced by shortening pauses, which is not audible.
_WAITS = 12  # hops
_TOO_LONG_S, _ENOUGH_S = 0.01, 0.005
_QUIET_RMS = 0.005
_GRACE_S = 0.1  # the longest wait for more speech
_MARGIN_S = 0.02
_MIN_PUSHES, _MAX_PUSHES = 16, 256  # whose delays are needed, and are kept
_SILENT_S = 0.5  # a live source that pushes nothing for so long is none any more
_LATE_S = 0.5  # speech pushed within this time after a filled hop was late, not a new utterance


@dataclass(frozen=True, slots=True)
class StepInput:
    """A hop or a segment boundary that waits for the model.

    Attributes:
        item: the hop or boundary.
        queued_s: when it was queued.
    """

    item: Hop | SegmentBoundary
    queued_s: float


class AudioInput:
    """A bounded queue of hops, filled with speech by callers one at a time.

    Args:
        segmenter: cuts the speech into hops.
        max_hops: how many hops may wait here.
        live: whether speech may come from a live source, so that its clock drift is corrected and
            its delay must not accumulate.
        now_s: returns monotonic seconds.
        wake: called when a new item can be taken.
        metrics: counts corrections.
        hub: receives warnings.
        output_rate: sample rate of the frames' audio in Hz, as the segmenter's.
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
        output_rate: int = SAMPLE_RATE,
    ) -> None:
        self.epoch = 0
        self._expected_s = -math.inf  # when a live source pushes again, if speech continues
        self._delays_s: deque[float] = deque(maxlen=_MAX_PUSHES)  # beyond the expected time
        self._segmenter = segmenter
        self._max_hops, self._live = max_hops, live
        self._now_s, self._wake = now_s, wake
        self._metrics, self._hub = metrics, hub
        self._output_rate, self._blocks = output_rate, block_sizes(output_rate)
        self._resampler = SpeechResampler(SAMPLE_RATE, output_rate)
        self._drift = ClockDriftCorrector(self._blocks[0])
        self._pushing = asyncio.Lock()
        self._space = asyncio.Event()  # a hop may be queued in _work
        self._work: deque[StepInput] = deque()
        self._waits_s: deque[float] = deque(maxlen=_WAITS)
        self._arrivals: deque[tuple[int, float]] = deque()  # samples taken so far, and when
        self._arriving = 0.0  # samples at 16 kHz in calls of `push` that wait
        self._taken = self._handed_out = 0  # samples, since the last interrupt
        self._filled_s = -math.inf  # when a hop within speech was last completed with silence
        self._closed: Callable[[], SessionClosed] | None = None

    # For callers of the session

    async def push(self, pcm: np.ndarray, sample_rate: int) -> None:
        """Queue speech; see `AvatarSession.push_audio`."""
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
                    part = pcm[: int(sample_rate * _SLICE_S)]
                    speech = await self._resample(part, sample_rate, epoch)
                    await self._feed(self._correct_drift(speech), epoch, now_s)
                    if epoch == self.epoch:
                        self._arriving -= len(part) * scale
                        pcm = pcm[len(part) :]
        finally:  # an interrupt has reset the counters
            if epoch == self.epoch:
                self._drift.observe_wait(self._now_s())
                self._arriving -= len(pcm) * scale

    async def end_segment(self) -> None:
        """End the segment; see `AvatarSession.end_segment`."""
        self._check_open()
        epoch = self.epoch
        async with self._pushing:
            await self._feed(self._resampler.flush(), epoch, self._now_s())
            if await self._wait_for_space(epoch):
                self._queue(self._segmenter.end_segment())

    def interrupt(self) -> None:
        """Drop all speech, including that of calls that wait."""
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
        """Make this and all further calls raise the error that `closed` returns."""
        self._closed = closed
        self._space.set()

    # For the step scheduler

    @property
    def speech_end_s(self) -> float:
        """The time after which speech that has not continued counts as over.

        A live source pushes again after the duration of its last chunk, plus at most the delay that
        it has shown before.
        """
        known = len(self._delays_s) >= _MIN_PUSHES
        delay_s = max(self._delays_s) + _MARGIN_S if known else _GRACE_S
        return self._expected_s + min(delay_s, _GRACE_S)

    @property
    def is_real_time(self) -> bool:
        """Whether speech comes from a live source now, so that a hop ends when it is queued."""
        has_ended = self._now_s() > self._expected_s + _SILENT_S
        return self._live and self._drift.live and not has_ended

    @property
    def backlog(self) -> float:
        """Samples that were pushed and not handed out in frames yet."""
        return self._taken - self._handed_out + self._arriving

    @property
    def in_speech(self) -> bool:
        """Whether the last hop ended with speech of a segment that has not ended."""
        return self._segmenter.in_speech

    @property
    def segment_id(self) -> int:
        """The segment that speech pushed next belongs to."""
        return self._segmenter.segment_id

    @property
    def waiting(self) -> int:
        """The number of hops and segment boundaries that wait."""
        return len(self._work)

    def take(self) -> StepInput:
        """Remove and return the oldest item."""
        work = self._work.popleft()
        wait_s = self._now_s() - work.queued_s
        if isinstance(work.item, Hop):
            self._metrics.stamp("queue", wait_s)
            self._waits_s.append(wait_s)
        self._space.set()
        return work

    def fill(self) -> StepInput:
        """Return a hop at once, completed with silence."""
        if self._segmenter.in_speech:
            self._metrics.filled += 1
            self._filled_s = self._now_s()
        return StepInput(self._segmenter.fill(), self._now_s())

    def note_handed_out(self, spoken: int) -> float | None:
        """Record that a frame with `spoken` samples of speech is handed out.

        Returns:
            When the last of these samples was pushed; None for a frame without speech.
        """
        if not spoken:
            return None
        self._handed_out += spoken
        while len(self._arrivals) > 1 and self._arrivals[0][0] < self._handed_out:
            self._arrivals.popleft()
        return self._arrivals[0][1] if self._arrivals else None

    def drop_waiting(self) -> None:
        """Drop all items that wait."""
        self._work.clear()
        self._space.set()
        self._wake()

    # Internal

    def _note_expected(self, now_s: float, duration_s: float) -> None:
        if self.in_speech:
            self._delays_s.append(max(0.0, now_s - self._expected_s))
        self._expected_s = max(self._expected_s, now_s + duration_s)

    def _note_arrival(self, samples: float, now_s: float) -> None:
        self._drift.observe(samples, now_s)
        if now_s - self._filled_s < _LATE_S:
            self._hub.warn(
                "speech-late",
                "Speech arrived too late and has a gap of silence; check its source for delays.",
                now_s,
            )

    async def _resample(self, part: np.ndarray, sample_rate: int, epoch: int) -> Speech:
        if sample_rate != self._resampler.sample_rate:
            await self._feed(self._resampler.flush(), epoch, self._now_s())
            if epoch != self.epoch:
                part = part[:0]  # dropped: it must not enter the new resampler state
            self._resampler = SpeechResampler(sample_rate, self._output_rate)
        if part.size and part.dtype == np.float32 and max(part.max(), -part.min()) > _LOUDEST:
            self._hub.warn(
                "clipped",
                "The audio exceeds [-1, 1] and is clipped; scale it before pushing it.",
                self._now_s(),
            )
        return self._resampler.push(part)

    def _correct_drift(self, speech: Speech) -> Speech:
        """Correct the clock drift of a live source, and shorten pauses while there is a backlog."""
        if not (self._live and self._drift.live and speech.pcm.size):
            return speech
        skipped = self._catch_up(speech.pcm)
        if skipped:
            count = speech.pcm.size // self._blocks[0]
            speech = speech.take(np.arange(skipped, count), self._blocks)
        kept = self._drift.kept_blocks(speech.pcm)
        if kept is not None:
            speech = speech.take(kept, self._blocks)
            self._metrics.corrected = self._drift.corrected
        return speech

    def _catch_up(self, samples: np.ndarray) -> int:
        """Return by how many blocks to shorten a pause.

        That is the time that every hop of the last two seconds waited.
        """
        waited_s = min(self._waits_s) if len(self._waits_s) == _WAITS else 0.0
        if waited_s <= _TOO_LONG_S or np.square(samples).mean() >= _QUIET_RMS**2:
            return 0
        block = self._blocks[0]
        count = min(samples.size, round((waited_s - _ENOUGH_S) * SAMPLE_RATE)) // block
        self._metrics.skipped += count * block
        less_s = count * block / SAMPLE_RATE
        self._waits_s = deque((wait_s - less_s for wait_s in self._waits_s), _WAITS)
        return count

    async def _feed(self, speech: Speech, epoch: int, arrived_s: float) -> None:
        """Queue a slice of speech, once there is space for a hop."""
        if speech.pcm.size and await self._wait_for_space(epoch):
            self._taken += speech.pcm.size
            self._arrivals.append((self._taken, arrived_s))
            self._queue(self._segmenter.push(speech))

    async def _wait_for_space(self, epoch: int) -> bool:
        """Wait until a hop may be queued; return False if an interrupt came first."""
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
    """Check audio as `check_pcm` does, yielding to the event loop between slices."""
    if not isinstance(pcm, np.ndarray) or pcm.ndim == 0:
        check_pcm(pcm)
    check_pcm(pcm[:_CHECKED_AT_ONCE])
    for start in range(_CHECKED_AT_ONCE, len(pcm), _CHECKED_AT_ONCE):
        await asyncio.sleep(0)
        check_pcm(pcm[start : start + _CHECKED_AT_ONCE])
