"""Measures how soon sessions go on after their model has failed, while all of them speak.

Four live sessions share a model in a process of its own, as under `letstalk serve`. In the middle
of speech one step fails, in each of these ways:

    raise       it raises an exception
    hang-2      it hangs for two seconds
    hang-60     it hangs for a minute; the watchdog ends it
    memory      it takes more memory than allowed
    kill        SIGKILL takes the process down; a spare process is ready
    kill-again  the same at once after the model has come back, without a spare process

    python benchmarks/bench_recovery.py
    python benchmarks/bench_recovery.py --faults kill kill-again --sessions 1
    python benchmarks/bench_recovery.py --model webrtc.flash_avatar:FlashPipeline   # a mock

    fresh_s     from the fault to the next frame that was generated after it, the worst session's
    loaded_s    from the call that failed until the model was loaded again; none if it was not lost
    lost_ms     speech that was not shown, of all sessions that live on
    ended       sessions that have ended

Exit status 1 if a session took longer than `--within` seconds and did not end with a reason. The
last line is JSON.
"""

import argparse
import asyncio
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from bench_session import MODEL, portrait_path
from card import commit, processor_name
from faulty_model import FAULTS, FELL
from session_probes import voice
from time_limit import add_limit, limit_s, time_limit

from letstalk_rt import __version__
from letstalk_rt.errors import EngineError, SessionClosed
from letstalk_rt.inference.isolated_pipeline import IsolatedPipeline
from letstalk_rt.inference.worker import ModelWorker
from letstalk_rt.portrait.image import prepare_portrait
from letstalk_rt.session.avatar import Avatar, AvatarSession
from letstalk_rt.session.playout import Playout
from letstalk_rt.threads import shorten_openmp_spin
from letstalk_rt.types import SAMPLE_RATE, AVFrame

CARE_S = 0.5
"""How often it is looked whether the model or its spare process must be started, as the server."""

SETTLE_S, AFTER_S, WAIT_S = 8.0, 2.0, 100.0
SPEECH_S = 2.0


@dataclass
class Viewer:
    """What the viewer of one session saw.

    Attributes:
        session: the session.
        made_s: when each frame was generated.
        spoken: samples of speech that were shown.
        error: why the session has ended.
    """

    session: AvatarSession
    made_s: list[float] = field(default_factory=list)
    spoken: int = 0
    error: str | None = None

    def show(self, frame: AVFrame) -> None:
        """Take a frame."""
        assert frame.stamps is not None, "live frames have them"
        self.made_s.append(frame.stamps.model_end_s)
        self.spoken += frame.spoken

    def fresh_s(self, fell_s: float) -> float | None:
        """Return when the first frame was generated after a time; None if there is none."""
        return next((at_s for at_s in self.made_s if at_s > fell_s), None)

    async def watch(self) -> None:
        """Show all frames, until cancelled or the session ends."""
        playout = Playout(
            self.show, played=self.session.notify_played, metrics=self.session.metrics
        )
        try:
            await playout.run(self.session)
        except EngineError as error:
            self.error = str(error.__cause__ or error)


async def measure(
    worker: ModelWorker[Any],
    avatar: Avatar,
    folder: Path,
    options: argparse.Namespace,
    rows: list[dict[str, Any]],
) -> None:
    """Add the figures of each fault to the rows."""
    pipeline: Any = worker.pipeline
    care = asyncio.create_task(care_for(worker))
    try:
        for fault in options.faults:
            await asyncio.sleep(0 if fault == "kill-again" else options.settle)
            async with contextlib.AsyncExitStack() as stack:
                each = [
                    avatar.session(seed=n, playback="reported") for n in range(options.sessions)
                ]
                viewers = [Viewer(await stack.enter_async_context(one)) for one in each]
                rows.append(await one_fault(fault, pipeline, viewers, folder))
            if not options.json:
                print(json.dumps(rows[-1]), flush=True)
    finally:
        care.cancel()
        await asyncio.wait([care])


