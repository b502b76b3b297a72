"""Speech by a program of the system: text goes to its input, PCM comes from its output."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass

from letstalk_rt.errors import SynthesisError
from letstalk_rt.speech.interface import Speech
from letstalk_rt.speech.pcm_stream import decode_pcm

_READ_BYTES = 16_384
_FIRST_AUDIO_S = 30.0
"""Longest time without any output; a program that takes longer hangs."""


@dataclass(frozen=True, slots=True)
class Command:
    """A program that speaks.

    Attributes:
        name: name of the engine, for messages.
        words: the program and its arguments. The text is never among them: others could see it.
        raw_rate: sample rate of raw output in Hz; None if it writes WAV.
        files: open files that the program inherits.
    """

    name: str
    words: Sequence[str]
    raw_rate: int | None = None
    files: tuple[int, ...] = ()


async def run_command(command: Command, text: str) -> Speech:
    """Yield what a program speaks, as it is synthesised; kill the program when closed.

    Raises:
        SynthesisError: the program cannot be started, failed or delivered no audio.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *command.words,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,  # it may repeat the text
            pass_fds=command.files,
        )
    except OSError as error:
        raise SynthesisError(f"{command.name} cannot be started: {error.strerror}") from error
    empty = True
    try:
        writing = asyncio.create_task(_write(process, text), name="speech-text")
        try:
            async with aclosing(_output_of(process, command.name)) as output:
                async for pcm, rate in decode_pcm(output, command.name, command.raw_rate):
                    empty = False
                    yield pcm, rate
            status = await process.wait()
        finally:
            writing.cancel()
            await asyncio.wait([writing])
        if status or empty:
            raise SynthesisError(
                f"{command.name} could not speak the text (exit status {status}); check the voice "
                "and try the program by itself"
            )
    finally:
        if process.returncode is None:
            _kill(process)
            await process.wait()


def _kill(process: asyncio.subprocess.Process) -> None:
    """Kill a program, without taking its exit status as `Process.kill` does where it has exited:
    asyncio, which waits for that status in a thread, would log a warning."""
    with suppress(ProcessLookupError):
        if sys.platform == "win32":
            process.kill()
        else:
            os.kill(process.pid, signal.SIGKILL)


async def _write(process: asyncio.subprocess.Process, text: str) -> None:
    assert process.stdin is not None
    with suppress(BrokenPipeError, ConnectionResetError):  # the exit status says what was wrong
        process.stdin.write(text.encode() + b"\n")
        await process.stdin.drain()
        # Not waited for: asyncio of Python 3.11 fails in the background if that wait is cancelled.
        process.stdin.close()


async def _output_of(process: asyncio.subprocess.Process, name: str) -> AsyncGenerator[bytes, None]:
    assert process.stdout is not None
    while True:
        try:
            async with asyncio.timeout(_FIRST_AUDIO_S):
                data = await process.stdout.read(_READ_BYTES)
        except TimeoutError:
            raise SynthesisError(f"{name} delivered nothing for {_FIRST_AUDIO_S:.0f} s") from None
        if not data:
            return
        yield data
