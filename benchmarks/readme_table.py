"""Writes the README's table of figures from the files in benchmarks/results/: the few that matter.

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
    """Rewrite the table, or report that it is out of date."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing")
    options = parser.parse_args(argv)
    readme = ROOT / "README.md"
    old = readme.read_text()
    new = with_table(old, RESULTS)
    if options.check:
        print("up to date" if old == new else "the table is out of date: make readme")
        return int(old != new)
    readme.write_text(new)
    return 0


def with_table(text: str, results: Path) -> str:
    """Return the text with the table between its marks made anew."""
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert end, f"the README has no {BEGIN} ... {END}"
    lines = ["| what | measured | where |", "|---|---|---|", *table(results)]
    return "\n".join([before + BEGIN, *lines, END + after])


def table(results: Path) -> Iterator[str]:
    """Yield the rows of all results that exist."""
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
        f"audio to composited {width} px frame, {result['threads']} cores of "
        f"{result['device']}{_instruction_set(result, name)}, {result['dtype']}",
        f"{result['fps']:.0f} frames per second; a window of {result['budget_ms']:.0f} ms takes "
        f"{window['p50']:.0f} ms (p50), {window['p99']:.0f} ms (p99)",
    )


def session(result: dict[str, Any], name: str) -> Iterator[Row]:
    """One live session, without network."""
    if "fake" not in name:
        yield from _percentiles(
            result,
            "interrupt_to_silence_ms",
            f"live session{_instruction_set(result, name)}: interrupt to silence",
        )


def webrtc(result: dict[str, Any], name: str) -> Iterator[Row]:
    """What a browser or peer gets."""
    receiver = result.get("receiver", "a peer").capitalize()
    where = f"WebRTC on one machine{_instruction_set(result, name)}, to {receiver}: "
    yield from _percentiles(result, "mic_to_lips_ms", where + "microphone to lips")
    if _known(result.get("fps")) and _known(result.get("av_skew_ms", {}).get("max")):
        repeated = 100 * result.get("repeated_ratio", 0)
        yield (
            where + "frames",
            f"{result['fps']:.1f} per second, {repeated:.1f} % repeated; audio and video at most "
            f"{result['av_skew_ms']['max']:.0f} ms apart",
        )


def quality(result: dict[str, Any], name: str) -> Iterator[Row]:
    """How good the model is."""
    yield (
        "mouth opening against the true video, people never seen in training: filmed clips "
        "without GRID / GRID's clips / both with the audio of another clip",
        f"r = {result['mouth_corr_filmed']:.2f} / {result['mouth_corr_grid']:.2f} / "
        f"{result['mouth_corr_shuffled']:.2f}",
    )


def whole_face(result: dict[str, Any], name: str) -> Iterator[Row]:
    """How like a filmed one the whole face moves, and what the denoiser has to do with it."""
    yield (
        "a classifier tells a second of motion of ours from a true one (0.50: never): filmed clips "
        "without GRID / GRID's clips / clips of other systems",
        f"{result['filmed_told']:.2f} / {result['grid_told']:.2f} / {result['generated_told']:.2f}",
    )
    yield (
        "variance of all shown landmarks that goes when the denoiser's output is zeros",
        f"{100 * result['without_denoiser_lost_variance']:.1f} %",
    )


KINDS: dict[str, Callable[[dict[str, Any], str], Iterator[Row]]] = {
    "bench_stages": stages,
    "bench_webrtc": webrtc,
    "bench_session": session,
    "eval-tiny": quality,
    "whole-face-tiny": whole_face,
}
"""Beginnings of file names, and what they hold."""

INSTRUCTION_SETS = {"amx": "AMX", "avx512": "AVX-512", "avx2": "AVX2", "neon": "NEON"}
"""Ends of file names, and the instruction set of the CPU that they stand for."""


def _instruction_set(result: dict[str, Any], name: str) -> str:
    """Return with which instruction set a result was measured: the processor's own, or a limit.

    A new processor that is limited to AVX2 is no old one.
    """
    found = name.rpartition("-")[2]
    known = INSTRUCTION_SETS.get(found)
    is_limited = result.get("emulated", found != "amx")
    return f" {'limited to' if is_limited else 'with'} {known}" if known else ""


def _percentiles(result: dict[str, Any], key: str, what: str) -> Iterator[Row]:
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
