import pytest

from letstalk_rt.session.pacing import CatchUpPolicy, HoldPolicy, LatePolicy, LeadTime, PlayoutClock


def test_frames_are_evenly_spaced():
    clock = PlayoutClock(fps=25)
    assert [clock.delay_s(i, now_s=100.0) for i in range(3)] == pytest.approx([0, 0.04, 0.08])


def test_the_clock_may_start_at_any_frame():
    clock = PlayoutClock(fps=25)
    assert clock.delay_s(7, now_s=3.0) == 0
    assert clock.due_s(9, now_s=5.0) == pytest.approx(3.08)


def test_a_small_lag_is_paid_back():
    clock = PlayoutClock(fps=25)
    clock.delay_s(0, 0.0)
    assert clock.delay_s(1, 0.1) == 0
    assert clock.delay_s(3, 0.1) == pytest.approx(0.02)
    assert (clock.stalls, clock.moved_s) == (0, 0)


def test_a_long_stall_moves_the_clock():
    clock = PlayoutClock(late=LatePolicy(max_lag_s=0.2))
    clock.delay_s(0, 0.0)
    assert clock.delay_s(1, 1.0) == 0
    assert clock.delay_s(2, 1.0) == pytest.approx(0.04)
    assert (clock.stalls, clock.moved_s) == (1, pytest.approx(0.96))


def test_asking_when_a_frame_is_due_moves_nothing():
    clock = PlayoutClock(late=LatePolicy(max_lag_s=0.2))
    clock.delay_s(0, 0.0)
    assert clock.due_s(1, now_s=9.0) == pytest.approx(0.04)
    assert clock.stalls == 0


def test_frames_that_keep_coming_late_move_the_clock_a_little():
    clock = PlayoutClock(fps=25)
    clock.due_s(0, 0.0)
    late_windows = 0
    for window in range(20):
        come_s = window * 0.16 + 0.02 * (window > 5)  # one step was too slow, and nobody catches up
        for index in range(4 * window, 4 * window + 4):
            now_s = max(come_s, index * 0.04)
            late_windows += clock.due_s(index, now_s) < now_s - 0.005
            clock.delay_s(index, now_s)
    assert late_windows == 4
    assert clock.moved_s == pytest.approx(0.03)
    assert clock.stalls == 0


def test_a_single_late_frame_or_a_debt_that_is_paid_back_moves_nothing():
    clock = PlayoutClock(fps=25)
    clock.due_s(0, 0.0)
    for index in range(100):
        late_s = max(0.0, 0.15 - 0.03 * (index - 50)) if index >= 50 else 0.0
        clock.delay_s(index, index * 0.04 + late_s)
    assert clock.moved_s == 0


def test_where_the_clock_must_not_give_way_it_does_not():
    clock = PlayoutClock(late=LatePolicy(patience=0))
    clock.due_s(0, 0.0)
    for index in range(0, 100, 4):
        clock.delay_s(index, index * 0.04 + 0.03)
    assert clock.moved_s == 0


def test_a_step_is_begun_so_that_no_frame_of_it_is_late():
    lead = LeadTime(fps=25, spare_s=0.02)
    lead.note([0.04, 0.056, 0.083, 0.083])
    assert lead.lead_s == pytest.approx(0.06), "the first frame decides"
    lead.note([0.04, 0.13, 0.13, 0.13])
    assert lead.lead_s == pytest.approx(0.11), "the second does, 90 ms before it is due"


def test_a_single_slow_step_in_ten_changes_nothing_and_slow_ones_are_forgotten():
    lead = LeadTime(spare_s=0.02)
    for number in range(40):
        lead.note([0.2 if number % 16 == 15 else 0.05])
    assert lead.lead_s == pytest.approx(0.07)
    for _ in range(8):
        lead.note([0.1])
    assert lead.lead_s == pytest.approx(0.12)
    for _ in range(32):
        lead.note([0.05])
    assert lead.lead_s == pytest.approx(0.07)


# A player whose frames are pulled


def pulled():
    return PlayoutClock(holds=HoldPolicy(), catch_up=CatchUpPolicy())


def test_a_held_clock_stands_still_and_goes_on_from_there():
    clock = pulled()
    assert clock.elapsed_s(5.0) == 0
    clock.hold(5.1)
    clock.hold(5.12)
    assert clock.elapsed_s(5.13) == pytest.approx(0.1)
    assert clock.resume(5.13)
    assert clock.elapsed_s(5.2) == pytest.approx(0.17)
    assert clock.due_s(5, 5.2) == pytest.approx(5.23)
    assert clock.held_s == pytest.approx(0.03)
    assert not clock.resume(5.3)


def show_early(clock, frames, wait_s=0.065):
    """Show frames that each come so long before they are due, and return when the last was due."""
    for index in range(frames):
        came_s = index / 25
        due_s = clock.due_s(index, came_s + wait_s)
        clock.note_arrival(index, came_s)
        clock.run_fast(index, index)
    return due_s


def test_a_clock_whose_frames_wait_runs_fast_until_the_latest_waits_for_the_margin():
    clock = pulled()
    assert show_early(clock, 24) == pytest.approx(23 / 25 + 0.065), "too few are known"
    assert show_early(pulled(), 35) == pytest.approx(34 / 25 + 0.065 - 10 * 0.001)
    assert show_early(pulled(), 200) == pytest.approx(199 / 25 + 0.005)


def test_a_clock_forgets_the_latest_frame_after_a_while_and_at_once_when_told():
    clock = pulled()
    show_early(clock, 30)
    clock.note_arrival(30, 30 / 25 + 0.06)  # late, so there is nothing to spare
    before_s = clock.due_s(0, 0.0)
    clock.run_fast(30, 30)
    assert clock.due_s(0, 0.0) == before_s
    for index in range(31, 31 + 250):
        clock.note_arrival(index, index / 25)
    clock.run_fast(281, 281)
    assert clock.due_s(0, 0.0) == pytest.approx(before_s - 0.001)
    clock.forget_arrivals()
    clock.run_fast(282, 282)
    assert clock.due_s(0, 0.0) == pytest.approx(before_s - 0.001)


def test_a_frame_may_be_left_out_only_while_all_recent_ones_wait_for_more_than_it_lasts():
    clock = pulled()
    clock.due_s(0, 0.05)
    for index in range(25):
        clock.note_arrival(index, index / 25)
    assert clock.may_skip(25, 25)
    assert not clock.may_skip(26, 25), "one was left out"
    clock.note_arrival(25, 25 / 25 + 0.01)
    assert not clock.may_skip(26, 26)


def test_a_lag_that_lasts_begins_once_however_it_trembles():
    clock = PlayoutClock(fps=25)
    clock.due_s(0, 0.0)
    for index in range(1, 500):
        clock.delay_s(index, index / 25 + 0.05 + 0.004 * (index % 2))
    assert clock.moved_s == 0
