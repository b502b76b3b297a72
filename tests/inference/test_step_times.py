"""What a step takes here is measured once, kept, and doubted when sessions are slower."""

import json

import pytest
from support.fakes import FakePipeline, InlineWorker, portrait

from letstalk_rt.avatars import list_avatars
from letstalk_rt.inference.machine_cache import DOUBTED_AGAIN_S, MachineCache
from letstalk_rt.inference.quality import FULL_QUALITY, Quality
from letstalk_rt.inference.step_times import STEPS, WATCHED, SlownessWatch, StepTimes
from letstalk_rt.session.avatar import Avatar

LEVELS = (
    FULL_QUALITY,
    Quality(full_size=False, cost=0.9),
    Quality(full_size=False, fps=20, cost=0.7),
    Quality(full_size=False, fps=15, cost=0.5),
)
WINDOW_S = 0.16


class Machine(FakePipeline):
    """A pipeline whose steps take a time of their own at each level, by a clock that stands still
    otherwise; the first of each session takes longer."""

    quality_levels, machine = LEVELS, "abc123 tiny int8, 1 steps"

    def __init__(self, *step_s):
        super().__init__()
        self.step_s, self.clock_s, self.level, self.levels = step_s, 0.0, 0, []

    def init_state(self, portrait, options=None):
        self.level, self.warm = 0, False
        return super().init_state(portrait)

    def set_quality(self, state, quality):
        self.level = LEVELS.index(quality)

    def step(self, pcm, states, deliver=None):
        self.clock_s += self.step_s[self.level] if self.warm else 0.3
        self.warm = True
        self.levels.append(self.level)
        return super().step(pcm, states, deliver)


@pytest.fixture
def cache(tmp_path):
    return MachineCache(tmp_path / "new" / "tuning.json")


def times_of(machine, cache, shown=None, **options):
    worker = InlineWorker(machine)
    times = worker.measure_steps(
        shown or portrait(), cache=cache, now_s=lambda: machine.clock_s, **options
    )
    assert worker.step_times is times, "its sessions know"
    return times


def test_levels_are_measured_down_to_one_that_surely_fits(cache):
    machine = Machine(0.2, 0.18, 0.1, 0.05)
    times = times_of(machine, cache)
    assert times.step_s == pytest.approx((0.2, 0.18, 0.1)), "without the first step of each"
    assert times.load == pytest.approx(0.2 / WINDOW_S)
    assert machine.levels == [level for level in range(3) for _ in range(1 + STEPS)]


def test_a_machine_that_is_fast_enough_measures_one_level(cache):
    assert len(times_of(Machine(0.05), cache).step_s) == 1


def test_a_machine_that_is_far_too_slow_is_not_measured_for_long(cache):
    machine = Machine(60.0, 60.0, 60.0, 60.0)
    assert times_of(machine, cache).step_s == (60.0,)
    assert machine.steps == 2


def test_what_was_measured_is_kept_by_size_and_measured_anew_only_if_asked(cache):
    times_of(Machine(0.1), cache)
    slower = Machine(0.11)
    assert times_of(slower, cache).step_s == pytest.approx((0.1,)) and not slower.steps
    assert times_of(slower, cache, anew=True).step_s == pytest.approx((0.11,))
    other = portrait()
    object.__setattr__(other, "canvas", other.canvas.repeat(2, 0))
    before = slower.steps
    times_of(slower, cache, other)
    assert slower.steps > before


@pytest.mark.parametrize("entry", [{}, {"step_ms": []}, {"step_ms": ["x"]}, {"step_ms": [0]}, [1]])
def test_a_damaged_entry_is_measured_again(cache, entry):
    times_of(Machine(0.1), cache)
    content = json.loads(cache.path.read_text())
    cache.path.write_text(json.dumps(dict.fromkeys(content, entry)))
    assert times_of(Machine(0.11), cache).step_s == pytest.approx((0.11,))


