"""`letstalk mic`, `push` and `say`: animate a portrait live, with a microphone, a file or text."""

import argparse
import asyncio
import signal
import sys
from collections.abc import AsyncIterable, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from letstalk_rt.cli.options import (
    add_json_option,
    add_model_options,
    add_mood_options,
    add_portrait,
    add_sign_option,
    load_avatar,
    read_signing,
)
from letstalk_rt.cli.output import write_json, write_notice
from letstalk_rt.errors import ConfigError
from letstalk_rt.session.adaptive_quality import DegradationPreference
from letstalk_rt.types import CameraOptions, LipDrive

if TYPE_CHECKING:
    from letstalk_rt.session.avatar import Avatar, AvatarSession
    from letstalk_rt.sinks.base import Sink
    from letstalk_rt.sinks.window import PreviewWindow
    from letstalk_rt.sources.camera import Camera

Feed = Callable[["AvatarSession"], Awaitable[Any]]
"""Pushes a whole source to a session."""

ENGINES = ("auto", "system", "openai", "piper")
MIC_SUMMARY = "microphone -> preview window, virtual camera or file, live"
PUSH_SUMMARY = "microphone or audio file -> RTMP, RTMPS or SRT server, live"
SAY_SUMMARY = "text -> preview window, virtual camera, file or streaming server, live"
AUDIO_RATE = 48_000
"""Sample rate of the audio that leaves, in Hz: as good as what came in."""

_TAIL_S = 0.4
"""Time shown after the end of a file, in which the mouth closes."""


def add_mic_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `letstalk mic`."""
    parser.description = (
        "Animate PORTRAIT with the microphone, until Ctrl-C or until the window is closed. "
        "Without --camera and --output, a preview window opens."
    )
    add_portrait(parser)
    _add_outputs(parser)
    _add_source_options(parser)
    _add_webcam_options(parser)
    _add_audio_options(parser)
    add_mood_options(parser)
    add_model_options(parser)


def add_say_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `letstalk say`."""
    parser.description = (
        "Let PORTRAIT speak TEXT, live. Without --camera, --output and --push, a preview window "
        "opens, and the audio is played on the loudspeaker."
    )
    add_portrait(parser)
    add = parser.add_argument
    add(
        "text",
        metavar="TEXT",
        help="what to say; - reads it from standard input. Tags are shown, not spoken: "
        '"[smiles] Hello! [serious] Now listen."',
    )
    add("--engine", default="auto", choices=ENGINES, help="what speaks (default: what there is)")
    add("--voice", help="name of the voice, or the file of a Piper voice (.onnx)")
    add(
        "--base-url",
        metavar="URL",
        help="OpenAI-compatible endpoint, up to /v1; its key is read from OPENAI_API_KEY",
    )
    add("--speech-model", metavar="MODEL", help="model of that endpoint")
    add("--push", metavar="URL", help="send it to a streaming server; see letstalk push")
    _add_outputs(parser)
    _add_audio_options(parser)
    add_mood_options(parser)
    add_model_options(parser)


