"""Prepares many raw videos in parallel, and joins their records into the lists of a data folder."""

import json
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from letstalk_rt.errors import InputError
from letstalk_rt.training.evaluation.identity import Identity
from letstalk_rt.training.prepare.job import PrepareConfig, Tools, prepare_video, record_file
from letstalk_rt.training.prepare.landmarkers import make_landmarker
from letstalk_rt.training.prepare.segments import RawVideo
from letstalk_rt.training.prepare.sound import SyncMeter
from letstalk_rt.training.prepare.splits import assign_splits


@dataclass(frozen=True)
class PrepareReport:
    """What became of the raw videos.

    Attributes:
        clips: Number of clips.
        train_s: Seconds of clips to train on.
        eval_s: Seconds of clips to evaluate on.
        people: Number of people.
        raw_s: Seconds of video that was searched.
        dropped_s: Seconds that were dropped, by reason.
        dropped: How many stretches were dropped, by reason.
        missing: Names of listed videos that are not there.
    """

    clips: int
    train_s: float
    eval_s: float
    people: int
    raw_s: float
    dropped_s: dict[str, float]
    dropped: dict[str, int]
    missing: list[str]

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        told = [
            f"{self.clips} clips of {self.people} people from {self.raw_s / 60:.1f} minutes: "
            f"{self.train_s / 60:.1f} minutes to train on, {self.eval_s / 60:.1f} to evaluate on"
        ]
        for reason in sorted(self.dropped, key=lambda r: -self.dropped_s[r]):
            seconds, count = self.dropped_s[reason], self.dropped[reason]
            told.append(f"dropped: {reason}: {seconds / 60:.1f} minutes in {count} stretches")
        if self.missing:
            told.append(f"listed, but not there: {len(self.missing)} videos")
        return told


def prepare_all(
    videos: list[RawVideo],
    output: Path,
    config: PrepareConfig,
    *,
    tag: str = "lab",
    eval_share: float = 0.05,
    workers: int = 1,
    device: str = "cpu",
    landmarker: Path | None = None,
    missing: list[str] | None = None,
) -> PrepareReport:
    """Prepare videos that have no record yet; write the list of clips and the report.

    Args:
        videos: The videos.
        output: The data folder.
        config: Settings, the same for the whole folder.
        tag: `ship` if their licence allows distributing weights trained on them, else `lab`.
        eval_share: Share of people in the split `eval`.
        workers: Number of processes.
        device: Where our own face finder runs.
        landmarker: MediaPipe's model file.
        missing: Names of listed videos that are not there, for the report.

    Raises:
        InputError: The folder was prepared with other settings.
    """
    (output / "clips").mkdir(parents=True, exist_ok=True)
    (output / "prepared").mkdir(exist_ok=True)
    _check_settings(output, config)
    waiting = [video for video in videos if not record_file(output, video.key).exists()]
    done = len(videos) - len(waiting)
    with tqdm(total=len(videos), initial=done, desc="prepare", unit="video") as bar:
        for record in _records(waiting, output, config, workers, device, landmarker):
            kept = sum(row["frames"] for row in json.loads(record.read_text())["clips"])
            bar.update()
            bar.set_postfix_str(f"{record.stem}: {kept / 25:.0f} s kept")
    return write_lists(output, tag=tag, eval_share=eval_share, missing=missing or [])


def _records(
    videos: list[RawVideo],
    output: Path,
    config: PrepareConfig,
    workers: int,
    device: str,
    landmarker: Path | None,
) -> Iterator[Path]:
    """Yield the record of each video as it is completed."""
    if workers <= 1 or len(videos) <= 1:
        tools = make_tools(config, device, landmarker) if videos else None
        for video in videos:
            assert tools is not None
            yield prepare_video(video, output, config, tools)
        return
    context = multiprocessing.get_context("spawn")
    setup = (config, device, landmarker)
    with ProcessPoolExecutor(workers, context, _start_worker, setup) as pool:
        jobs = [pool.submit(_work, video, output, config) for video in videos]
        for job in as_completed(jobs):
            yield job.result()


_worker_tools: list[Tools] = []
"""The tools of a worker process, made once when it starts; empty in the main process."""


def _start_worker(config: PrepareConfig, device: str, landmarker: Path | None) -> None:
    torch.set_num_threads(1)
    _worker_tools.append(make_tools(config, device, landmarker))


def _work(video: RawVideo, output: Path, config: PrepareConfig) -> Path:
    return prepare_video(video, output, config, _worker_tools[0])


def make_tools(config: PrepareConfig, device: str = "cpu", landmarker: Path | None = None) -> Tools:
    """Load the networks that settings ask for.

    Raises:
        DependencyError: An extra is not installed.
        ConfigError: A setting is unknown.
    """
    embed = Identity() if config.match_faces else None
    return Tools(make_landmarker(config.landmarks, device, landmarker), SyncMeter(), embed)


def _check_settings(output: Path, config: PrepareConfig) -> None:
    path, settings = output / "prepared" / "settings.json", asdict(config)
    if not path.exists():
        path.write_text(json.dumps(settings, indent=1))
        return
    before: dict[str, Any] = json.loads(path.read_text())
    if changed := [name for name, value in settings.items() if before.get(name) != value]:
        told = ", ".join(f"{n} was {before.get(n)!r}, now {settings[n]!r}" for n in changed)
        raise InputError(
            f"{output} was prepared with other settings ({told}); use them again, or another folder"
        )


def write_lists(output: Path, *, tag: str, eval_share: float, missing: list[str]) -> PrepareReport:
    """Join all records of a folder into `clips.jsonl` and `prepared.json`; return the report."""
    rows: list[dict[str, Any]] = []
    dropped: list[dict[str, Any]] = []
    raw_s = 0.0
    for path in sorted((output / "prepared").glob("*.json")):
        if path.name == "settings.json":
            continue
        record = json.loads(path.read_text())
        rows += [row | {"tag": tag} for row in record["clips"]]
        dropped += record["dropped"]
        raw_s += record["seconds"]
    assign_splits(rows, eval_share)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    _write(output / "clips.jsonl", lines)
    seconds: dict[str, float] = {}
    counts: dict[str, int] = {}
    for part in dropped:
        seconds[part["reason"]] = seconds.get(part["reason"], 0.0) + part["seconds"]
        counts[part["reason"]] = counts.get(part["reason"], 0) + 1
    report = PrepareReport(
        clips=len(rows),
        train_s=sum(row["frames"] for row in rows if row["split"] == "train") / 25,
        eval_s=sum(row["frames"] for row in rows if row["split"] == "eval") / 25,
        people=len({row["person"] for row in rows}),
        raw_s=raw_s,
        dropped_s=seconds,
        dropped=counts,
        missing=missing,
    )
    _write(output / "prepared.json", json.dumps(asdict(report) | {"stretches": dropped}, indent=1))
    return report


def _write(path: Path, text: str) -> None:
    partial = path.with_suffix(".part")
    partial.write_text(text)
    partial.replace(path)
