"""`letstalk mic` and `letstalk push`: live speech to a window, a camera, a file or a server."""

import argparse
import asyncio
import signal
import threading
from collections.abc import AsyncIterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from letstalk_rt.cli.common import add_model_options, add_portrait, load_avatar, note, say_json
from letstalk_rt.errors import ConfigError

if TYPE_CHECKING:
    from letstalk_rt.session.avatar import Avatar, AvatarSession
    from letstalk_rt.sinks.base import Sink
    from letstalk_rt.sinks.window import PreviewWindow

MIC_SUMMARY = "microphone -> preview window, virtual camera or file, live"
PUSH_SUMMARY = "microphone or sound file -> RTMP, RTMPS or SRT server, live"
_TAIL_S = 0.4
"""Shown after the end of a file: the mouth closes."""


def add_mic_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what `mic` is told."""
    parser.description = (
        "Animate PORTRAIT with what the microphone hears, until Ctrl-C or the window is closed. "
        "Without --camera and --output, a preview window opens."
    )
    add_portrait(parser)
    add = parser.add_argument
    add("--window", action="store_true", help="show a preview window, beside other outputs")
    add(
        "--camera",
        nargs="?",
        const="",
        metavar="DEVICE",
        help="show it as a virtual camera, e.g. /dev/video2 (the first free one)",
    )
    add("--camera-size", metavar="WxH", help="size of the camera, e.g. 1280x720 (the picture's)")
    add("-o", "--output", type=Path, metavar="OUT.mp4", help="record into a file (mp4, mov, mkv)")
    _add_sound_options(parser)
    add_model_options(parser)


def add_push_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what `push` is told."""
    parser.description = (
        "Send PORTRAIT, animated live, to URL: rtmp://HOST/APP/KEY, rtmps://HOST/APP/KEY or "
        "srt://HOST:PORT?streamid=NAME&passphrase=SECRET&latency=MS. Until Ctrl-C, or until the "
        "sound file is over."
    )
    add_portrait(parser)
    add = parser.add_argument
    add("url", metavar="URL", help="where to, stream key included")
    add("--bitrate", default="2500k", help="of the picture, e.g. 800k or 4M (%(default)s)")
    add("--insecure", action="store_true", help="accept any certificate of an rtmps server")
    add("-o", "--output", type=Path, metavar="OUT.mp4", help="record into a file too")
    add("--loop", action="store_true", help="begin the sound file again at its end")
    _add_sound_options(parser)
    add_model_options(parser)


def run_mic(options: argparse.Namespace) -> int:
    """Run `letstalk mic`."""
    from letstalk_rt.sinks.virtual_camera import VirtualCamera

    sinks: list[Sink] = []
    if options.camera is not None:
        size = _size(options.camera_size)
        sinks.append(VirtualCamera(options.camera or None, size=size, badge=options.badge))
    window = options.window or not (sinks or options.output)
    return _run(options, sinks, _window(options) if window else None)


def run_push(options: argparse.Namespace) -> int:
    """Run `letstalk push`."""
    from letstalk_rt.sinks.stream import StreamPush

    bit_rate = _bit_rate(options.bitrate)
    stream = StreamPush(
        options.url, bit_rate=bit_rate, badge=options.badge, verify=not options.insecure
    )
    return _run(options, [stream], None)


def _add_sound_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--audio", type=Path, metavar="FILE", help="speak a sound file instead of the microphone")
    add("--microphone", metavar="DEVICE", help="number or part of the name (the default one)")
    add(
        "--speaker",
        nargs="?",
        const="",
        metavar="DEVICE",
        help="play the sound, in step with the picture, on an output device: loudspeaker or "
        "virtual microphone (the default one)",
    )
    add(
        "--sound-delay-ms",
        type=int,
        default=0,
        help="play the sound later still, for programs that show the camera late (%(default)s)",
    )
    add("--seconds", type=float, help="stop after so long")
    add("--json", action="store_true", help="tell at the end what happened as one line of JSON")


def _run(options: argparse.Namespace, sinks: "list[Sink]", window: "PreviewWindow | None") -> int:
    from letstalk_rt.sinks.file import Recording
    from letstalk_rt.sinks.speaker import Speaker

    if options.output is not None:
        sinks.append(Recording(options.output, badge=options.badge))
    if options.speaker is not None:
        sinks.append(Speaker(options.speaker or None, delay_ms=options.sound_delay_ms))
    if options.audio is None:
        _check_microphone(options.microphone)
    # A service manager's polite end is Ctrl-C too, so that recordings are completed.
    signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))
    with load_avatar(options) as avatar:
        if window is None:
            facts = asyncio.run(_live(options, avatar, sinks))
        else:
            facts = _beside_window(options, avatar, [*sinks, window], window)
    if options.json:
        say_json(facts)
    return 0


