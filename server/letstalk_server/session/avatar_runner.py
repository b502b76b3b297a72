"""Runs the engine session: carries its frames to the playout, changes portrait and motion."""

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import numpy as np

from letstalk_rt.errors import ConfigError, EngineError, ModelLost
from letstalk_rt.inference.protocol import CameraStatus
from letstalk_rt.portrait.watermark import with_badge
from letstalk_rt.session.avatar import AvatarSession
from letstalk_rt.types import AVFrame, CameraOptions, Interrupted, MotionOptions
from letstalk_server.session.avatar_service import AvatarEntry, AvatarService
from letstalk_server.session.connection import EndReason, ServedSessionOptions
from letstalk_server.session.ending import SessionEnded
from letstalk_server.session.playout import SLOT_S, PlayoutSlot, SlotPlayout

T = TypeVar("T")

FILMED_S = 0.5
"""A camera counts as live for so long after its last frame."""

_FILL_DELAY_S, _CHECK_SLOTS = 0.005, 4
"""Wait before a slot is filled that no connection has read, and slots between two checks."""


class AvatarRunner:
    """Runs the avatar of one session.

    Args:
        avatar_service: creates the avatars.
        entry: the first avatar.
        options: returns the options of the session.
        has_badge: draw the visible badge into the frames.
        is_live: returns whether the present speech comes from a live source. A camera that moves
            the avatar counts as one, too.
        on_open: called with the engine session when it is open.
        on_slot: called with each slot when it is shown.
        on_stall: called when no frame has come for a second.

    Attributes:
        avatar_entry: the entry of the avatar that is shown.
        motion: how its face moves.
        playout: the playout of its frames.
    """

    def __init__(
        self,
        avatar_service: AvatarService,
        entry: AvatarEntry,
        options: Callable[[], ServedSessionOptions],
        *,
        has_badge: bool,
        is_live: Callable[[], bool],
        on_open: Callable[[AvatarSession], None],
        on_slot: Callable[[PlayoutSlot], None],
        on_stall: Callable[[], None],
    ) -> None:
        self.avatar_entry = entry
        self._avatar_service, self._options, self._has_badge = avatar_service, options, has_badge
        self._on_open = on_open
        self._avatar: AvatarSession | None = None
        self._camera, self._filmed_s = CameraOptions(), -math.inf
        self._opened = asyncio.Event()
        self._selections: asyncio.Queue[AvatarEntry] = asyncio.Queue(1)
        self._motions: asyncio.Queue[MotionOptions] = asyncio.Queue(1)
        self.motion = options().motion
        still = self._with_badge(entry.portrait.canvas)
        self.playout = SlotPlayout(
            still,
            is_live=lambda: is_live() or self.is_driven,
            on_slot=on_slot,
            on_stall=on_stall,
            sample_rate=options().sample_rate,
        )

    @property
    def is_filmed(self) -> bool:
        """Whether frames of a camera arrive now."""
        return time.monotonic() - self._filmed_s < FILMED_S

    @property
    def is_driven(self) -> bool:
        """Whether a camera moves the avatar now: then its frames should be shown at once."""
        return self.is_filmed and self._camera.role == "drive"

    async def run(self) -> None:
        """Carry frames from the engine to the playout.

        Raises:
            SessionEnded: The engine session has ended by itself.
        """
        options = self._options()
        session = self._avatar_service.avatar(self.avatar_entry).session(
            seed=options.seed,
            motion=self.motion,
            playback="reported",
            output_sample_rate=options.sample_rate,
            recovery_s=self._avatar_service.recovery_s,
            camera=self._camera,
            degradation_preference=self._avatar_service.degradation_preference,
            mood=options.mood,
            mood_strength=options.mood_strength,
            listening=options.listening,
        )
        async with session as self._avatar:
            self._on_open(session)
            self._opened.set()
            try:
                await self._carry_frames(session)
            except EngineError as error:
                if isinstance(error.__cause__, ModelLost):
                    raise SessionEnded(EndReason.MODEL_LOST) from error
                raise
        raise SessionEnded(EndReason.FAILED)

    async def _carry_frames(self, session: AvatarSession) -> None:
        made, shown = None, self.avatar_entry.portrait.canvas
        async for item in session:
            if isinstance(item, AVFrame):
                if item.rgb is not made:  # else the image is repeated, and so is the array
                    made, shown = item.rgb, self._with_badge(item.rgb)
                await self.playout.put(replace(item, rgb=shown))

    async def opened(self) -> AvatarSession:
        """Wait until the engine session is open, and return it."""
        await self._opened.wait()
        assert self._avatar is not None
        return self._avatar

    async def fill_due_slots(self) -> None:
        """Fill each due slot that no connection has read, so that playout goes on without any."""
        number = 0
        while True:
            await self.playout.wait_until(number * SLOT_S + _FILL_DELAY_S)
            step = _CHECK_SLOTS if self.playout.is_filled(number) else 1
            self.playout.read_slot(number)
            number = max(number + step, int(self.playout.now() / SLOT_S))

    async def change_portraits(self, on_change: Callable[[], None]) -> None:
        """Apply the selected avatars one after the other; tracks and motion continue."""
        avatar = await self.opened()
        while True:
            entry = await self._selections.get()
            await avatar.change_portrait(entry.portrait)
            self.avatar_entry = entry
            on_change()

    def select(self, entry: AvatarEntry) -> None:
        """Select an avatar; it replaces an earlier selection that was not applied yet."""
        _replace(self._selections, entry)

    async def change_motions(self, on_refused: Callable[[], None]) -> None:
        """Apply how the face is to move, one after the other."""
        avatar = await self.opened()
        while True:
            motion = await self._motions.get()
            try:
                await avatar.set_motion(motion)
            except ConfigError:  # this model moves in one way only
                on_refused()
            else:
                self.motion = motion

    def set_motion(self, motion: MotionOptions) -> None:
        """Change how the face moves; it replaces an earlier change that was not applied yet."""
        _replace(self._motions, motion)

    def interrupt(self) -> Interrupted:
        """Drop the speech that was not played, and silence the queued frames."""
        if self._avatar is None:
            return Interrupted(0, 0)
        interrupted = self._avatar.interrupt()
        self.playout.silence(self._avatar.epoch)
        return interrupted

    def push_video(self, rgb: np.ndarray, captured_s: float) -> None:
        """Let a frame of a camera move the avatar; see `AvatarSession.push_video`."""
        if self._avatar is not None and not self._avatar.closed:
            self._avatar.push_video(rgb, captured_s)
            self._filmed_s = time.monotonic()

    @property
    def camera_status(self) -> CameraStatus | None:
        """What the camera sees; None while no frames of one arrive."""
        return self._avatar.camera_status if self._avatar is not None and self.is_filmed else None

    def set_camera(self, options: CameraOptions) -> None:
        """Change how a camera moves the avatar."""
        self._camera = options
        if self._avatar is not None:
            self._avatar.set_camera(options)

    def take_neutral(self) -> None:
        """Take the look of the next frames of the camera as the neutral one."""
        if self._avatar is not None and not self._avatar.closed:
            self._avatar.take_neutral()

    def _with_badge(self, rgb: np.ndarray) -> np.ndarray:
        return with_badge(rgb) if self._has_badge else rgb


def _replace(queue: asyncio.Queue[T], value: T) -> None:
    """Put a value into a queue of one, in place of an older one."""
    if queue.full():
        queue.get_nowait()
    queue.put_nowait(value)
