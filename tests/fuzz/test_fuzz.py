"""Hostile input of the past and a few new ones: nothing breaks, and nothing is logged."""

import hypothesis
import pytest
from hypothesis import HealthCheck

from fuzz import corpus, running
from fuzz.mutating import inputs
from fuzz.targets import TARGETS
from fuzz.world import World, application, connection, conversation

NEW = 40
"""New inputs of Hypothesis for each target: the same ones each time; `make fuzz` tries others."""

NEW_SLOW = {"sctp": 4, "sdp": 10}
"""Likewise where an input costs much: each association that an input ends is set up again."""


@pytest.mark.parametrize("opening", [application, conversation, connection])
def test_the_corpus_and_new_inputs_break_nothing(opening):
    targets = {name: kind for name, (kind, _) in TARGETS.items() if kind.opening is opening}
    assert targets
    with World(opening) as world:
        for target, kind in targets.items():
            attacked, entries = kind(world), corpus.entries(target)
            for name, data in entries:
                assert running.failure_of(attacked, data) is None, f"corpus/{target}/{name}"
            try_new(attacked, [data for _, data in entries], NEW_SLOW.get(target, NEW))


def try_new(attacked, entries, count):
    """Let Hypothesis attack, and shrink what breaks something."""

    @hypothesis.settings(
        max_examples=count,
        database=None,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(data=inputs(entries))
    def try_one(data):
        attacked.check(data)

    try_one()
