"""When a session lowers its quality and raises it again: the decision, and the whole path."""

import asyncio

import numpy as np
import pytest
from support.fakes import FRAME, HOP, FakePipeline, TimedWorker, portrait
from support.live_sessions import Screen, microphone, session_of, speech_of
from support.virtual_time import run

from letstalk_rt.errors import ConfigError
from letstalk_rt.inference.machine_cache import MachineCache
from letstalk_rt.inference.quality import FULL_QUALITY, Quality, new_images
from letstalk_rt.inference.step_times import StepTimes
from letstalk_rt.session.adaptive_quality import (
    AdaptationPolicy,
    QualityAdapter,
    StepTiming,
    levels_for,
)

MEDIA_S = HOP / 16_000
LEVELS = (
    FULL_QUALITY,
    Quality(full_size=False, cost=0.8),
    Quality(full_size=False, decode_every=2, cost=0.65),
    Quality(full_size=False, decode_every=2, fps=20, cost=0.55),
)


class Machine:
    """A machine on which a step of full quality takes `load` of its playing time."""

    def __init__(self, adapter, costs=None):
        self.adapter, self.now_s = adapter, 0.0
        self.costs = costs or [level.cost for level in LEVELS]
        self.changes = []

    def run(self, load, seconds, is_late=None):
        """Run steps; one is late if it takes longer than it plays, unless told otherwise."""
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            took_s = load * self.costs[self.adapter.level] * MEDIA_S
            late = took_s > MEDIA_S if is_late is None else is_late
            self.now_s += max(MEDIA_S, took_s)
            if self.adapter.note_step(StepTiming(self.now_s, took_s, MEDIA_S, late)):
                self.changes.append((round(self.now_s, 2), self.adapter.level))
        return self.adapter.level


@pytest.fixture
def machine():
    return Machine(QualityAdapter(LEVELS))


class TestAdapter:
    def test_a_machine_that_is_fast_enough_keeps_full_quality(self, machine):
        assert machine.run(0.95, 600) == 0 and not machine.changes

    def test_quality_falls_after_a_second_of_late_steps_and_not_before(self, machine):
        machine.run(0.5, 10)
        assert machine.run(1.05, 0.4) == 0
        assert machine.run(0.5, 2) == 0
        assert machine.run(1.05, 2) == 1
        assert 0.8 < machine.changes[0][0] - 12.4 < 1.4

    def test_frames_that_are_late_because_speech_is_late_change_nothing(self, machine):
        assert machine.run(0.6, 60, is_late=True) == 0

    def test_slow_steps_whose_frames_are_in_time_change_nothing(self, machine):
        assert machine.run(0.97, 60, is_late=False) == 0

    def test_the_first_level_at_which_steps_should_fit_is_taken_at_once(self, machine):
        assert machine.run(1.3, 2) == 2
        assert [level for _, level in machine.changes] == [2]
        assert Machine(QualityAdapter(LEVELS)).run(5.0, 3) == 3

    def test_quality_comes_back_level_by_level(self, machine):
        machine.run(1.6, 3)
        assert machine.run(0.5, 30) == 0
        assert [level for _, level in machine.changes] == [3, 2, 1, 0]
        waits_s = np.diff([at_s for at_s, _ in machine.changes])
        assert waits_s.min() >= 5 and waits_s.max() < 8

    def test_a_load_that_stays_makes_one_change(self, machine):
        """Full quality is expected to be late again, so it is not tried."""
        machine.run(1.05, 600)
        assert [level for _, level in machine.changes] == [1]

    def test_attempts_that_fail_become_rare(self):
        """On this machine the first level saves far more than its cost says."""
        machine = Machine(QualityAdapter(LEVELS), costs=[1.0, 0.4, 0.3, 0.2])
        machine.run(1.2, 600)
        raised_s = [at_s for at_s, level in machine.changes if level == 0]
        waits_s = np.diff(raised_s)
        assert (np.diff(waits_s[:4]) > 0).all() and waits_s.max() > 80
        assert len(raised_s) < 12

    def test_after_an_attempt_that_lasted_the_next_one_is_soon(self, machine):
        policy = AdaptationPolicy()
        machine.run(1.2, 2)
        machine.run(0.5, 60)
        machine.changes.clear()
        machine.run(1.2, 2)
        machine.run(0.5, 20)
        (lowered_s, _), (raised_s, _), *_ = machine.changes
        assert raised_s - lowered_s < 2 * policy.calm_s

    def test_it_begins_where_a_known_load_fits(self):
        begins = {load: QualityAdapter(LEVELS, load=load).level for load in (0, 0.9, 1.1, 1.3, 9)}
        assert begins == {0: 0, 0.9: 0, 1.1: 1, 1.3: 2, 9: 3}

    def test_without_levels_to_take_nothing_happens(self):
        assert Machine(QualityAdapter()).run(3.0, 60) == 0


