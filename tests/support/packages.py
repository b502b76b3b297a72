"""System packages that tests want: what is missing skips them, by its name.

At the end of a run, `conftest.py` says how to install what tests were skipped for.
"""

import ctypes
import ctypes.util
import shutil
from collections.abc import Callable, Iterable, Mapping

import pytest

from letstalk_rt.errors import DependencyError
from letstalk_rt.sinks.srt import load_libsrt


def has_program(*names: str) -> Callable[[], bool]:
    """Return what tells whether one of these programs is installed."""
    return lambda: any(shutil.which(name) for name in names)


def has_portaudio() -> bool:
    """Return whether audio devices can be asked for."""
    try:
        return bool(ctypes.CDLL(ctypes.util.find_library("portaudio") or "libportaudio.so.2"))
    except OSError:
        return False


def has_libsrt() -> bool:
    """Return whether SRT can be used."""
    try:
        load_libsrt()
    except DependencyError:
        return False
    return True


PACKAGES: Mapping[str, Callable[[], bool]] = {
    "chromium": has_program("chromium", "chromium-browser", "google-chrome"),
    "coturn": has_program("turnserver"),
    "espeak-ng": has_program("espeak-ng"),
    "ffmpeg": has_program("ffmpeg"),
    "haproxy": has_program("haproxy"),
    "iproute2": has_program("ip"),
    "libportaudio2": has_portaudio,
    "libsrt1.5-openssl": has_libsrt,
    "nodejs": has_program("node"),
    "npm": has_program("npm"),
}
"""Debian packages, and what tells whether each is there."""


def needs(package: str) -> pytest.MarkDecorator:
    """Return a mark that skips a test where a package is missing."""
    return pytest.mark.skipif(not PACKAGES[package](), reason=f"needs {package}")


def missing_packages(reasons: Iterable[str]) -> list[str]:
    """Return the packages that are not installed and that skipped tests have named."""
    words = " ".join(reasons).lower()
    return sorted(name for name, is_there in PACKAGES.items() if name in words and not is_there())