def _add_outputs(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--window", action="store_true", help="show a preview window in addition to other outputs")
    add(
        "--camera",
        nargs="?",
        const="",
        metavar="DEVICE",
        help="output to a virtual camera, e.g. /dev/video2 (default: the first free one)",
    )
    add("--camera-size", metavar="WxH", help="camera size, e.g. 1280x720 (default: video size)")
    add("-o", "--output", type=Path, metavar="OUT.mp4", help="record to a file (mp4, mov, mkv)")
    add_sign_option(parser)


def add_push_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `letstalk push`."""
    parser.description = (
        "Send PORTRAIT, animated live, to URL: rtmp://HOST/APP/KEY, rtmps://HOST/APP/KEY or "
        "srt://HOST:PORT?streamid=NAME&passphrase=SECRET&latency=MS. It ends on Ctrl-C, or with "
        "the audio file."
    )
    add_portrait(parser)
    add = parser.add_argument
    add("url", metavar="URL", help="address of the server with the stream key")
    add("--bitrate", default="2500k", help="bit rate of the video, e.g. 800k or 4M (%(default)s)")
    add("--insecure", action="store_true", help="do not verify the certificate of an rtmps server")
    add("-o", "--output", type=Path, metavar="OUT.mp4", help="also record to a file")
    add_sign_option(parser)
    add("--loop", action="store_true", help="repeat the audio file")
    _add_source_options(parser)
    _add_audio_options(parser)
    add_mood_options(parser)
    add_model_options(parser)


def run_mic(options: argparse.Namespace) -> int:
    """Run `letstalk mic`."""
    sinks = _open_camera(options)
    window = options.window or not (sinks or options.output)
    return _run(options, sinks, _create_window(options) if window else None)


def run_say(options: argparse.Namespace) -> int:
    """Run `letstalk say`."""
    from letstalk_rt.sinks.stream import StreamPush
    from letstalk_rt.speech.engines import open_speech
    from letstalk_rt.speech.tagged import prepare_tagged

    options.text = prepare_tagged(sys.stdin.read() if options.text == "-" else options.text)
    if options.text.unknown:
        unknown = ", ".join(f"[{tag}]" for tag in options.text.unknown)
        write_notice(f"left out, because they name neither a mood nor a gesture: {unknown}")
    options.speech = open_speech(
        options.engine, options.voice, base_url=options.base_url, model=options.speech_model
    )
    sinks = _open_camera(options)
    if options.push is not None:
        sinks.append(StreamPush(options.push, badge=options.badge, sample_rate=AUDIO_RATE))
    if not (sinks or options.output) and options.speaker is None:
        options.speaker = ""
    window = options.window or not (sinks or options.output)
    return _run(options, sinks, _create_window(options) if window else None)


def _open_camera(options: argparse.Namespace) -> "list[Sink]":
    """Return the virtual camera, if one is wanted."""
    from letstalk_rt.sinks.virtual_camera import VirtualCamera

    if options.camera is None:
        return []
    size = _parse_size(options.camera_size)
    return [VirtualCamera(options.camera or None, size=size, badge=options.badge)]


def run_push(options: argparse.Namespace) -> int:
    """Run `letstalk push`."""
    from letstalk_rt.sinks.stream import StreamPush

    bit_rate = _parse_bit_rate(options.bitrate)
    stream = StreamPush(
        options.url,
        bit_rate=bit_rate,
        badge=options.badge,
        verify=not options.insecure,
        sample_rate=AUDIO_RATE,
    )
    return _run(options, [stream], None)


def _add_source_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--audio", type=Path, metavar="FILE", help="use an audio file instead of the microphone")
    add("--microphone", metavar="DEVICE", help="number or part of the name (default: the system's)")


def _add_webcam_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--webcam",
        metavar="DEVICE",
        help="move with the face before a camera: a number (0 is the first), a device or a video "
        "file; without a face, the avatar moves by itself",
    )
    add(
        "--lips",
        choices=get_args(LipDrive),
        default="sound",
        help="what moves the lips with --webcam (%(default)s)",
    )
    add(
        "--absolute",
        action="store_true",
        help="with --webcam: turn the head as yours is turned to the camera, instead of by how it "
        "moves from where it was at the start",
    )


def _add_audio_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--speaker",
        nargs="?",
        const="",
        metavar="DEVICE",
        help="play the audio, in sync with the video, on an output device: loudspeaker or virtual "
        "microphone (default: the system's)",
    )
    add(
        "--sound-delay-ms",
        type=int,
        default=0,
        help="additional audio delay, for programs that show the camera late (%(default)s)",
    )
    add(
        "--degradation-preference",
        choices=get_args(DegradationPreference),
        default="balanced",
        help="what is lowered while this machine is too slow (%(default)s)",
    )
    add("--seconds", type=float, help="stop after this time")
    add_json_option(parser)


def _run(options: argparse.Namespace, sinks: "list[Sink]", window: "PreviewWindow | None") -> int:
    from letstalk_rt.recording.file import Recording
    from letstalk_rt.sinks.speaker import Speaker

    signing = read_signing(options, options.portrait)
    if options.output is not None:
        sinks.append(
            Recording(options.output, badge=options.badge, sample_rate=AUDIO_RATE, **signing)
        )
    if options.speaker is not None:
        sinks.append(
            Speaker(
                options.speaker or None,
                delay_ms=options.sound_delay_ms,
                sample_rate=AUDIO_RATE,
            )
        )
    if "text" not in options and options.audio is None:
        _check_microphone(options.microphone)
    # Handle SIGTERM like Ctrl-C, so that recordings are completed.
    signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))
    with load_avatar(options) as avatar:
        avatar.measure_steps()
        if window is None:
            counts = asyncio.run(_play_live(options, avatar, sinks))
        else:
            counts = window.run_beside(_play_live(options, avatar, [*sinks, window])) or {}
    if options.json:
        write_json(counts)
    return 0


async def _play_live(
    options: argparse.Namespace, avatar: "Avatar", sinks: "list[Sink]"
) -> dict[str, object]:
    """Run one session from its source to its sinks; return its counters."""
    from letstalk_rt.sinks.play import play

    async with AsyncExitStack() as stack:
        feed = await _open_feed(options, stack)
        camera = await _open_webcam(options, stack)
        session = await stack.enter_async_context(
            avatar.session(
                seed=options.seed,
                playback="reported",
                output_sample_rate=AUDIO_RATE,
                camera=_camera_options(options),
                degradation_preference=options.degradation_preference,
                mood=options.mood,
                mood_strength=options.mood_strength,
            )
        )
        segment_ended = asyncio.Event()
        playing = asyncio.create_task(
            play(
                session,
                sinks,
                avatar.size,
                on_open=lambda: write_notice("live; press Ctrl-C to stop"),
                on_segment_end=lambda end: segment_ended.set(),
            ),
            name="play",
        )
        feeding = asyncio.create_task(_feed(session, feed, segment_ended), name="feed")
        watching = asyncio.create_task(_watch(session, camera), name="watch")
        tasks = {playing, feeding, watching}
        try:
            async with asyncio.timeout(options.seconds):
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            pass  # --seconds are over
        except asyncio.CancelledError:  # Ctrl-C: the recording is still completed
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
        finally:
            await session.aclose()
            await _cancel(watching)
            await _cancel(feeding)
            await asyncio.wait([playing])
        ended = [task.exception() for task in tasks if not task.cancelled()]
        if failures := [error for error in ended if error is not None]:
            raise failures[0]  # an error of playing may cause one of feeding
    return {**session.metrics.counts(), "skipped": sum(getattr(s, "skipped", 0) for s in sinks)}


async def _open_feed(options: argparse.Namespace, stack: AsyncExitStack) -> Feed:
    """Open the source; return a function that pushes all of it to a session."""
    from letstalk_rt.sources.feed import feed
    from letstalk_rt.sources.file import FileSource
    from letstalk_rt.sources.microphone import Microphone
    from letstalk_rt.sources.text import say

    if "text" in options:
        return lambda session: say(session, options.speech, options.text)
    source: AsyncIterable[np.ndarray]
    if options.audio is not None:
        loop = getattr(options, "loop", False)
        source = await asyncio.to_thread(FileSource, options.audio, loop=loop)
    else:
        source = await stack.enter_async_context(Microphone(options.microphone))
    return lambda session: feed(session, source)


async def _open_webcam(options: argparse.Namespace, stack: AsyncExitStack) -> "Camera | None":
    """Open the camera that moves the face, if one is wanted."""
    from letstalk_rt.sources.camera import Camera, parse_device

    if getattr(options, "webcam", None) is None:
        return None
    return await stack.enter_async_context(Camera(parse_device(options.webcam)))


def _camera_options(options: argparse.Namespace) -> CameraOptions:
    if "webcam" not in options:
        return CameraOptions()
    return CameraOptions(lips=options.lips, absolute=options.absolute)


async def _watch(session: "AvatarSession", camera: "Camera | None") -> None:
    """Push the frames of the camera; when a file ends, the avatar goes on by itself."""
    from letstalk_rt.sources.camera import watch

    if camera is not None:
        await watch(session, camera)
    await asyncio.Event().wait()


async def _feed(session: "AvatarSession", feed: Feed, segment_ended: asyncio.Event) -> None:
    """Push the source, then wait until its last audio has been played."""
    await feed(session)
    await segment_ended.wait()
    await asyncio.sleep(_TAIL_S)


async def _cancel(task: "asyncio.Task[None]") -> None:
    if not task.done():
        task.cancel()
        await asyncio.wait([task])


def _create_window(options: argparse.Namespace) -> "PreviewWindow":
    from letstalk_rt.sinks.window import PreviewWindow

    return PreviewWindow(f"letstalk: {options.portrait}", badge=options.badge)


def _check_microphone(device: str | None) -> None:
    """Report a missing microphone before the model is loaded."""
    from letstalk_rt.audio.audio_devices import find_device

    find_device("input", device)


def _parse_size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    width, _, height = text.lower().partition("x")
    if not (width.isdigit() and height.isdigit()):
        raise ConfigError(f"--camera-size is {text!r}; expected WIDTHxHEIGHT, e.g. 1280x720.")
    return int(width), int(height)


def _parse_bit_rate(text: str) -> int:
    factor = {"k": 1_000, "m": 1_000_000}.get(text[-1:].lower(), 1)
    digits = text[:-1] if factor > 1 else text
    try:
        return int(float(digits) * factor)
    except ValueError as error:
        raise ConfigError(f"--bitrate is {text!r}; expected e.g. 800k or 2.5M.") from error
