import math

from letstalk_rt.metrics import Metrics, NoClock, Percentiles, StageClock, percentiles


def test_percentiles_are_values_that_occurred():
    assert percentiles(range(100, 0, -1)) == Percentiles(50, 95, 99)


def test_one_value_is_every_percentile():
    assert percentiles([7.5]) == Percentiles(7.5, 7.5, 7.5)


def test_no_value_has_no_percentile():
    result = percentiles([])
    assert all(math.isnan(value) for value in (result.p50, result.p95, result.p99))


def test_stages_are_kept_apart_and_in_milliseconds():
    metrics = Metrics()
    metrics.stamp("step", 0.060)
    metrics.stamp("wait", 0.002)
    assert metrics.stages_ms() == {
        "step": Percentiles(60.0, 60.0, 60.0),
        "wait": Percentiles(2.0, 2.0, 2.0),
    }


def test_a_long_session_keeps_only_the_latest_stamps():
    metrics = Metrics(keep=3)
    for duration_s in (9.0, 9.0, 1.0, 2.0, 3.0):
        metrics.stamp("step", duration_s)
    assert metrics.stages_ms()["step"] == Percentiles(2000.0, 3000.0, 3000.0)


def test_sessions_do_not_share_their_stamps():
    one, other = Metrics(), Metrics()
    one.stamp("step", 1.0)
    assert other.stages_ms() == {}


def test_a_stage_is_measured_from_one_synchronized_moment_to_the_next():
    events = []
    clock = StageClock(synchronize=lambda: events.append("synchronized"))
    for name in ("decode", "sample", "decode"):
        with clock.stage(name):
            events.append(name)
    assert events[:3] == ["synchronized", "decode", "synchronized"]
    assert list(clock.stages_ms()) == ["decode", "sample"]
    clock.reset()
    assert clock.stages_ms() == {}


def test_without_a_clock_the_work_is_done_all_the_same():
    with NoClock().stage("decode"):
        done = True
    assert done