class TestPreference:
    def test_each_lowers_what_its_name_allows(self):
        assert levels_for("balanced", LEVELS) == LEVELS
        assert levels_for("maintain-framerate", LEVELS) == LEVELS[:3]
        assert levels_for("disabled", LEVELS) == (FULL_QUALITY,)
        full, slow = levels_for("maintain-resolution", LEVELS)
        assert full == FULL_QUALITY
        assert slow.fps == 20 and slow.full_size and slow.decode_every == 1 and slow.cost < 1

    def test_where_the_rate_goes_first_all_else_is_left_to_lower_at_full_rate(self):
        slow = Quality(full_size=False, fps=20, cost=0.6)
        levels = (
            *LEVELS[:2],
            slow,
            Quality(full_size=False, fps=20, decode_every=2, cost=0.4),
        )
        full, small, bare = levels_for("maintain-framerate", levels)
        assert (full, small) == LEVELS[:2]
        assert bare.fps == 25 and bare.decode_every == 2 and 0.4 < bare.cost < small.cost

    def test_an_unknown_one_is_refused_with_the_known_ones(self):
        with pytest.raises(ConfigError, match="balanced, maintain-framerate.*'maintain'"):
            session_of(degradation_preference="maintain")


class GradedPipeline(FakePipeline):
    """A fake pipeline with quality levels, which notes the qualities that it is set to."""

    quality_levels = LEVELS

    def __init__(self):
        super().__init__()
        self.qualities, self.fails_once = [FULL_QUALITY], False

    def step(self, pcm, states, deliver=None):
        if self.fails_once:
            self.fails_once = False
            raise RuntimeError("once")
        return super().step(pcm, states, deliver)

    def set_quality(self, state, quality):
        self.qualities.append(quality)


class GradedWorker(TimedWorker):
    """A step of full quality takes `step_s`, a worse one less; all other calls take 2 ms."""

    def __init__(self, pipeline, step_s):
        super().__init__(pipeline, step_s)
        self.step_s = step_s

    def submit(self, fn, /, *args, **kwargs):
        self.timed.call_s = 0.002
        return super().submit(fn, *args, **kwargs)

    def step(self, pcm, state, deliver=None):
        self.timed.call_s = self.step_s * self.pipeline.qualities[-1].cost
        return super().step(pcm, state, deliver)


class Watched:
    """A live session of a graded pipeline, on a screen, with its events and delays."""

    def __init__(self, step_s, times_s=(), **options):
        self.pipeline = GradedPipeline()
        self.worker = GradedWorker(self.pipeline, step_s)
        if times_s:
            self.worker.step_times = StepTimes("known", times_s, MEDIA_S)
        options = {"playback": "reported", **options}
        self.session = session_of(worker=self.worker, idle=True, **options)
        self.events = []
        self.session.on_event(self.events.append)

    async def speak(self, *loads):
        """Push speech while a step takes so long for so many seconds each."""
        async with self.session:
            self.screen = Screen(self.session)
            for step_s, seconds in loads:
                self.worker.step_s = step_s
                await microphone(self.session, speech_of(seconds))
            await self.screen.close()

    @property
    def levels(self):
        return [event.quality_level for event in self.events if event.type == "session.quality"]

    def delays_s(self, first_s, last_s):
        """Return the delays from microphone to screen of frames shown in a time."""
        return [
            at_s - frame.stamps.audio_in_s
            for frame, at_s in zip(self.screen.frames, self.screen.times_s, strict=True)
            if first_s <= at_s < last_s and frame.stamps.audio_in_s is not None
        ]


