import pytest

from letstalk_rt.pacing import Lead, Pacer


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


def test_frames_that_keep_coming_late_move_the_clock_a_little():
    pacer = Pacer(fps=25)
    pacer.due_s(0, 0.0)
    late_windows = 0
    for window in range(20):
        come_s = window * 0.16 + 0.02 * (window > 5)  # one step was too slow, and nobody catches up
        for index in range(4 * window, 4 * window + 4):
            now_s = max(come_s, index * 0.04)
            late_windows += pacer.due_s(index, now_s) < now_s - 0.005
            pacer.delay_s(index, now_s)
    assert late_windows == 4
    assert pacer.moved_s == pytest.approx(0.03)
    assert pacer.stalls == 0


def test_a_single_late_frame_or_a_debt_that_is_paid_back_moves_nothing():
    pacer = Pacer(fps=25)
    pacer.due_s(0, 0.0)
    for index in range(100):
        late_s = max(0.0, 0.15 - 0.03 * (index - 50)) if index >= 50 else 0.0
        pacer.delay_s(index, index * 0.04 + late_s)
    assert pacer.moved_s == 0


def test_where_the_clock_must_not_give_way_it_does_not():
    pacer = Pacer(fps=25, patience=0)
    pacer.due_s(0, 0.0)
    for index in range(0, 100, 4):
        pacer.delay_s(index, index * 0.04 + 0.03)
    assert pacer.moved_s == 0


def test_a_step_is_begun_so_that_no_frame_of_it_is_late():
    lead = Lead(fps=25, spare_s=0.02)
    lead.note([0.04, 0.056, 0.083, 0.083])
    assert lead.lead_s == pytest.approx(0.06), "the first frame decides"
    lead.note([0.04, 0.13, 0.13, 0.13])
    assert lead.lead_s == pytest.approx(0.11), "the second does, 90 ms before it is due"


def test_a_single_slow_step_in_ten_changes_nothing_and_slow_ones_are_forgotten():
    lead = Lead(spare_s=0.02)
    for number in range(40):
        lead.note([0.2 if number % 16 == 15 else 0.05])
    assert lead.lead_s == pytest.approx(0.07)
    for _ in range(8):
        lead.note([0.1])
    assert lead.lead_s == pytest.approx(0.12)
    for _ in range(32):
        lead.note([0.05])
    assert lead.lead_s == pytest.approx(0.07)