async def one_fault(
    fault: str, pipeline: IsolatedPipeline, viewers: Sequence[Viewer], folder: Path
) -> dict[str, Any]:
    """Let a step fail while all sessions speak; return what followed."""
    restarts, faults = pipeline.health.restarts, dict(pipeline.health.faults)
    speech = voice(SPEECH_S)
    watches = [asyncio.create_task(viewer.watch()) for viewer in viewers]
    talks = [asyncio.create_task(talk(viewer.session, speech)) for viewer in viewers]
    await until(lambda: all(viewer.spoken for viewer in viewers))
    (folder / FELL).unlink(missing_ok=True)
    (folder / fault).touch()
    await until(lambda: not (folder / fault).exists())
    fell_s = float((folder / FELL).read_text())
    await until(lambda: all(viewer.fresh_s(fell_s) or viewer.error for viewer in viewers))
    await asyncio.wait(talks)
    await asyncio.sleep(AFTER_S)
    for watch in watches:
        watch.cancel()
    await asyncio.wait(watches)
    times = [viewer.fresh_s(fell_s) for viewer in viewers]
    took_s = [at_s - fell_s for at_s in times if at_s is not None]
    lost = sum(max(0, len(speech) - viewer.spoken) for viewer in viewers if not viewer.error)
    was_lost = pipeline.health.restarts > restarts
    return {
        "fault": fault,
        "fresh_s": round(max(took_s), 3) if took_s else None,
        "loaded_s": round(pipeline.health.outage_s, 3) if was_lost else None,
        "lost_ms": round(1000 * lost / SAMPLE_RATE),
        "ended": [viewer.error for viewer in viewers if viewer.error],
        "counted": {
            str(kind): count - faults[kind]
            for kind, count in pipeline.health.faults.items()
            if count > faults[kind]
        },
        "load_1min": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
    }


async def talk(session: AvatarSession, speech: np.ndarray) -> None:
    """Push speech as fast as the session takes it, unless that ends."""
    with contextlib.suppress(SessionClosed):
        await session.push_audio(speech, SAMPLE_RATE)
        await session.end_segment()


async def care_for(worker: ModelWorker[Any]) -> None:
    """Start the model and its spare process when they are needed, as the server does."""
    pipeline: Any = worker.pipeline
    while True:
        await asyncio.sleep(CARE_S)
        if pipeline.is_process_due:
            with contextlib.suppress(EngineError, OSError):
                await asyncio.wrap_future(worker.submit(pipeline.start_due))


async def until(condition: Any) -> None:
    """Wait until something has happened.

    Raises:
        TimeoutError: it takes too long.
    """
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 (what it waits for happens in another process)
            await asyncio.sleep(0.005)


def is_good(row: dict[str, Any], sessions: int, within_s: float) -> bool:
    """Return whether all sessions went on in time, or ended with a reason."""
    if len(row["ended"]) == sessions:
        return True
    return row["fresh_s"] is not None and row["fresh_s"] <= within_s


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--faults", nargs="+", choices=FAULTS, default=FAULTS, help="in this order (all)")
    add("--sessions", type=int, default=4, help="that speak at the same time (%(default)s)")
    add("--within", type=float, default=5.0, help="seconds until frames are fresh (%(default)g)")
    add("--settle", type=float, default=SETTLE_S, help="seconds before each fault (%(default)g)")
    add("--model", default=MODEL, help="the function that loads it, as module:name")
    add("--size", type=int, default=512, help="longer side of the frames, px (%(default)s)")
    add("--threads", type=int, help="CPU threads of the model (torch's choice)")
    add("--portrait", type=Path, help="an image (the first default avatar)")
    add("-o", "--output", type=Path, help="write the JSON to a file as well")
    add_limit(parser)
    add("--json", action="store_true", help="print the JSON line only")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the figures of each fault and the JSON line; return 1 if a bar was missed."""
    shorten_openmp_spin()
    options = parse(argv)
    result: dict[str, Any] = {
        "benchmark": "recovery",
        "device": processor_name(),
        "cores": os.cpu_count(),
        "version": __version__,
        "commit": commit(),
        "sessions": options.sessions,
        "size": options.size,
    }
    rows: list[dict[str, Any]] = []
    with (
        time_limit(limit_s(options, 300.0), result),
        tempfile.TemporaryDirectory(prefix="letstalk-faults-") as name,
    ):
        named: dict[str, Any] = {"model": options.model, "folder": name}
        if options.threads is not None:
            named["threads"] = options.threads
        began_s = time.monotonic()
        pipeline = IsolatedPipeline("faulty_model:FaultyModel.load", named)
        result["first_load_s"] = round(time.monotonic() - began_s, 2)
        with contextlib.closing(pipeline):
            path = portrait_path(options.portrait)
            portrait = prepare_portrait(path, pipeline.finder, size=options.size)
            worker = ModelWorker(pipeline)
            avatar = Avatar.from_pipeline(pipeline, portrait, worker=worker)
            with contextlib.closing(avatar):
                asyncio.run(measure(worker, avatar, Path(name), options, rows))
                worker.shutdown()
    good = all(is_good(row, options.sessions, options.within) for row in rows)
    result |= {"faults": rows, "met": good and "partial" not in result}
    text = json.dumps(result)
    if options.output is not None:
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(text)
    return 0 if result["met"] else 1


if __name__ == "__main__":
    sys.exit(main())