def _beside_window(
    options: argparse.Namespace, avatar: "Avatar", sinks: "list[Sink]", window: "PreviewWindow"
) -> dict[str, object]:
    """Give the main thread to the window, and the session another."""
    results: list[dict[str, object]] = []
    failures: list[BaseException] = []
    loop = asyncio.new_event_loop()
    task = loop.create_task(_live(options, avatar, sinks))

    def work() -> None:
        try:
            results.append(loop.run_until_complete(task))
        except BaseException as error:  # raised in the main thread
            failures.append(error)
        finally:
            loop.close()
            window.close()

    def stop() -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(task.cancel)

    thread = threading.Thread(target=work, name="session")
    thread.start()
    try:
        window.run(stop)
    finally:
        if thread.is_alive():
            stop()
        thread.join()
    if failures and not isinstance(failures[0], asyncio.CancelledError):
        raise failures[0]
    return results[0] if results else {}


async def _live(
    options: argparse.Namespace, avatar: "Avatar", sinks: "list[Sink]"
) -> dict[str, object]:
    """Run one session from its source to its sinks; give what happened."""
    from letstalk_rt.sinks.play import play

    height, width = avatar.portrait.canvas.shape[:2]
    async with AsyncExitStack() as stack:
        source = await _source(options, stack)
        session = await stack.enter_async_context(
            avatar.session(seed=options.seed, playback="reported")
        )
        said = asyncio.Event()
        playing = asyncio.create_task(
            play(
                session,
                sinks,
                (width, height),
                on_open=lambda: note("live; Ctrl-C ends it"),
                on_segment_end=lambda end: said.set(),
            ),
            name="play",
        )
        feeding = asyncio.create_task(_feed(session, source, said), name="feed")
        try:
            async with asyncio.timeout(options.seconds):
                await asyncio.wait({playing, feeding}, return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            pass  # the time that was wanted is over
        except asyncio.CancelledError:  # Ctrl-C: what was recorded is finished all the same
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
        finally:
            await session.aclose()
            await _end(feeding)
            await asyncio.wait([playing])
        ended = [task.exception() for task in (playing, feeding) if not task.cancelled()]
        if failures := [error for error in ended if error is not None]:
            raise failures[0]  # who feeds may fail because who plays did
    return {**session.metrics.counts(), "skipped": sum(getattr(s, "skipped", 0) for s in sinks)}


async def _source(
    options: argparse.Namespace, stack: AsyncExitStack
) -> "AsyncIterable[np.ndarray]":
    from letstalk_rt.sources.file import FileSource
    from letstalk_rt.sources.microphone import Microphone

    if options.audio is not None:
        return await asyncio.to_thread(
            FileSource, options.audio, loop=getattr(options, "loop", False)
        )
    return await stack.enter_async_context(Microphone(options.microphone))


async def _feed(
    session: "AvatarSession", source: "AsyncIterable[np.ndarray]", said: asyncio.Event
) -> None:
    """Push the source; after its end wait until its last sound was shown."""
    from letstalk_rt.sources.feed import feed

    await feed(session, source)
    await said.wait()
    await asyncio.sleep(_TAIL_S)


async def _end(task: "asyncio.Task[None]") -> None:
    if not task.done():
        task.cancel()
        await asyncio.wait([task])


def _window(options: argparse.Namespace) -> "PreviewWindow":
    from letstalk_rt.sinks.window import PreviewWindow

    return PreviewWindow(f"letstalk: {options.portrait}", badge=options.badge)


def _check_microphone(device: str | None) -> None:
    """Say what is wrong with the microphone before the model is loaded."""
    from letstalk_rt.audio.audio_devices import find_device

    find_device("input", device)


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    width, _, height = text.lower().partition("x")
    if not (width.isdigit() and height.isdigit()):
        raise ConfigError(f"--camera-size is {text!r}; expected WIDTHxHEIGHT, e.g. 1280x720.")
    return int(width), int(height)


def _bit_rate(text: str) -> int:
    factor = {"k": 1_000, "m": 1_000_000}.get(text[-1:].lower(), 1)
    digits = text[:-1] if factor > 1 else text
    try:
        return int(float(digits) * factor)
    except ValueError as error:
        raise ConfigError(f"--bitrate is {text!r}; expected e.g. 800k or 2.5M.") from error
