"""The command `letstalk`.

Modules that do the work are imported only when a command runs, so that `--help` and usage errors
are fast.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from letstalk_rt.cli import avatars, bench, doctor, dub, live, render, sign
from letstalk_rt.errors import ConfigError, DependencyError, InputError, LetsTalkError
from letstalk_rt.extras import pip_install
from letstalk_rt.threads import shorten_openmp_spin
from letstalk_rt.version import __version__

Run = Callable[[argparse.Namespace], int]
AddArguments = Callable[[argparse.ArgumentParser], None]

COMMANDS: dict[str, tuple[str, AddArguments, Run]] = {
    "render": (render.SUMMARY, render.add_arguments, render.run),
    "dub": (dub.SUMMARY, dub.add_arguments, dub.run),
    "mic": (live.MIC_SUMMARY, live.add_mic_arguments, live.run_mic),
    "push": (live.PUSH_SUMMARY, live.add_push_arguments, live.run_push),
    "say": (live.SAY_SUMMARY, live.add_say_arguments, live.run_say),
    "sign": (sign.SIGN_SUMMARY, sign.add_sign_arguments, sign.run_sign),
    "verify": (sign.VERIFY_SUMMARY, sign.add_verify_arguments, sign.run_verify),
    "avatars": (avatars.SUMMARY, avatars.add_arguments, avatars.run),
    "bench": (bench.SUMMARY, bench.add_arguments, bench.run),
    "doctor": (doctor.SUMMARY, doctor.add_arguments, doctor.run),
}
"""Commands of this package: a summary, a function that adds arguments, and one that runs it."""

FORWARDED = {
    "demo": ("letstalk_server.main", "server", "serve the demo page: choose a face and talk"),
    "serve": ("letstalk_server.main", "server", "run the server with all its settings"),
    "cluster": ("letstalk_server.cluster.main", "server", "place sessions on many workers"),
    "livekit-worker": (
        "livekit.plugins.letstalk.command",
        "./client_examples/livekit",
        "show avatars in rooms of LiveKit",
    ),
    "eval": ("letstalk_rt.cli.evaluate", "eval", "measure the model on a data folder"),
    "prepare": ("letstalk_rt.cli.prepare", "train", "turn raw videos into a data folder"),
    "train": ("letstalk_rt.cli.train", "train", "train the model on a data folder"),
}
"""Commands with their own parser: the module of their `main`, the extra or folder that it needs, a
summary."""

_EPILOG = """exit status: 0 success; 1 failure; 2 invalid input or option;
3 this machine is too slow (bench, doctor); 130 stopped by Ctrl-C"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 on success, 2 on invalid input or options, 3 if the machine is too slow, 130 after Ctrl-C,
        and 1 on any other error.
    """
    shorten_openmp_spin()
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        return _run([argument for argument in arguments if argument != "--debug"])
    except LetsTalkError as error:
        if debug:
            raise
        print(f"letstalk: {_one_line(error)}", file=sys.stderr)
        return 2 if isinstance(error, InputError | ConfigError) else 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of stdout has closed it
        sys.stderr.close()
        return 1


def _run(arguments: list[str]) -> int:
    if arguments and arguments[0] in FORWARDED:
        module, extra, _ = FORWARDED[arguments[0]]
        return _import_main(module, extra, arguments[0])(arguments[1:])
    options = _parser().parse_args(arguments)
    return COMMANDS[options.command][2](options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="letstalk",
        description="Animate a portrait by speech, live or from a file.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"letstalk-rt {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (summary, add_arguments, _) in COMMANDS.items():
        add_arguments(commands.add_parser(name, help=summary))
    for name, (_, _, summary) in FORWARDED.items():
        commands.add_parser(name, help=f"{summary} (see letstalk {name} --help)")
    return parser


def _import_main(module: str, extra: str, command: str) -> Callable[[list[str]], int]:
    try:
        run: Callable[[list[str]], int] = import_module(module).main
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("letstalk_rt."):
            raise
        how = f"pip install {extra} in a clone" if "/" in extra else pip_install(extra)
        raise DependencyError(
            f"letstalk {command} needs the package {error.name!r}; install it with: {how}"
        ) from error
    return run


def _one_line(error: LetsTalkError) -> str:
    text = " ".join(str(error).split())
    cause = error.__cause__
    if cause is not None and not isinstance(error, InputError | ConfigError):
        text += f" ({type(cause).__name__}: {' '.join(str(cause).split())})"
    return text


if __name__ == "__main__":
    sys.exit(main())
