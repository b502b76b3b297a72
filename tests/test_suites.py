"""The two halves of the suite are all of it, and skipped tests say what they want."""

from pathlib import Path

import pytest
from support.suites import SYSTEM, is_system, missing_packages

TESTS = Path(__file__).parent


@pytest.mark.parametrize("name", SYSTEM)
def test_what_is_left_to_the_second_half_exists(name: str) -> None:
    path, _, test = name.partition("::")
    assert (TESTS / path).exists()
    assert f"def {test}" in (TESTS / path).read_text() if test else True


def test_the_first_half_keeps_a_real_path_through_every_feature() -> None:
    kept = [
        "browser/test_page.py::test_the_avatar_speaks_what_the_microphone_records",
        "server/webrtc/test_peers.py::test_a_session_goes_through_a_turn_server_alone",
        "inference/test_isolated_model.py::test_the_embedded_model_comes_back_and_is_the_same",
        "training/test_train_command.py::test_gestures_are_trained_and_exported",
    ]
    for name in kept:
        path, _, test = name.partition("::")
        assert not is_system(name) and f"def {test}" in (TESTS / path).read_text()


def test_the_package_that_a_skipped_test_wants_is_named() -> None:
    reasons = ["Skipped: haproxy is not installed", "Skipped: needs libportaudio2", "no CUDA here"]
    assert missing_packages(reasons) == ["haproxy", "libportaudio2"]


def test_nothing_is_named_where_nothing_is_missing() -> None:
    assert missing_packages(["this processor has no lower instruction set to try"]) == []
