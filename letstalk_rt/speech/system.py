"""Speech by what the system has: espeak-ng or flite on Linux, `say` on macOS, SAPI on Windows."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import aclosing
from functools import cache
from pathlib import Path

from letstalk_rt.errors import ConfigError, DependencyError
from letstalk_rt.speech.commands import Command, run_command
from letstalk_rt.speech.interface import Speech, prepare_text

_INSTALL = {
    "linux": "apt install espeak-ng (Debian, Ubuntu) or dnf install espeak-ng (Fedora)",
    "darwin": "the command 'say', which is part of macOS",
    "win32": "PowerShell with System.Speech, which is part of Windows",
}
_VOICE = re.compile(r"[\w+.() -]{1,100}")
_NO_BRACKETS = str.maketrans("[]", "()")

# Reads the text from its input as UTF-8 and writes a WAV file to its output.
_SAPI = """
$in = New-Object IO.StreamReader([Console]::OpenStandardInput(), [Text.Encoding]::UTF8)
$text = $in.ReadToEnd()
Add-Type -AssemblyName System.Speech
$voice = New-Object System.Speech.Synthesis.SpeechSynthesizer
if ($args[0]) { $voice.SelectVoice($args[0]) }
$wave = New-Object IO.MemoryStream
$voice.SetOutputToWaveStream($wave)
$voice.Speak($text)
$out = [Console]::OpenStandardOutput()
$wave.WriteTo($out)
$out.Flush()
"""


class SystemSpeech:
    """The text to speech of the operating system.

    Args:
        voice: name of a voice, as the program lists them; None for its default.
        platform: as `sys.platform`.
        which: finds a program.

    Raises:
        DependencyError: none is installed; the message says what to install.
        ConfigError: `voice` is not a name, or the program does not know it.
    """

    def __init__(
        self,
        voice: str | None = None,
        *,
        platform: str = sys.platform,
        which: Callable[[str], str | None] = shutil.which,
    ) -> None:
        if voice is not None and (not _VOICE.fullmatch(voice) or voice.startswith("-")):
            raise ConfigError(f"{voice!r} is not the name of a voice of this system")
        self._voice = voice
        self._program = find_program(platform, which)
        if self._program is None:
            known = _INSTALL.get(platform, _INSTALL["linux"])
            raise DependencyError(f"Speaking text needs a voice. Install one: {known}.")
        kind = Path(self._program).stem.lower()
        self.name = {"ffmpeg": "flite", "powershell": "sapi"}.get(kind, kind)
        if voice is not None and self.name == "espeak-ng":
            _check_espeak_voice(self._program, voice)

    async def stream(self, text: str) -> Speech:
        """Speak a text; see `TextToSpeech.stream`."""
        prepared = prepare_text(text)
        speak = {
            "espeak-ng": self._by_espeak,
            "flite": self._by_flite,
            "say": self._by_say,
            "sapi": self._by_sapi,
        }[self.name]
        async with aclosing(speak(prepared)) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                yield chunk

    @property
    def _path(self) -> str:
        assert self._program is not None
        return self._program

    def _by_espeak(self, text: str) -> Speech:
        words = [self._path, "--stdin", "--stdout", *self._voice_option("-v")]
        # Double brackets would be read as phonemes; of three, two would be left by a replacement.
        return run_command(Command(self.name, words), text.translate(_NO_BRACKETS))

    async def _by_flite(self, text: str) -> Speech:
        # A file in memory: the filter cannot read a pipe, and arguments are visible to others.
        file = os.memfd_create("text")
        try:
            os.write(file, text.encode())
            voice = f":voice={self._voice}" if self._voice else ""
            source = f"flite=textfile=/proc/self/fd/{file}{voice}"
            words = [self._path, "-nostdin", "-loglevel", "quiet", "-f", "lavfi", "-i", source]
            command = Command(self.name, [*words, "-f", "wav", "pipe:1"], files=(file,))
            async with aclosing(run_command(command, "")) as chunks:  # type: ignore[type-var]
                async for chunk in chunks:
                    yield chunk
        finally:
            os.close(file)

    async def _by_say(self, text: str) -> Speech:
        # It writes files only; the folder is readable by this user alone.
        with tempfile.TemporaryDirectory(prefix="letstalk-") as folder:
            path = Path(folder) / "speech.wav"
            options = ["--file-format=WAVE", "--data-format=LEI16@22050", "-f", "-"]
            say = [self._path, *self._voice_option("-v"), *options, "-o", str(path)]
            script = ["/bin/sh", "-c", '"$@" && cat "$0"', str(path), *say]
            command = Command(self.name, script)
            async with aclosing(run_command(command, text)) as chunks:  # type: ignore[type-var]
                async for chunk in chunks:
                    yield chunk

    def _by_sapi(self, text: str) -> Speech:
        script = f"& {{{_SAPI}}} {_quoted(self._voice)}"
        words = [self._path, "-NoProfile", "-NonInteractive", "-Command", script]
        return run_command(Command(self.name, words), text)

    def _voice_option(self, option: str) -> list[str]:
        return [option, self._voice] if self._voice else []


def find_program(
    platform: str = sys.platform, which: Callable[[str], str | None] = shutil.which
) -> str | None:
    """Return the program that speaks on this system, or None if there is none."""
    if platform == "darwin":
        return which("say")
    if platform == "win32":
        return which("powershell")
    espeak, ffmpeg = which("espeak-ng"), which("ffmpeg")
    if espeak is not None:
        return espeak
    return ffmpeg if ffmpeg is not None and _has_flite(ffmpeg) else None


@cache
def _has_flite(ffmpeg: str) -> bool:
    """Return whether this FFmpeg can speak."""
    done = subprocess.run([ffmpeg, "-hide_banner", "-filters"], capture_output=True, check=False)
    return b" flite " in done.stdout


@cache
def _check_espeak_voice(espeak: str, voice: str) -> None:
    """Check that espeak-ng knows a voice; it fails otherwise.

    Raises:
        ConfigError: it does not.
    """
    done = subprocess.run(
        [espeak, "-q", "-v", voice, "--stdin"], input=b"a", capture_output=True, check=False
    )
    if done.returncode or b"does not exist" in done.stderr:
        raise ConfigError(
            f"espeak-ng has no voice {voice!r}; 'espeak-ng --voices' lists them, e.g. en-us or de"
        )


def _quoted(text: str | None) -> str:
    """Return an argument as a PowerShell literal."""
    return "''" if text is None else "'" + text.replace("'", "''") + "'"
