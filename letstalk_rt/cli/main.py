"""The command `letstalk`.

Knows the words of the command line; the work is done elsewhere and loaded only when it is asked
for, so that `--help` and mistakes are answered at once.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from letstalk_rt import __version__
from letstalk_rt.cli import avatars, bench, doctor, live, render
from letstalk_rt.errors import ConfigError, DependencyError, InputError, LetsTalkError
from letstalk_rt.threads import shorten_openmp_spin

Run = Callable[[argparse.Namespace], int]
AddArguments = Callable[[argparse.ArgumentParser], None]

COMMANDS: dict[str, tuple[str, AddArguments, Run]] = {
    "render": (render.SUMMARY, render.add_arguments, render.run),
    "mic": (live.MIC_SUMMARY, live.add_mic_arguments, live.run_mic),
    "push": (live.PUSH_SUMMARY, live.add_push_arguments, live.run_push),
    "avatars": (avatars.SUMMARY, avatars.add_arguments, avatars.run),
    "bench": (bench.SUMMARY, bench.add_arguments, bench.run),
    "doctor": (doctor.SUMMARY, doctor.add_arguments, doctor.run),
}
"""Commands of this room: a summary, what they are told, what they do."""

FORWARDED = {
    "demo": ("letstalk_server.main", "server", "serve the page: choose a face, talk with it"),
    "serve": ("letstalk_server.main", "server", "the same, with all settings of the server"),
    "eval": ("letstalk_rt.cli.evaluate", "eval", "measure the model on a data folder"),
    "train": ("letstalk_rt.cli.train", "train", "train the model on a data folder"),
}
"""Commands with options of their own: the module of their `main`, the extra it needs, a summary."""

_EPILOG = """exit status: 0 it worked; 1 it failed; 2 the input or an option cannot be used;
3 this machine is too slow (bench, doctor); 130 stopped by Ctrl-C"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 when it worked; 2 when the input or an option cannot be used; 3 when the machine is too
        slow; 1 for everything else.
    """
    shorten_openmp_spin()
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    try:
        return _run([word for word in words if word != "--debug"])
    except LetsTalkError as error:
        if debug:
            raise
        print(f"letstalk: {_one_line(error)}", file=sys.stderr)
        return 2 if isinstance(error, InputError | ConfigError) else 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read our words has gone
        sys.stderr.close()
        return 1


def _run(words: list[str]) -> int:
    if words and words[0] in FORWARDED:
        module, extra, _ = FORWARDED[words[0]]
        return _main_of(module, extra, words[0])(words[1:])
    options = _parser().parse_args(words)
    return COMMANDS[options.command][2](options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="letstalk",
        description="One portrait and live speech in, live video of that person talking out.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"letstalk-rt {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (what, add_arguments, _) in COMMANDS.items():
        add_arguments(commands.add_parser(name, help=what))
    for name, (_, _, what) in FORWARDED.items():
        commands.add_parser(name, help=f"{what} (see letstalk {name} --help)")
    return parser


def _main_of(module: str, extra: str, command: str) -> Callable[[list[str]], int]:
    try:
        run: Callable[[list[str]], int] = import_module(module).main
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("letstalk_rt."):
            raise
        raise DependencyError(
            f"letstalk {command} needs the package {error.name!r}; "
            f"install it with: pip install 'letstalk-rt[{extra}]'"
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