class TestSession:
    def test_a_busy_machine_lowers_quality_says_so_and_comes_back(self):
        watched = Watched(0.1)
        run(watched.speak((0.1, 2), (0.2, 6), (0.1, 22)))
        metrics = watched.session.metrics
        assert watched.levels[0] > 0 and watched.levels[-1] == 0
        assert len(watched.levels) <= 5, "it does not oscillate"
        assert metrics.quality_changes == len(watched.levels) and metrics.quality_level == 0
        assert 0 < metrics.reduced < metrics.frames
        assert watched.pipeline.qualities[-1] == FULL_QUALITY == watched.session.quality

    def test_a_machine_that_is_known_to_be_slow_begins_at_a_level_that_fits(self):
        watched = Watched(0.2, (0.2, 0.16, 0.13))
        run(watched.speak((0.2, 3)))
        assert watched.levels == [2], "from the first frame on"
        assert watched.pipeline.qualities[1].cost == pytest.approx(0.65)
        assert watched.session.metrics.quality_level == 2
        assert watched.session.metrics.reduced == watched.session.metrics.frames > 50

    def test_sessions_that_are_slower_than_measured_have_it_measured_again(
        self, monkeypatch, tmp_path
    ):
        monkeypatch.setenv("LETSTALK_CACHE", str(tmp_path))
        for step_s, is_kept in ((0.11, True), (0.15, False)):
            MachineCache().put("known tiny", {"step_ms": [90]})
            run(Watched(step_s, (0.09,)).speak((step_s, 14)))
            assert bool(MachineCache().get("known tiny")) == is_kept

    def test_the_delay_does_not_grow_while_the_machine_is_busy(self):
        watched = Watched(0.1)
        run(watched.speak((0.1, 2), (0.2, 24)))
        early, late = watched.delays_s(8, 12), watched.delays_s(22, 26)
        assert max(late) <= max(early) + 0.001
        without = Watched(0.1, degradation_preference="disabled")
        run(without.speak((0.1, 2), (0.2, 24)))
        assert max(without.delays_s(22, 26)) > max(late) + 0.3, "this load is too much otherwise"

    def test_disabled_sessions_keep_full_quality(self):
        watched = Watched(0.2, degradation_preference="disabled")
        run(watched.speak((0.2, 5)))
        assert not watched.levels and watched.pipeline.qualities == [FULL_QUALITY]

    def test_at_20_fps_each_frame_keeps_its_audio_and_one_in_five_repeats_an_image(self):
        watched = Watched(0.1, degradation_preference="maintain-resolution")
        run(watched.speak((0.1, 2), (0.18, 10)))
        frames = watched.screen.frames
        assert [frame.index for frame in frames] == list(range(len(frames)))
        assert all(frame.pcm.size == FRAME for frame in frames)
        repeated = [frame.index for frame in frames if frame.repeated]
        assert len(repeated) > 20 and set(np.diff(repeated)) == {5}
        for index in repeated:
            assert frames[index].rgb is frames[index - 1].rgb
        assert not any(
            frames[n].rgb is frames[n - 1].rgb for n in range(1, len(frames)) if n not in repeated
        )

    def test_at_20_fps_a_new_portrait_begins_with_an_image_of_its_own(self):
        watched = Watched(0.1, degradation_preference="maintain-resolution")
        levels = range(1, 6)

        async def main():
            speaking = asyncio.create_task(watched.speak((0.1, 2), (0.18, 10)))
            await asyncio.sleep(5)
            for level in levels:  # at each place of the pattern of repeated images
                await watched.session.change_portrait(portrait(level))
                await asyncio.sleep(0.8)
            await speaking

        run(main())
        for level in levels:
            shown = [frame for frame in watched.screen.frames if frame.rgb[0, 0, 0] == level]
            repeated = [number for number, frame in enumerate(shown) if frame.repeated]
            assert repeated[:3] == [4, 9, 14], level

    def test_a_fresh_state_after_a_failure_has_the_quality_of_before(self):
        watched = Watched(0.1)

        async def main():
            speaking = asyncio.create_task(watched.speak((0.2, 6)))
            await asyncio.sleep(4)
            assert watched.levels
            before = list(watched.pipeline.qualities)
            watched.pipeline.fails_once = True
            await speaking
            assert watched.session.metrics.recoveries == 1
            assert watched.pipeline.qualities[len(before)] == before[-1]

        run(main())


def test_images_are_spread_evenly_and_their_number_is_the_frame_rate():
    for fps in (25, 20, 10, 1):
        assert sum(new_images(0, 250, fps)) == 10 * fps
    parts = [new_images(first, 4, 20) for first in range(0, 40, 4)]
    assert sum(parts, []) == new_images(0, 40, 20)
    assert new_images(0, 10, 20) == [True, True, True, True, False] * 2
