"""The performer of one session: what it was told becomes the change of each window's motion.

It is asked for one window after another. Moods and gestures count frames and the audio in them, so
the same calls give the same performance, whatever the machine does.
"""

from collections.abc import Sequence

import numpy as np

from letstalk_rt.performance.cue_queue import MAX_WAITING, CueQueue, SpokenFrame
from letstalk_rt.performance.direction import EYES, NUM_CHANNELS, DirectedWindow, channel
from letstalk_rt.performance.gestures import Gesture, GestureBlend
from letstalk_rt.performance.listening import Listener
from letstalk_rt.performance.mirroring import Mirror, Seen
from letstalk_rt.performance.moods import MOODS, Mood, Style, mood
from letstalk_rt.types import FPS

EASE_FRAMES = 12
"""Frames in which a mood eases in: half a second."""

_SMILE = channel("smile")


class Performer:
    """Decides how the motion of one session is changed.

    Args:
        first: the first mood; see `letstalk_rt.performance.mood`.
        strength: how much of it is shown, from 0 to 1.
        listening: how much attention is shown while somebody else speaks.
        max_waiting: gestures and moods that may wait for their time; more drop the oldest.
        seed: of what is left to chance: when a listening avatar nods.

    Attributes:
        mood: the present mood.

    Raises:
        ConfigError: an argument is unknown or out of range.
    """

    def __init__(
        self,
        first: str | Style = "neutral",
        strength: float = 1.0,
        listening: str = "off",
        *,
        max_waiting: float = MAX_WAITING,
        seed: int = 0,
    ) -> None:
        self.mood = mood(first, strength)
        self._from = self._levels = self._to = self.mood.levels
        self._eased = EASE_FRAMES
        self._cues, self._gestures = CueQueue(max_waiting), GestureBlend()
        self._listener, self._mirror = Listener(listening, seed), Mirror()
        self._is_at_rest = False  # nothing is changed until something is asked for, heard or seen

    @property
    def listening(self) -> str:
        """How much attention is shown while somebody else speaks."""
        return self._listener.mode

    def set_mood(
        self,
        which: str | Style,
        strength: float = 1.0,
        segment_id: int = 0,
        at_s: float | None = None,
    ) -> None:
        """Change the mood; it eases in over half a second.

        Args:
            which: a name of `MOODS`, or a style.
            strength: how much of it is shown, from 0 to 1.
            segment_id: the segment that `at_s` refers to.
            at_s: when, in seconds of that segment's speech; None for the next window.

        Raises:
            ConfigError: there is no such mood, or a number is out of range.
        """
        chosen = mood(which, strength)
        if at_s is None:
            self._begin_mood(chosen)
        else:
            self._put(chosen, segment_id, at_s)

    def gesture(
        self, name: str, amount: float = 1.0, segment_id: int = 0, at_s: float | None = None
    ) -> None:
        """Make a gesture.

        Args:
            name: one of `GESTURES`.
            amount: how large it is, from 0.1 to 2.
            segment_id: the segment that `at_s` refers to.
            at_s: when its first movement is complete, in seconds of that segment's speech; None to
                begin with the next window.

        Raises:
            ConfigError: there is no such gesture, or a number is out of range.
        """
        self._put(Gesture(name, amount), segment_id, at_s)

    def cue(self, name: str, segment_id: int, at_s: float | None) -> None:
        """Change the mood or make a gesture, whichever the name is of; see `set_mood`, `gesture`.

        Raises:
            ConfigError: there is neither, or a number is out of range.
        """
        if isinstance(name, str) and name in MOODS:
            self.set_mood(name, 1.0, segment_id, at_s)
        else:
            self.gesture(name, 1.0, segment_id, at_s)

    def set_listening(self, mode: str) -> None:
        """Change how much attention is shown.

        Raises:
            ConfigError: it is unknown.
        """
        self._listener.set_mode(mode)
        self._is_at_rest = False

    def hear(self, speaking: bool, pitch_hz: float | None, now_s: float) -> None:
        """Note whether somebody else speaks now; see `AvatarSession.push_listened`.

        Raises:
            ConfigError: the pitch is no positive number.
        """
        self._listener.hear(speaking, pitch_hz, now_s)
        self._is_at_rest = False

    def see(self, seen: Seen) -> None:
        """Note what a camera that is watched has seen."""
        self._mirror.see(seen)
        self._is_at_rest = False

    def interrupt(self, unseen: int = 0) -> None:
        """Drop what waits, and let gestures fade from the last frame that was shown.

        Args:
            unseen: how many of the last frames were never shown.
        """
        self._cues.clear()
        self._gestures.interrupt(unseen)
        self._eased = max(0, self._eased - unseen) if self._eased < EASE_FRAMES else EASE_FRAMES

    def window(
        self,
        frames: Sequence[SpokenFrame],
        voiced: Sequence[bool] | None = None,
        now_s: float = 0.0,
        shown_s: float | None = None,
    ) -> DirectedWindow | None:
        """Return how the motion of the next window is changed; None if not at all.

        Args:
            frames: the audio of each of its frames.
            voiced: which of them have voice of the avatar; None for those with speech.
            now_s: the present time, by the clock of `hear`.
            shown_s: when the first frame is shown, by that clock; None for now.
        """
        if self._is_at_rest:
            self._cues.skip(frames)
            return None
        shown_s = now_s if shown_s is None else shown_s
        added, kept = np.zeros((len(frames), NUM_CHANNELS)), np.ones((len(frames), NUM_CHANNELS))
        closures, blinks = np.zeros((len(frames), len(EYES))), np.ones(len(frames))
        for number, frame in enumerate(frames):
            speaks = frame.spoken > 0 if voiced is None else voiced[number]
            later_s = number / FPS
            listened = self._listener.frame(now_s + later_s, speaks=speaks)
            smile, answer = self._mirror.frame(shown_s + later_s)
            self._begin([*self._cues.take(frame), *listened.begun, *([answer] if answer else [])])
            self._ease()
            gestures, closures[number] = self._gestures.frame()
            added[number] = self._levels.added + listened.added + gestures
            added[number, _SMILE] += smile
            kept[number] = self._levels.kept * listened.kept
            blinks[number] = self._levels.blink_rate * listened.blink_rate
        window = _changed(added, kept, closures, self._levels.style, float(blinks.mean()))
        self._is_at_rest = window is None and not self._is_awaited(shown_s)
        return window

    def _is_awaited(self, shown_s: float) -> bool:
        """Return whether anything may change the motion by itself from now on."""
        is_easing = self._eased < EASE_FRAMES
        moves = is_easing or len(self._cues) > 0 or len(self._gestures) > 0
        return moves or self.listening != "off" or self._mirror.answers_after(shown_s)

    def _put(self, what: Gesture | Mood, segment_id: int, at_s: float | None) -> None:
        self._cues.put(what, segment_id, at_s)
        self._is_at_rest = False

    def _begin(self, due: Sequence[Gesture | Mood]) -> None:
        for what in due:
            if isinstance(what, Mood):
                self._begin_mood(what)
            else:
                self._gestures.begin(what)

    def _begin_mood(self, next_mood: Mood) -> None:
        self.mood = next_mood
        self._from, self._to, self._eased = self._levels, next_mood.levels, 0
        self._is_at_rest = False

    def _ease(self) -> None:
        if self._eased < EASE_FRAMES:
            self._eased += 1
            share = self._eased / EASE_FRAMES
            self._levels = self._from.toward(self._to, share * share * (3 - 2 * share))


def _changed(
    added: np.ndarray, kept: np.ndarray, closures: np.ndarray, style: np.ndarray, blinks: float
) -> DirectedWindow | None:
    """Return the window, or None if it changes nothing."""
    if not (added.any() or closures.any() or style.any() or (kept != 1).any() or blinks != 1):
        return None
    return DirectedWindow(
        added.astype(np.float32),
        kept.astype(np.float32),
        closures.astype(np.float32),
        style.astype(np.float32),
        blinks,
    )
