"""The queue for a place: its order, what lapses, and who has how many tickets."""

import pytest

from letstalk_server.auth import LOCAL, Caller
from letstalk_server.session.admission_queue import (
    ABSENT_S,
    CALLED_S,
    MAX_TICKETS,
    AdmissionQueue,
)
from letstalk_server.settings import Settings

ANN, BOB = Caller("ann", frozenset()), Caller("bob", frozenset())


class Clock:
    now_s = 100.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def queue(clock):
    return AdmissionQueue(Settings(), clock)


def test_who_comes_first_is_first_and_who_leaves_moves_the_others_up(queue):
    ann, bob = queue.enter(ANN, None, 1), queue.enter(BOB, None, 1)
    assert queue.enter(ANN, ann.id, 1) is ann
    assert [queue.count_before(ANN, ann.id), queue.count_before(BOB, bob.id)] == [0, 1]
    assert queue.count_before() == 2, "who has no ticket comes after all"
    queue.leave(ANN, ann.id)
    assert queue.count_before(BOB, bob.id) == 0


def test_a_ticket_is_of_no_use_to_others(queue):
    ann = queue.enter(ANN, None, 1)
    assert queue.count_before(BOB, ann.id) == 1
    assert queue.enter(BOB, ann.id, 1).id != ann.id
    queue.leave(BOB, ann.id)
    assert queue.count_before(ANN, ann.id) == 0
    assert queue.count_before() == 2


def test_who_does_not_ask_any_more_is_left_out(queue, clock):
    ann = queue.enter(ANN, None, 1)
    clock.now_s += ABSENT_S / 2
    bob = queue.enter(BOB, None, 1)
    clock.now_s += ABSENT_S / 2
    assert queue.count_before(BOB, bob.id) == 0
    assert queue.enter(ANN, ann.id, 1).id != ann.id
    assert queue.count_before(BOB, bob.id) == 0, "who comes back is the last"


def test_a_place_is_not_kept_for_ever(queue, clock):
    ann = queue.enter(ANN, None, 1)
    queue.call(ann, True)
    for _ in range(3):
        clock.now_s += CALLED_S / 3
        queue.call(ann, True)
        kept = queue.enter(ANN, ann.id, 1)
    assert kept.id != ann.id, "it asked all the time, and did not come"


def test_a_call_that_was_taken_back_begins_anew(queue, clock):
    ann = queue.enter(ANN, None, 1)
    for is_free in (True, False, True):
        queue.call(ann, is_free)
        clock.now_s += 0.6 * CALLED_S
        ann.asked_s = clock.now_s
    assert queue.enter(ANN, ann.id, 1) is ann


def test_tickets_are_limited_by_the_share_of_a_subject_and_in_all(queue):
    assert queue.enter(ANN, None, 0) is None
    assert queue.enter(ANN, None, 1) and queue.enter(ANN, None, 1) is None
    assert queue.enter(BOB, None, 1)
    found = [queue.enter(LOCAL, None, 0) for _ in range(MAX_TICKETS)]
    assert found.count(None) == 2, "an operator has no share, but the queue has an end"
