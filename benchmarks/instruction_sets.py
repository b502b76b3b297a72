"""Limits what instruction sets of the processor torch uses, to measure as on an older processor.

The libraries read the limits when they are loaded, so a benchmark runs itself again with them.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

LIMITS: Mapping[str, Mapping[str, str]] = {
    "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
    "avx512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16", "ATEN_CPU_CAPABILITY": "avx512"},
    "amx": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_AMX", "ATEN_CPU_CAPABILITY": "avx512"},
}
"""Variables of oneDNN and ATen for each instruction set."""

FLAGS = {"avx2": "avx2", "avx512": "avx512f", "amx": "amx_tile"}
"""The processor's own names for them."""


def add_option(parser: argparse.ArgumentParser) -> None:
    """Add the option `--isa`."""
    parser.add_argument(
        "--isa",
        choices=tuple(LIMITS),
        help="instruction set of the processor that is used at most (all that it has)",
    )


def environment(isa: str | None) -> dict[str, str]:
    """Return the environment of a process that is limited to an instruction set.

    Raises:
        SystemExit: this processor does not have it.
    """
    if isa is None:
        return dict(os.environ)
    known = processor_flags()
    if known is not None and FLAGS[isa] not in known:
        has = ", ".join(name for name in LIMITS if FLAGS[name] in known)
        raise SystemExit(f"this processor has no {isa}; it has: {has or 'none of these'}")
    return os.environ | LIMITS[isa]


def is_emulated(isa: str | None) -> bool:
    """Return whether the processor has more than an instruction set that it is limited to.

    Then its figures are not those of a processor that has no more.
    """
    known = processor_flags() or frozenset()
    names = list(LIMITS)
    return isa is not None and any(FLAGS[one] in known for one in names[names.index(isa) + 1 :])


def run_limited(isa: str | None, script: str, words: Sequence[str]) -> None:
    """Run the script again where the limits of an instruction set are not in force, and exit.

    Args:
        isa: the instruction set; None for no limit.
        script: path of the script.
        words: its command line.

    Raises:
        SystemExit: the script was run, or this processor does not have the instruction set.
    """
    limited = environment(isa)
    if limited != dict(os.environ):
        raise SystemExit(subprocess.call([sys.executable, script, *words], env=limited))


def processor_flags() -> frozenset[str] | None:
    """Return the instruction sets of the processor; None where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    flags = next((line for line in lines if line.startswith("flags")), "")
    return frozenset(flags.partition(":")[2].split())
