"""`letstalk doctor` says how fast this machine is, and advises only what changes something."""

import json
from pathlib import Path

import pytest
import torch
from support.commands import Run

from letstalk_rt.cli import doctor
from letstalk_rt.inference.quality import FULL_QUALITY, Quality
from letstalk_rt.inference.step_times import StepTimes

LEVELS = (
    FULL_QUALITY,
    Quality(full_size=False, cost=0.9),
    Quality(full_size=False, fps=20, cost=0.7),
)


def times(*step_s: float) -> StepTimes:
    return StepTimes("machine", step_s, 0.16)


def test_a_machine_that_is_measured_gets_a_preset_or_hears_why_not(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, portrait: str
) -> None:
    monkeypatch.setenv("LETSTALK_CACHE", str(tmp_path))
    monkeypatch.setattr("letstalk_rt.avatars.list_avatars", lambda: {"ann": Path(portrait)})
    status, text = run("doctor", "--seconds", "0.1", "--json")
    found = json.loads(text)
    checks = {check["name"]: check for check in found["checks"]}
    assert status == (0 if found["preset"] else 3)
    assert checks["speed"]["facts"]["fps"] > 0 and checks["decoder"]["facts"]["variant"]


@pytest.mark.parametrize(
    "small_s, busy_cores, said, unsaid",
    [
        (0.199, 0.0, "reserve: use a faster machine;", "--size|programs|--steps"),
        (0.1, 0.0, "use --size 256, whose window takes 100 ms, or use a faster", "programs"),
        (0.199, 1.5, "close other programs, which keep 1.5 cores busy, or use a", "--size"),
    ],
)
def test_only_what_helps_is_advised(
    small_s: float, busy_cores: float, said: str, unsaid: str
) -> None:
    advice = doctor._speed_advice(times(0.2), times(small_s), busy_cores)
    assert said in advice
    assert not any(word in advice for word in unsaid.split("|"))


@pytest.mark.parametrize(
    "step_s, level, said, fits",
    [
        ((0.1,), 0, "begin at full quality: a step takes 100 of 160 ms", True),
        ((0.2, 0.18, 0.14), 2, "level 2 of 2, 20 images per second: a step takes 140 of", True),
        ((0.5, 0.45, 0.4), 2, "of full quality 500", False),
    ],
)
def test_the_quality_at_which_sessions_begin_is_told(
    step_s: tuple[float, ...], level: int, said: str, fits: bool
) -> None:
    finding = doctor._quality_finding(times(*step_s), LEVELS)
    assert finding.facts["level"] == level and finding.facts["fits"] == fits
    assert said in finding.found
    assert finding.status == ("slow" if level else "ok")


@pytest.mark.parametrize(
    "step_s, said",
    [
        ((0.1,), "live here, without a reserve"),
        ((0.2, 0.14), "live here, below full quality"),
        ((0.5, 0.45, 0.4), "No preset is fast enough"),
    ],
)
def test_the_last_line_says_whether_live_use_is_possible(
    step_s: tuple[float, ...], said: str
) -> None:
    assert said in doctor._summary([doctor._quality_finding(times(*step_s), LEVELS)], None)


def test_a_variable_that_is_not_set_need_not_be_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(doctor, "_count_cores", lambda: 2)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert "unset OMP_NUM_THREADS" in doctor._check_torch().advice
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert "OMP_NUM_THREADS" not in doctor._check_torch().advice
    assert "set --threads" in doctor._check_torch().advice


def test_work_of_other_programs_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([1000, 1000 + 50])
    monkeypatch.setattr(doctor, "_busy_ticks", lambda: next(ticks))
    monkeypatch.setattr("os.sysconf", lambda name: 100)
    assert doctor._busy_cores(seconds=0.5) == pytest.approx(1.0)
