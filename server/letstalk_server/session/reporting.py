"""Reports shown frames to the engine, and the engine's events to the clients."""

import time
from collections.abc import Callable

from letstalk_rt.session.avatar import AvatarSession
from letstalk_rt.session.events import Event
from letstalk_rt.types import Interrupted
from letstalk_server.protocol import server_messages
from letstalk_server.session.announcer import Announcer
from letstalk_server.session.playout import SLOT_S, PlayoutSlot, SlotPlayout

_FORWARDED_WARNINGS = ("model-failed", "speech-late", "clipped")
"""Codes of the engine's warnings that are sent to clients."""


class PlaybackReporter:
    """Connects the playout, the engine session and the clients of one session.

    Args:
        announcer: sends messages to the clients.
        on_voice: called for each shown frame that has voice.
        now_s: returns seconds of the engine's clock.
    """

    def __init__(
        self,
        announcer: Announcer,
        on_voice: Callable[[], None] = lambda: None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._now_s = now_s
        self._announcer = announcer
        self._on_voice = on_voice
        self._avatar: AvatarSession | None = None
        self._slots = self._images = 0
        self._announced_speaking = False

    def follow(self, avatar: AvatarSession) -> None:
        """Report to this engine session from now on, and forward its events."""
        self._avatar = avatar
        avatar.on_event(self._forward)

    def show(self, slot: PlayoutSlot) -> None:
        """Report a slot that is shown now."""
        self._slots += 1
        self._images += slot.frame is not None and not slot.frame.repeated
        if slot.frame is None or self._avatar is None:
            return
        self._announcer.segment_id = slot.frame.segment_id
        self._avatar.notify_played(slot.frame)
        if slot.frame.stamps is not None:
            self._avatar.metrics.stamp_shown(slot.frame.stamps, self._now_s())
        self._announce_speaking(self._avatar.state == "speaking")
        if slot.frame.voiced:
            self._on_voice()

    def announce_interrupt(self, interrupted: Interrupted, waiting_ms: int) -> Interrupted:
        """Announce an interrupt, if it dropped or cut off speech; return what it dropped.

        Args:
            interrupted: result of the engine's interrupt.
            waiting_ms: speech that was dropped before it reached the engine, ms.
        """
        dropped_ms = interrupted.dropped_ms + waiting_ms
        if interrupted.played_ms or dropped_ms:
            self._announcer.broadcast(
                server_messages.SegmentInterrupted(interrupted.played_ms, dropped_ms)
            )
        return Interrupted(interrupted.played_ms, dropped_ms)

    def stats(self, playout: SlotPlayout) -> server_messages.Stats:
        """Return the statistics of the session."""
        metrics = self._avatar.metrics if self._avatar is not None else None
        stages = metrics.stages_ms() if metrics is not None else {}
        shown_s = max(SLOT_S, playout.now())
        return server_messages.Stats(
            fps=round(self._images / shown_s, 1),
            frames=self._slots,
            repeats=playout.repeats,
            held_ms=round(1000 * playout.held_s),
            stalls=metrics.stalls if metrics is not None else 0,
            drops=metrics.drops if metrics is not None else 0,
            recoveries=metrics.recoveries if metrics is not None else 0,
            quality_level=metrics.quality_level if metrics is not None else 0,
            quality_changes=metrics.quality_changes if metrics is not None else 0,
            backlog_ms=self._avatar.backlog_ms if self._avatar is not None else 0,
            stages_ms={
                name: {"p50": value.p50, "p95": value.p95, "p99": value.p99}
                for name, value in stages.items()
            },
        )

    def _quality(self, event: Event) -> server_messages.QualityChanged:
        assert self._avatar is not None, "events come from an avatar"
        fps = self._avatar.quality.fps
        return server_messages.QualityChanged(event.quality_level or 0, fps, event.message or "")

    def _announce_speaking(self, speaking: bool) -> None:
        """Announce a change between speaking and idle, also by an interrupt."""
        if speaking != self._announced_speaking:
            self._announced_speaking = speaking
            self._announcer.broadcast(
                server_messages.Speaking() if speaking else server_messages.Idle()
            )

    def _forward(self, event: Event) -> None:
        match event.type:
            case "segment.started":
                self._announcer.broadcast(server_messages.Started(), event.segment_id)
            case "segment.finished":
                self._announcer.broadcast(
                    server_messages.Finished(event.played_ms or 0), event.segment_id
                )
            case "avatar.listening":
                self._announcer.broadcast(server_messages.Listening())
            case "session.quality":
                self._announcer.broadcast(self._quality(event))
            case "session.warning" if event.code in _FORWARDED_WARNINGS:
                self._announcer.broadcast(server_messages.Warn(event.code, event.message or ""))
            case _:  # speaking and idle follow the state; interrupts are announced separately
                pass
