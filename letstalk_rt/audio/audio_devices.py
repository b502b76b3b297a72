"""Finding sound devices. PortAudio is loaded when it is first asked for."""

import sys
from typing import Any, Literal

from letstalk_rt.errors import ConfigError, DependencyError

DeviceKind = Literal["input", "output"]


def load_sounddevice() -> Any:
    """Import `sounddevice`.

    Raises:
        DependencyError: it, or the PortAudio library below it, is not installed.
    """
    try:
        import sounddevice
    except ImportError as error:
        raise DependencyError(
            "Sound devices need the package 'sounddevice'; install it with: "
            "pip install 'letstalk-rt[mic]'."
        ) from error
    except OSError as error:
        raise DependencyError(
            "Sound devices need the PortAudio library, which is not installed. "
            f"Install it with: {_portaudio()}."
        ) from error
    return sounddevice


def find_device(kind: DeviceKind, wanted: str | int | None = None) -> dict[str, Any]:
    """Give a device by number, by a part of its name, or the default one.

    Args:
        kind: `input` for microphones, `output` for loudspeakers.
        wanted: number or part of the name, as `letstalk doctor` lists them; None is the default.

    Returns:
        What PortAudio says of it: `index`, `name`, `default_samplerate` and more.

    Raises:
        ConfigError: no such device, or several.
        DependencyError: there is no device of this kind, or no PortAudio.
    """
    sounddevice = load_sounddevice()
    if not list_devices(kind):
        raise DependencyError(
            f"This machine has no sound {kind} device. Connect one"
            + (", or start PulseAudio or PipeWire." if sys.platform == "linux" else ".")
        )
    number = int(wanted) if isinstance(wanted, str) and wanted.isdigit() else wanted
    try:
        found: dict[str, Any] = sounddevice.query_devices(number, kind)
    except (ValueError, sounddevice.PortAudioError) as error:
        names = "; ".join(f"{d['index']} {d['name']}" for d in list_devices(kind))
        raise ConfigError(
            f"No single sound {kind} device fits {wanted!r}. Name one of: {names}."
        ) from error
    return found


def list_devices(kind: DeviceKind) -> list[dict[str, Any]]:
    """Give all devices of a kind.

    Raises:
        DependencyError: `sounddevice` or PortAudio is not installed.
    """
    return [d for d in load_sounddevice().query_devices() if d[f"max_{kind}_channels"] > 0]


def _portaudio() -> str:
    if sys.platform == "darwin":
        return "brew install portaudio"
    return "apt install libportaudio2 (Debian, Ubuntu) or dnf install portaudio (Fedora)"
