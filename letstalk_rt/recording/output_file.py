"""A video file that is being written: where, into which container, and what it states."""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import av
from av.container import OutputContainer

from letstalk_rt.errors import ConfigError
from letstalk_rt.recording.credentials import SigningCredentials
from letstalk_rt.recording.provenance import Provenance
from letstalk_rt.recording.signing import media_type_of, sign_recording

CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}


class Signing(TypedDict):
    """What writers of files take to state how a file was made, and to sign it."""

    provenance: Provenance
    credentials: SigningCredentials | None


@dataclass(frozen=True, slots=True)
class OutputFile:
    """A file that appears under its name when it is complete, with its provenance in its metadata.

    Attributes:
        path: a path that ends in .mp4, .m4v, .mov or .mkv.
        provenance: what metadata and signature state.
        credentials: sign the file with these; None leaves it unsigned.
        crash_safe: write under the name from the beginning, so that a crash leaves what was
            written.

    Raises:
        ConfigError: the extension of `path` is not supported, or cannot be signed.
    """

    path: Path
    provenance: Provenance
    credentials: SigningCredentials | None = None
    crash_safe: bool = False

    def __post_init__(self) -> None:
        if self.path.suffix.lower() not in CONTAINERS:
            raise ConfigError(
                f"The output {self.path.name} ends in {self.path.suffix!r}; expected one of "
                f"{', '.join(CONTAINERS)}."
            )
        if self.credentials is not None:
            media_type_of(self.path)

    @property
    def container(self) -> str:
        """FFmpeg's name of the container."""
        return CONTAINERS[self.path.suffix.lower()]

    @property
    def temporary(self) -> Path:
        """Where the file is written."""
        return self.path if self.crash_safe else self.path.with_name(self.path.name + ".part")

    def open(self) -> OutputContainer:
        """Open the file and set its metadata.

        Raises:
            ConfigError: the file cannot be written.
        """
        if self.path.is_dir():
            raise ConfigError(f"Cannot write {self.path}: it is a folder. Give the path of a file.")
        options = _options(self.container, self.crash_safe)
        try:
            opened = av.open(str(self.temporary), "w", format=self.container, options=options)
        except OSError as error:
            raise self.cannot_write(error) from error
        opened.metadata.update(self.provenance.metadata())
        return opened

    def complete(self, opened: OutputContainer) -> None:
        """Close and sign the file, and give it its name. If it cannot be signed, it stays unsigned.

        Raises:
            ConfigError: the file cannot be written or signed, for example because the disk is full.
        """
        try:
            opened.close()
        except OSError as error:
            raise self.cannot_write(error) from error
        try:
            if self.credentials is not None:
                sign_recording(self.temporary, self.credentials, self.provenance, name=self.path)
        finally:
            self._move_into_place()

    def discard(self, opened: OutputContainer) -> None:
        """Close the file after an error, and remove what is not under its name yet."""
        with suppress(OSError, ValueError):  # the first error is the one to report
            opened.close()
        self.remove_temporary()

    def remove_temporary(self) -> None:
        """Remove the file unless it is under its name."""
        if not self.crash_safe:
            self.temporary.unlink(missing_ok=True)

    def cannot_write(self, error: OSError) -> ConfigError:
        """Return what to raise when the file cannot be written."""
        reason = error.strerror or error
        return ConfigError(
            f"Cannot write {self.path}: {reason}. Choose a folder that exists, is writable "
            "and has free space."
        )

    def _move_into_place(self) -> None:
        try:
            if not self.crash_safe:
                os.replace(self.temporary, self.path)
        except OSError as error:
            raise self.cannot_write(error) from error


def _options(container: str, crash_safe: bool) -> dict[str, str]:
    if container == "matroska":
        return {"cluster_time_limit": "1000", "flush_packets": "1"} if crash_safe else {}
    if not crash_safe:
        return {"movflags": "+faststart"}
    # Fragments while recording, a plain file at the end, so that players know its length.
    flags = "+frag_keyframe+delay_moov+hybrid_fragmented"
    return {"movflags": flags, "flush_packets": "1"}
