"""Finding audio devices with PortAudio, which is loaded on first use."""

import sys
from typing import Any, Literal

from letstalk_rt.errors import ConfigError, DependencyError
from letstalk_rt.extras import pip_install

DeviceKind = Literal["input", "output"]


def load_sounddevice() -> Any:
    """Import `sounddevice`.

    Raises:
        DependencyError: the package or the PortAudio library is not installed.
    """
    try:
        import sounddevice
    except ImportError as error:
        raise DependencyError(
            f"Audio devices need the package 'sounddevice'; install it with: {pip_install('mic')}."
        ) from error
    except OSError as error:
        raise DependencyError(
            "Audio devices need the PortAudio library, which is not installed. "
            f"Install it with: {_portaudio_package()}."
        ) from error
    return sounddevice


def find_device(kind: DeviceKind, wanted: str | int | None = None) -> dict[str, Any]:
    """Return the device with this number, the one with this part of a name, or the default.

    Args:
        kind: `input` for microphones, `output` for loudspeakers.
        wanted: number or part of the name, as `letstalk doctor` lists them; None for the default.

    Returns:
        PortAudio's description: `index`, `name`, `default_samplerate` and more.

    Raises:
        ConfigError: no device matches, or several do.
        DependencyError: there is no device of this kind, or PortAudio is not installed.
    """
    sounddevice = load_sounddevice()
    if not list_devices(kind):
        raise DependencyError(
            f"This machine has no audio {kind} device. Connect one"
            + (", or start PulseAudio or PipeWire." if sys.platform == "linux" else ".")
        )
    number = int(wanted) if isinstance(wanted, str) and wanted.isdigit() else wanted
    try:
        found: dict[str, Any] = sounddevice.query_devices(number, kind)
    except (ValueError, sounddevice.PortAudioError) as error:
        names = "; ".join(f"{d['index']} {d['name']}" for d in list_devices(kind))
        raise ConfigError(
            f"{wanted!r} does not match exactly one audio {kind} device. Choose one of: {names}."
        ) from error
    return found


def list_devices(kind: DeviceKind) -> list[dict[str, Any]]:
    """Return all devices of a kind.

    Raises:
        DependencyError: `sounddevice` or PortAudio is not installed.
    """
    return [d for d in load_sounddevice().query_devices() if d[f"max_{kind}_channels"] > 0]


def _portaudio_package() -> str:
    if sys.platform == "darwin":
        return "brew install portaudio"
    return "apt install libportaudio2 (Debian, Ubuntu) or dnf install portaudio (Fedora)"