def test_a_model_without_a_name_in_caches_is_not_measured(cache):
    machine = Machine(0.1)
    machine.machine = ""
    assert times_of(machine, cache) is None and not machine.steps


def test_costs_are_those_measured_and_below_them_those_expected():
    full, small, slow, slowest = StepTimes("m", (0.2, 0.19, 0.1), WINDOW_S).with_costs(LEVELS)
    assert (full.cost, small.cost, slow.cost) == pytest.approx((1.0, 0.95, 0.5))
    assert slowest.cost == pytest.approx(0.5 * 0.5 / 0.7) and slowest.fps == 15


class TestWatch:
    @pytest.fixture
    def watch(self, cache):
        times_of(Machine(0.1), cache)
        MachineCache(cache.path).put("other machine", {"variant": "int8"})
        return SlownessWatch(StepTimes("abc123", (0.1,), WINDOW_S), cache)

    def slow_steps(self, watch, count, took_s=0.2, is_alone=True):
        return [watch.note(FULL_QUALITY, took_s, is_alone=is_alone) for _ in range(count)]

    def test_steps_that_stay_far_slower_make_the_measurement_forgotten(self, watch, cache):
        assert self.slow_steps(watch, WATCHED + 1) == [*[False] * (WATCHED - 1), True, False]
        watch.doubt()
        assert not cache.get("abc123 tiny int8, 1 steps 2x2")
        assert cache.get("other machine")
        machine = Machine(0.2, 0.1)
        assert times_of(machine, cache).step_s == pytest.approx((0.2, 0.1)) and machine.steps

    def test_single_slow_steps_and_slightly_slower_ones_do_not(self, watch):
        for _ in range(10):
            assert not any(self.slow_steps(watch, WATCHED // 2 - 1, took_s=1.0))
            assert not any(self.slow_steps(watch, WATCHED // 2 + 2, took_s=0.13))

    def test_a_step_that_others_delay_says_nothing(self, watch):
        for _ in range(10):
            assert not any(self.slow_steps(watch, WATCHED - 1))
            assert not any(self.slow_steps(watch, 1, is_alone=False))

    def test_lower_levels_are_expected_to_be_quicker(self, watch):
        half = Quality(fps=15, cost=0.5)
        notes = [watch.note(half, 0.08, is_alone=True) for _ in range(WATCHED)]
        assert notes[-1]

    def test_without_a_measurement_there_is_nothing_to_doubt(self):
        assert not any(self.slow_steps(SlownessWatch(None), 2 * WATCHED))


def test_a_machine_is_doubted_once_a_day(cache):
    for now_s, is_forgotten in ((0, True), (60, False), (DOUBTED_AGAIN_S + 1, True)):
        cache.put("abc123 tiny", {"step_ms": [1]})
        assert cache.doubt("abc123", lambda now_s=now_s: now_s) == is_forgotten
        assert bool(cache.get("abc123 tiny")) != is_forgotten


def test_a_cache_that_cannot_be_written_is_no_failure(tmp_path):
    (tmp_path / "file").touch()
    cache = MachineCache(tmp_path / "file" / "tuning.json")
    assert times_of(Machine(0.1), cache).step_s == pytest.approx((0.1,))
    assert not cache.get("abc123 tiny int8, 1 steps 2x2")


def test_the_first_avatar_of_a_machine_measures_and_the_next_does_not(tmp_path, monkeypatch):
    monkeypatch.setenv("LETSTALK_CACHE", str(tmp_path))
    mira = list_avatars()["mira"]
    with Avatar.load(mira, device="cpu", size=256) as avatar:
        (name,) = (n for n in json.loads((tmp_path / "tuning.json").read_text()) if "256" in n)
        first = avatar.measure_steps()
        assert first is not None
        assert name.startswith(f"{first.machine} tiny") and name.endswith("x256")
    kept = (tmp_path / "tuning.json").read_text()
    with Avatar.load(mira, device="cpu", size=256) as avatar:
        assert avatar.measure_steps() == first
    assert (tmp_path / "tuning.json").read_text() == kept
