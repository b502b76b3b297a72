"""Writes the README's table of figures from the files in benchmarks/results/.

    python benchmarks/readme_table.py            # rewrites the table in README.md
    python benchmarks/readme_table.py --check    # status 1 where it is not up to date

Each row names its file. A benchmark that has no result yet has no row.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- figures: make readme -->", "<!-- end of figures -->"

Row = tuple[str, str]


def main(argv: Sequence[str] | None = None) -> int:
    """Rewrite the table, or say that it is old."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing")
    options = parser.parse_args(argv)
    readme = ROOT / "README.md"
    old = readme.read_text()
    new = with_table(old, RESULTS)
    if options.check:
        print("up to date" if old == new else "the table is old: make readme")
        return int(old != new)
    readme.write_text(new)
    return 0


def with_table(text: str, results: Path) -> str:
    """Give the text with the table between its marks made anew."""
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert end, f"the README has no {BEGIN} ... {END}"
    lines = ["| what | measured | where |", "|---|---|---|", *table(results)]
    return "\n".join([before + BEGIN, *lines, END + after])


def table(results: Path) -> Iterator[str]:
    """Give the rows of all results that are there."""
    for kind, rows_of in KINDS.items():
        for path in sorted(results.glob(f"{kind}*.json")):
            result = _read(path)
            for what, measured in rows_of(result, path.stem):
                where = f"[{path.stem}](benchmarks/results/{path.name})"
                yield f"| {what} | {measured} | {where} |"


def stages(result: dict[str, Any], name: str) -> Iterator[Row]:
    """Speed of the model alone."""
    if result.get("preset") != "tiny" or result.get("sessions", 1) != 1:
        return
    window, width = result["window_ms"], result["size"][0]
    yield (
        f"sound to composited {width} px frame, {result['threads']} cores of {result['device']}",
        f"{result['fps']:.0f} frames a second; a window of {result['budget_ms']:.0f} ms takes "
        f"{window['p50']:.0f} ms (p50), {window['p99']:.0f} ms (p99)",
    )


def session(result: dict[str, Any], name: str) -> Iterator[Row]:
    """One live session, without network."""
    what = "engine alone, with a model that costs nothing: " if "fake" in name else "live session: "
    yield from _percentiles(
        result,
        (
            ("mic_to_lips_ms", what + "sound to lips"),
            ("interrupt_to_last_frame_ms", what + "interrupt to last stale frame"),
            ("interrupt_to_silence_ms", what + "interrupt to silence"),
            ("av_skew_ms", what + "picture against sound at release"),
            ("loop_lag_ms", what + "event loop's lag"),
        ),
    )
    if "fake" not in name and _known(result.get("first_frame_cold_ms")):
        cold_s = result["first_frame_cold_ms"] / 1000
        warm_ms = result.get("first_frame_warm_ms", 0)
        yield what + "start to first frame", f"{cold_s:.1f} s cold, {warm_ms:.0f} ms warm"


def webrtc(result: dict[str, Any], name: str) -> Iterator[Row]:
    """What a browser or peer gets."""
    yield from _percentiles(
        result,
        (
            ("first_frame_ms", "WebRTC, loopback: offer to first frame"),
            ("mic_to_lips_ms", "WebRTC, loopback: microphone to lips"),
            ("av_skew_ms", "WebRTC, loopback: picture against sound at the receiver"),
        ),
    )
    if _known(result.get("fps")):
        repeated = 100 * result.get("repeated_ratio", 0)
        yield (
            "WebRTC, loopback: frames",
            f"{result['fps']:.1f} a second, {repeated:.1f} % repeated, "
            f"{100 * result.get('transport_cpu_core', 0):.0f} % of a core for transport in VP8, "
            f"{100 * result.get('transport_cpu_core_h264', 0):.0f} % in H.264",
        )


def quality(result: dict[str, Any], name: str) -> Iterator[Row]:
    """How good the model is."""
    yield (
        "mouth opening against the true video, unseen people: filmed clips / GRID / another "
        "clip's sound",
        f"r = {result['mouth_corr']:.2f} / {result['mouth_corr_grid']:.2f} / "
        f"{result['mouth_corr_shuffled']:.2f}",
    )
    yield (
        "reconstruction of unseen people: whole / mouth",
        f"{result['psnr']:.1f} / {result['psnr_mouth']:.1f} dB, "
        f"sharpness {result['sharpness_ratio']:.2f}",
    )


KINDS: dict[str, Callable[[dict[str, Any], str], Iterator[Row]]] = {
    "bench_stages": stages,
    "bench_session": session,
    "bench_webrtc": webrtc,
    "eval-tiny": quality,
}
"""Beginnings of file names, and what they hold."""


def _percentiles(result: dict[str, Any], rows: Sequence[Row]) -> Iterator[Row]:
    for key, what in rows:
        value = result.get(key)
        if isinstance(value, dict) and _known(value.get("p50")) and _known(value.get("p95")):
            worst = next((name for name in ("p99", "max") if _known(value.get(name))), None)
            tail = f", {value[worst]:.0f} ms ({worst})" if worst else ""
            yield what, f"{value['p50']:.0f} ms (p50), {value['p95']:.0f} ms (p95){tail}"


def _read(path: Path) -> dict[str, Any]:
    """Read a result: JSON, or text whose last line is JSON."""
    text = path.read_text().strip()
    result: dict[str, Any] = json.loads(text if text[0] == "{" else text.splitlines()[-1])
    return result


def _known(value: Any) -> bool:
    return isinstance(value, int | float) and value == value


if __name__ == "__main__":
    sys.exit(main())
