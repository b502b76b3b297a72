"""The two halves of the suite are all of it, and skipped tests say what they want."""

from pathlib import Path

import pytest
from support import packages
from support.packages import PACKAGES, missing_packages, needs
from support.suites import SYSTEM, is_system

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
        "training/test_train_command.py::test_a_motion_denoiser_is_trained_and_exported",
    ]
    for name in kept:
        path, _, test = name.partition("::")
        assert not is_system(name) and f"def {test}" in (TESTS / path).read_text()


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has Python, a C library, and FFmpeg."""
    there = {name: (lambda name=name: name == "ffmpeg") for name in PACKAGES}
    monkeypatch.setattr(packages, "PACKAGES", there)


def test_the_packages_that_skipped_tests_want_are_named_unless_they_are_there(bare: None) -> None:
    reasons = ["Skipped: needs haproxy", "needs libportaudio2", "no ffmpeg", "no CUDA here"]
    assert missing_packages(reasons) == ["haproxy", "libportaudio2"]


def test_a_test_is_skipped_by_the_name_of_what_is_missing(bare: None) -> None:
    assert needs("coturn").mark.args == (True,)
    assert needs("coturn").mark.kwargs == {"reason": "needs coturn"}
    assert needs("ffmpeg").mark.args == (False,)


def test_all_that_ci_installs_is_known() -> None:
    installed = (TESTS.parent / ".ci" / "run").read_text().partition("for package in ")[2]
    assert set(installed.partition(";")[0].split()) <= set(PACKAGES)


def test_nothing_is_named_where_nothing_is_missing() -> None:
    assert missing_packages(["this processor has no lower instruction set to try"]) == []
