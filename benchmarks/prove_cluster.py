"""Shows that a cluster places, drains and survives: three workers, two HAProxies.

Each of the five, and this program as the visitor, is a host of its own: a network namespace where
the machine allows it, else an address of loopback. The workers are real servers whose model shows a
still picture. Exits with 1 if a bound is missed.

    python benchmarks/prove_cluster.py --page -o benchmarks/results/cluster-2core.json
    python benchmarks/prove_cluster.py --placements 40

The last line is JSON.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
from cluster_stage.cluster import Cluster, running, wait_for
from cluster_stage.hosts import open_hosts
from cluster_stage.page import resume_elsewhere
from cluster_stage.visitors import (
    Peer,
    clients,
    end_session,
    join_socket,
    open_session,
    worker_of,
)
from time_limit import add_limit, limit_s, time_limit

from letstalk_rt import __version__

WORKERS, PROXIES, PLACES = 3, 2, 6
VISITORS = 30
"""Visitors that want a session at the same time: more than the 18 places."""

FULL_S = 1.0
NOTICED_S = 4.0
RESUMED_S = 2.0
RETRY_S = 0.2
MOST_EARLY_REFUSALS = 20

Clients = list[httpx.AsyncClient]
Figures = dict[str, Any]


async def placements(cluster: Cluster, proxies: Clients, total: int) -> Figures:
    """Place sessions from many visitors at once, and watch how many each worker has."""
    left, refused, most = total, 0, Counter[str]()
    placed: Counter[str] = Counter()
    took_s: list[float] = []
    done = asyncio.Event()

    async def visit(number: int) -> None:
        nonlocal left, refused
        chance = random.Random(number)
        while left > 0:
            left -= 1
            session, seconds = await open_session(chance.choice(proxies))
            took_s.append(seconds)
            if session is None:
                left, refused = left + 1, refused + 1
                await asyncio.sleep(RETRY_S)
                continue
            placed[worker_of(session)] += 1
            await asyncio.sleep(chance.uniform(0.1, 0.6))
            await end_session(chance.choice(proxies), session)

    async def watch() -> None:
        while not done.is_set():
            for name, count in (await _sessions(cluster)).items():
                most[name] = max(most[name], count)
            await asyncio.sleep(0.02)

    watching = asyncio.create_task(watch())
    await asyncio.gather(*[visit(number) for number in range(VISITORS)])
    done.set()
    await watching
    return {
        "placed": dict(sorted(placed.items())),
        "refused_while_full": refused,
        "most_sessions": dict(sorted(most.items())),
        "places": cluster.places,
        "answer_ms": _quantiles(took_s),
        "holds": sum(placed.values()) == total and max(most.values()) <= cluster.places,
    }


async def full_cluster(cluster: Cluster, proxies: Clients) -> Figures:
    """Fill all places one after the other, and time the refusals that follow."""
    opened, refused = [], 0
    while len(opened) < WORKERS * PLACES and refused < MOST_EARLY_REFUSALS:
        session, _ = await open_session(proxies[len(opened) % PROXIES])
        if session is None:  # the last place of a worker is known a moment after it became free
            refused += 1
            await asyncio.sleep(RETRY_S)
            continue
        opened.append(session)
    filled = len(opened)
    took_s, wrong = [], 0
    for number in range(40):
        session, seconds = await open_session(proxies[number % PROXIES])
        took_s.append(seconds)
        wrong += session is not None
        await asyncio.sleep(0.05)  # over the time in which the agent checks notice
    await asyncio.gather(*[end_session(proxies[0], session) for session in opened])
    await _until_free(cluster)
    return {
        "filled": filled,
        "refused_early": refused,
        "refusal_ms": _quantiles(took_s),
        "holds": filled == WORKERS * PLACES and not wrong,
        "in_time": max(took_s) < FULL_S,
    }


async def lost_worker(cluster: Cluster, proxies: Clients) -> Figures:
    """Kill a worker while visitors come, and see when the proxies know and what visitors get."""
    failed: Counter[str] = Counter()
    stop = asyncio.Event()

    async def visit(number: int) -> None:
        while not stop.is_set():
            try:
                session, _ = await open_session(proxies[number % PROXIES])
                failed["refused"] += session is None
                if session is not None:
                    await end_session(proxies[number % PROXIES], session)
            except httpx.HTTPError as error:
                failed[type(error).__name__] += 1
            await asyncio.sleep(0.05)

    visiting = [asyncio.create_task(visit(number)) for number in range(4)]
    await asyncio.sleep(0.5)
    lost = await _session_on("w3", proxies)
    cluster.stop("w3", signal.SIGKILL)
    await asyncio.to_thread(cluster.processes["w3"].wait, 10)
    gone = await proxies[0].get(f"/v1/sessions/{lost}")
    noticed_s = [
        await asyncio.to_thread(
            wait_for, lambda name=name: cluster.states(name)["w3"].startswith("DOWN"), 10
        )
        for name in ("p1", "p2")
    ]
    stop.set()
    await asyncio.gather(*visiting)
    cluster.start_workers("w3")
    await _until_free(cluster)
    return {
        "noticed_s": round(sum(noticed_s), 2),
        "answer_for_its_session": gone.json()["code"],
        "failed_requests": dict(failed),
        "holds": not +failed and gone.json()["code"] == "unknown-session",
        "in_time": sum(noticed_s) < NOTICED_S,
    }


async def restarted_proxy(cluster: Cluster, proxies: Clients) -> Figures:
    """Stop a proxy and start it again, while sessions live that came through it."""
    session = await _session_on("w1", proxies)
    spoken = await _session_on("w2", proxies)
    peer = await Peer(session).join(proxies[0])
    socket, _ = await join_socket(cluster.url("p1"), spoken)
    cluster.stop("p1")
    await asyncio.to_thread(cluster.processes["p1"].wait, 10)
    await peer.until_frames(25)
    other = await proxies[1].get(f"/v1/sessions/{session}")
    await socket.close()  # type: ignore[attr-defined]
    again, resumed = await join_socket(cluster.url("p2"), spoken)
    cluster.start_proxy("p1")
    await asyncio.to_thread(wait_for, lambda: len(cluster.weights("p1")) == WORKERS, 20)
    back = await proxies[0].get(f"/v1/sessions/{session}")
    await peer.until_frames(25)
    figures = {
        "frames_received": peer.frames,
        "websocket_resumed": resumed,
        "statuses": [other.status_code, back.status_code],
    }
    await peer.close()
    await again.close()  # type: ignore[attr-defined]
    for name in (session, spoken):
        await end_session(proxies[0], name)
    await _until_free(cluster)
    return figures | {"holds": resumed and figures["statuses"] == [200, 200]}


async def own_address(cluster: Cluster, proxies: Clients) -> Figures:
    """See from which address the media of each worker comes."""
    if cluster.hosts.reason is not None:
        return {"skipped": f"on loopback all workers share an address: {cluster.hosts.reason}"}
    named, frames = {}, {}
    for number in range(WORKERS):
        name = f"w{number + 1}"
        session = await _session_on(name, proxies)
        peer = await Peer(session).join(proxies[number % PROXIES])
        await peer.until_frames(10)
        named[name], frames[name] = sorted(peer.candidates), peer.frames
        await peer.close()
        await end_session(proxies[0], session)
    await _until_free(cluster)
    own = {name: [cluster.hosts.address(name)] for name in named}
    return {
        "candidates": named,
        "frames": frames,
        "proxy_addresses": [cluster.hosts.address(name) for name in ("p1", "p2")],
        "holds": named == own,
    }


async def drained_worker(cluster: Cluster, proxies: Clients) -> Figures:
    """Drain a worker that has sessions, and see that they go on, and that no new ones come."""
    kept = [await _session_on("w1", proxies) for _ in range(3)]
    peer = await Peer(kept[0]).join(proxies[1])
    cluster.stop("w1")
    for name in ("p1", "p2"):
        await asyncio.to_thread(
            wait_for, lambda name=name: cluster.states(name)["w1"].startswith("DRAIN"), 10
        )
    others = [await open_session(proxies[number % PROXIES]) for number in range(PLACES)]
    placed = [worker_of(session) for session, _ in others if session is not None]
    await peer.until_frames(25)
    statuses = [
        (await client.get(f"/v1/sessions/{name}")).status_code
        for name in kept
        for client in proxies
    ]
    alive = cluster.processes["w1"].poll() is None
    await peer.close()
    for name in (*kept, *(session for session, _ in others if session is not None)):
        await end_session(proxies[0], name)
    began_s = time.monotonic()
    status = await asyncio.to_thread(cluster.processes["w1"].wait, 60)
    return {
        "placed_meanwhile": dict(Counter(placed)),
        "statuses_of_its_sessions": dict(Counter(map(str, statuses))),
        "frames_received": peer.frames,
        "exit_status": status,
        "exit_after_last_session_s": round(time.monotonic() - began_s, 2),
        "holds": alive
        and status == 0
        and "w1" not in placed
        and len(placed) == PLACES
        and set(statuses) == {200},
    }


async def _sessions(cluster: Cluster) -> dict[str, int]:
    async with httpx.AsyncClient() as client:
        names = [f"w{number + 1}" for number in range(WORKERS)]
        answers = await asyncio.gather(
            *[client.get(f"{cluster.url(name)}/healthz") for name in names]
        )
    return {name: answer.json()["sessions"] for name, answer in zip(names, answers, strict=True)}


async def _session_on(worker: str, proxies: Clients) -> str:
    """Open a session on a certain worker; those on others are ended again."""
    others = []
    while True:
        session, _ = await open_session(proxies[0])
        if session is not None and worker_of(session) == worker:
            break
        if session is not None:
            others.append(session)
        else:
            await asyncio.sleep(RETRY_S)
    for other in others:
        await end_session(proxies[0], other)
    return session


async def _until_free(cluster: Cluster) -> None:
    for name in ("p1", "p2"):
        await asyncio.to_thread(cluster.wait_ready, name, WORKERS)


def _quantiles(seconds: Sequence[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    named = {"p50": len(ordered) // 2, "p95": int(len(ordered) * 0.95), "max": -1}
    return {name: round(1000 * ordered[index], 1) for name, index in named.items()}


async def prove(cluster: Cluster, total: int, figures: Figures) -> None:
    """Add the figures of all parts.

    Each has `holds`, unless it was skipped, for the facts, and `in_time` where a time is bounded.
    """
    parts: dict[str, Callable[[Cluster, Clients], Awaitable[Figures]]] = {
        "placements": lambda cluster, proxies: placements(cluster, proxies, total),
        "full_cluster": full_cluster,
        "own_address": own_address,
        "lost_worker": lost_worker,
        "restarted_proxy": restarted_proxy,
        "drained_worker": drained_worker,
    }
    async with clients([cluster.url("p1"), cluster.url("p2")]) as proxies:
        for name, part in parts.items():
            figures[name] = await part(cluster, proxies)
            print(f"{name}: {json.dumps(figures[name])}", flush=True)


def lost_under_a_page(number: signal.Signals) -> Figures:
    """End the worker of a live page by a signal, and time the page until it is live elsewhere."""
    with (
        open_hosts() as hosts,
        running(hosts, workers=2, proxies=1, places=PLACES, drain_s=0) as cluster,
    ):
        figures = resume_elsewhere(cluster, "p1", number)
    figures["holds"] = figures["stopped"] != figures["resumed_on"]
    figures["in_time"] = figures["without_picture_s"] < RESUMED_S
    print(f"page, {number.name}: {json.dumps(figures)}", flush=True)
    return figures


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all parts; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--placements", type=int, default=200, metavar="N")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="also write it here")
    add_limit(parser)
    parser.add_argument("--page", action="store_true", help="also the page, in Chromium")
    options = parser.parse_args(arguments)
    figures: Figures = {}
    report: dict[str, Any] = {"benchmark": "cluster"}
    with time_limit(limit_s(options, 600.0), report):
        with (
            open_hosts() as hosts,
            running(hosts, workers=WORKERS, proxies=PROXIES, places=PLACES, drain_s=120) as cluster,
        ):
            report["hosts"] = hosts.reason or "network namespaces"
            asyncio.run(prove(cluster, options.placements, figures))
        if options.page:
            figures["page"] = lost_under_a_page(signal.SIGTERM)
            figures["killed_page"] = lost_under_a_page(signal.SIGKILL)
    report |= {
        "workers": WORKERS,
        "proxies": PROXIES,
        "places_per_worker": PLACES,
        "ok": all(_is_ok(part) for part in figures.values()) and "partial" not in report,
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "version": __version__,
        **figures,
    }
    text = json.dumps(report)
    print(text)
    if options.output is not None:
        options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0 if report["ok"] else 1


def _is_ok(part: Figures) -> bool:
    return part.get("holds", True) and part.get("in_time", True)


if __name__ == "__main__":
    sys.exit(main())
