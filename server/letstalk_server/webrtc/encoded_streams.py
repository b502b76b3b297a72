"""The encoded streams of one session: encoded once, sent by any number of senders.

A stream runs while it has subscribers. It reads each slot from the playout when the slot is due,
encodes it and passes it to every subscriber; it waits neither for the model nor for a slow
subscriber.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor

import cv2
import numpy as np

from letstalk_rt.types import FPS
from letstalk_server.session.playout import SLOT_S, SlotPlayout
from letstalk_server.settings import Bitrates
from letstalk_server.webrtc.encoders import (
    AUDIO_CLOCK_HZ,
    OPUS_DELAY_TICKS,
    PACKETS_PER_S,
    VIDEO_CLOCK_HZ,
    EncodedUnit,
    RtpOpusEncoder,
    open_encoder,
)

log = logging.getLogger(__name__)

PACKETS_PER_SLOT = PACKETS_PER_S // FPS
PACKET_S = 1 / PACKETS_PER_S
MAX_LATE_S = 0.2
"""Audio that is later than this is skipped; audio that is less late is sent at once."""

KEY_FRAME_INTERVAL_S = 0.3
"""Minimum time between requested key frames."""

FALL_INTERVAL_S, RISE_INTERVAL_S = 1.0, 5.0
"""Minimum time before the bitrate is lowered or raised: each change costs a key frame."""

FALL_STEP, RISE_STEP = 1 / 1.2, 1.5
"""Smallest factors by which the bitrate is changed."""

FEC_ON_LOSS, FEC_OFF_LOSS = 0.005, 0.001
"""Share of lost packets above which Opus FEC is switched on, and below which it is off again."""

SCENE_CHANGE = 20
"""Mean difference of two frames, of 255, above which the second one is another scene."""

RtpTimestamp = int


class Subscription:
    """The subscription of one sender to a stream.

    Args:
        stream: the stream that is subscribed to.
        deliver: called with each unit; returns False if the sender is behind and dropped it.
        on_end: called once, when the stream has ended by itself.
    """

    def __init__(
        self,
        stream: "EncodedStream",
        deliver: Callable[[EncodedUnit], bool],
        on_end: Callable[[], None],
    ) -> None:
        self._stream = stream
        self._deliver = deliver
        self._needs_key_frame = True
        self.on_end = on_end
        self.bitrate: int | None = None
        """Bandwidth estimate of this receiver, bit/s; `None` before the first one."""
        self.lost_ratio = 0.0
        """Share of packets that this receiver lost recently."""

    def wait_for_key_frame(self) -> None:
        """Deliver nothing before the next key frame, and request one."""
        self._needs_key_frame = True
        self._stream.request_key_frame()

    def push(self, unit: EncodedUnit) -> None:
        """Deliver a unit. After one that was dropped, wait for the next key frame."""
        if self._needs_key_frame and not unit.key_frame:
            return
        self._needs_key_frame = not self._deliver(unit)
        if self._needs_key_frame:
            self._stream.request_key_frame()


class EncodedStream:
    """Base class of the encoded streams; subclasses implement `_serve`.

    Args:
        playout: the session's clock and slots.
        clock_hz: rate of the RTP clock.
        delay_ticks: delay of the codec, in ticks of the RTP clock.
        codec: name of the codec in SDP.
    """

    def __init__(self, playout: SlotPlayout, clock_hz: int, delay_ticks: int, codec: str) -> None:
        self.clock_hz = clock_hz
        self.codec = codec
        self._playout = playout
        self._delay_ticks = delay_ticks
        self._subscriptions: list[Subscription] = []
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def subscribe(
        self, deliver: Callable[[EncodedUnit], bool], on_end: Callable[[], None] = lambda: None
    ) -> Subscription:
        """Start to receive, beginning with the next frame or packet; see `Subscription`."""
        subscription = Subscription(self, deliver, on_end)
        if self._closed:
            on_end()
            return subscription
        self._subscriptions.append(subscription)
        self.request_key_frame()
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"stream-{self.codec}")
        return subscription

    async def unsubscribe(self, subscription: Subscription) -> None:
        """Stop receiving; without subscribers the stream stops. Safe to call twice."""
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)
        if not self._subscriptions:
            await self._stop()

    async def aclose(self) -> None:
        """End the stream for all subscribers. Safe to call twice."""
        self._closed = True
        self._end()
        await self._stop()

    def request_key_frame(self) -> None:
        """Encode one of the next frames as a key frame."""

    def current_timestamp(self) -> RtpTimestamp:
        """Return the RTP timestamp of what is presented now, without the random offset."""
        return round(self._playout.now() * self.clock_hz) + self._delay_ticks

    @property
    def held_s(self) -> float:
        """Total time for which the session's playout clock was held, s."""
        return self._playout.held_s

    async def _stop(self) -> None:
        task, self._task = self._task, None
        if task is not None and task is not asyncio.current_task():
            task.cancel()
            await asyncio.wait([task])

    async def _run(self) -> None:
        try:
            await self._serve()
        except Exception as error:
            # Log only the type: the message might contain user data.
            log.error("encoding %s failed (%s)", self.codec, type(error).__name__)
            self._closed = True
            self._end()

    async def _serve(self) -> None:
        raise NotImplementedError

    def _distribute(self, unit: EncodedUnit) -> None:
        for subscription in list(self._subscriptions):
            try:
                subscription.push(unit)
            except Exception as error:
                # A failure of one connection must not affect the others.
                log.error("sending %s failed (%s)", self.codec, type(error).__name__)
                self._subscriptions.remove(subscription)
                subscription.on_end()

    def _end(self) -> None:
        subscriptions, self._subscriptions = self._subscriptions, []
        for subscription in subscriptions:
            subscription.on_end()


