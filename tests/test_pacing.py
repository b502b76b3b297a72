import pytest

from letstalk_rt.pacing import Pacer


def test_frames_are_evenly_spaced():
    pacer = Pacer(fps=25)
    assert [pacer.delay_s(i, now_s=100.0) for i in range(3)] == pytest.approx([0, 0.04, 0.08])


def test_the_clock_may_start_at_any_frame():
    pacer = Pacer(fps=25)
    assert pacer.delay_s(7, now_s=3.0) == 0
    assert pacer.due_s(9, now_s=5.0) == pytest.approx(3.08)


def test_a_small_lag_is_paid_back():
    pacer = Pacer(fps=25)
    pacer.delay_s(0, 0.0)
    assert pacer.delay_s(1, 0.1) == 0
    assert pacer.delay_s(3, 0.1) == pytest.approx(0.02)
    assert (pacer.stalls, pacer.moved_s) == (0, 0)


def test_a_long_stall_moves_the_clock():
    pacer = Pacer(fps=25, max_lag_s=0.2)
    pacer.delay_s(0, 0.0)
    assert pacer.delay_s(1, 1.0) == 0
    assert pacer.delay_s(2, 1.0) == pytest.approx(0.04)
    assert (pacer.stalls, pacer.moved_s) == (1, pytest.approx(0.96))


def test_asking_when_a_frame_is_due_moves_nothing():
    pacer = Pacer(fps=25, max_lag_s=0.2)
    pacer.delay_s(0, 0.0)
    assert pacer.due_s(1, now_s=9.0) == pytest.approx(0.04)
    assert pacer.stalls == 0