class EncodedVideo(EncodedStream):
    """The encoded video of a session, 25 fps, or the fewer that the session generates.

    Args:
        playout: the session's clock and slots.
        codec: `VP8` or `H264`.
        bitrates: bounds of the bitrate.
        executor: where encoding runs.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        playout: SlotPlayout,
        codec: str,
        bitrates: Bitrates,
        executor: Executor,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(playout, VIDEO_CLOCK_HZ, 0, codec)
        self.bitrate = bitrates.start
        self._bitrates = bitrates
        self._executor = executor
        self._clock = clock
        self._encoder = open_encoder(codec, bitrates.start)
        self._encoding = threading.Lock()
        self._key_frame_requested = True
        self._key_frame_at_s = self._bitrate_set_at_s = -60.0
        self._last: np.ndarray | None = None

    async def aclose(self) -> None:
        """End the stream, and the encoder with its threads: nothing else would end them soon."""
        await super().aclose()
        await asyncio.get_running_loop().run_in_executor(self._executor, self._close_encoder)

    def request_key_frame(self) -> None:
        self._key_frame_requested = True

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        number = 0
        while True:
            # Skip slots that are already past.
            number = max(number + 1, int(self._playout.now() / SLOT_S))
            await self._playout.wait_until(number * SLOT_S)
            slot = self._playout.read_slot(number)
            rgb = slot.rgb
            is_repeated = slot.frame is not None and slot.frame.repeated
            if is_repeated and rgb is self._last and not self._key_frame_requested:
                continue  # an avatar of less than 25 images per second: nothing new to encode
            key_frame = self._begin_frame(rgb)
            encoded = await loop.run_in_executor(
                self._executor, self._encode, rgb, number, key_frame
            )
            self._distribute(encoded)

    def _encode(self, rgb: np.ndarray, number: int, key_frame: bool) -> EncodedUnit:
        # After a cancellation the thread may still be encoding when a new task has started.
        with self._encoding:
            return self._encoder.encode(rgb, number, key_frame=key_frame)

    def _close_encoder(self) -> None:
        with self._encoding:
            self._encoder.close()

    def _begin_frame(self, rgb: np.ndarray) -> bool:
        """Adapt the bitrate and return whether this frame must be a key frame."""
        now_s = self._clock()
        last, self._last = self._last, rgb
        needed = self._adapt(now_s) or is_scene_change(last, rgb)
        may_be = self._key_frame_requested and now_s - self._key_frame_at_s >= KEY_FRAME_INTERVAL_S
        if not needed and not may_be:
            return False
        self._key_frame_requested, self._key_frame_at_s = False, now_s
        return True

    def _adapt(self, now_s: float) -> bool:
        """Change the bitrate if the difference is worth a key frame; return whether it changed."""
        known = [s.bitrate for s in self._subscriptions if s.bitrate is not None]
        if not known:
            return False
        # All receivers share one encoding, so the lowest estimate decides.
        wanted = min(max(min(known), self._bitrates.minimum), self._bitrates.maximum)
        change, since_s = wanted / self.bitrate, now_s - self._bitrate_set_at_s
        falls = change <= FALL_STEP and since_s >= FALL_INTERVAL_S
        rises = change >= RISE_STEP and since_s >= RISE_INTERVAL_S
        if falls or rises:
            self.bitrate, self._bitrate_set_at_s = wanted, now_s
            self._encoder.set_bitrate(wanted)
        return falls or rises


def is_scene_change(last: np.ndarray | None, rgb: np.ndarray) -> bool:
    """Return whether a frame, `(H, W, 3)` uint8, shows another scene than the last one."""
    if last is None or last.shape != rgb.shape:
        return True
    if last is rgb:
        return False
    rows, before = rgb[::16], last[::16]
    return cv2.norm(rows, before, cv2.NORM_L1) > SCENE_CHANGE * rows.size


class EncodedAudio(EncodedStream):
    """The encoded audio of a session, Opus packets of 20 ms.

    Args:
        playout: the session's clock and slots.
    """

    def __init__(self, playout: SlotPlayout) -> None:
        super().__init__(playout, AUDIO_CLOCK_HZ, OPUS_DELAY_TICKS, "opus")
        self._packet_samples = playout.sample_rate // PACKETS_PER_S
        self._opus = RtpOpusEncoder(playout.sample_rate)
        self._uses_fec = False

    async def aclose(self) -> None:
        """End the stream and the encoder; see `EncodedVideo.aclose`."""
        await super().aclose()
        self._opus.close()

    async def _serve(self) -> None:
        number = int(self._playout.now() / PACKET_S)
        while True:
            present = int(self._playout.now() / PACKET_S)
            if (present - number) * PACKET_S > MAX_LATE_S:
                number = present
            await self._playout.wait_until(number * PACKET_S)
            self._adapt()
            # Opus takes 0.1 ms per packet, less than a thread switch.
            self._distribute(self._opus.encode(self.packet_pcm(number), number))
            number += 1

    def _adapt(self) -> None:
        """Switch Opus FEC on while a receiver loses packets."""
        lost = max((s.lost_ratio for s in self._subscriptions), default=0.0)
        wanted = lost > (FEC_OFF_LOSS if self._uses_fec else FEC_ON_LOSS)
        if wanted != self._uses_fec:
            self._uses_fec = wanted
            self._opus = RtpOpusEncoder(self._playout.sample_rate, fec=wanted)

    def packet_pcm(self, number: int) -> np.ndarray:
        """Return the audio of packet `number`, `(sample_rate // 50,)` float32."""
        slot, part = divmod(number, PACKETS_PER_SLOT)
        pcm: np.ndarray = self._playout.read_slot(slot).pcm[
            part * self._packet_samples : (part + 1) * self._packet_samples
        ]
        return pcm


class SharedMedia:
    """The encoded streams of one session; see `transport.Media`.

    Args:
        playout: the session's clock and slots.
        bitrates: bounds of the video.
        executor: where video is encoded.
    """

    def __init__(self, playout: SlotPlayout, bitrates: Bitrates, executor: Executor) -> None:
        self._playout = playout
        self._bitrates = bitrates
        self._executor = executor
        self._video_streams: dict[str, EncodedVideo] = {}
        self._audio_stream: EncodedAudio | None = None

    def video(self, codec: str) -> EncodedVideo:
        """Return the video stream of a codec; it is created on the first call."""
        if codec not in self._video_streams:
            self._video_streams[codec] = EncodedVideo(
                self._playout, codec, self._bitrates, self._executor
            )
        return self._video_streams[codec]

    def audio(self) -> EncodedAudio:
        """Return the audio stream; it is created on the first call."""
        if self._audio_stream is None:
            self._audio_stream = EncodedAudio(self._playout)
        return self._audio_stream

    def request_key_frame(self) -> None:
        """Encode the next frame of every video stream as a key frame."""
        for stream in self._video_streams.values():
            stream.request_key_frame()

    async def aclose(self) -> None:
        """Stop encoding. Safe to call twice."""
        streams: list[EncodedStream] = list(self._video_streams.values())
        for stream in streams if self._audio_stream is None else [*streams, self._audio_stream]:
            await stream.aclose()
