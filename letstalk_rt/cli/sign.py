"""`letstalk sign` and `letstalk verify`: provenance of recordings (C2PA)."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from letstalk_rt.cli.options import add_json_option, add_sign_option
from letstalk_rt.cli.output import colored, write_json, write_line

if TYPE_CHECKING:
    from letstalk_rt.recording.provenance import Provenance
    from letstalk_rt.recording.signing import Verification

SIGN_SUMMARY = "sign a recording that was not signed at its end"
VERIFY_SUMMARY = "tell whether a recording is signed, by whom, and unchanged since"

_COLORS = {"trusted": "ok", "intact": "ok", "changed": "bad", "unsigned": "bad"}
_MEANING = {
    "trusted": "unchanged since it was signed, by a signer whom the authority vouches for",
    "intact": "unchanged since it was signed; anybody may have signed it",
    "changed": "changed since it was signed, or signed with a certificate that is not valid",
    "unsigned": "not signed",
}


def add_sign_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `letstalk sign`."""
    parser.description = (
        "Sign FILE, a recording of letstalk that a crash or a full disk cut off. It states what "
        "the recording says about itself: model, badge and consent."
    )
    _add_file(parser)
    add_sign_option(parser, required=True)


def add_verify_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `letstalk verify`."""
    parser.description = (
        "Verify the signature of FILE. The status is 0 if it is unchanged, and with --trust only "
        "if one of the authorities in PEM issued the signer's certificate."
    )
    _add_file(parser)
    parser.add_argument(
        "--trust", type=Path, metavar="PEM", help="certificates of authorities that you trust"
    )


def _add_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="mp4, m4v or mov")
    add_json_option(parser)


def run_sign(options: argparse.Namespace) -> int:
    """Sign the file in place."""
    from letstalk_rt.recording.credentials import SigningCredentials
    from letstalk_rt.recording.signing import sign_existing

    provenance = sign_existing(options.file, SigningCredentials.read(*options.sign))
    if options.json:
        write_json({"file": options.file, **provenance.assertion()})
    else:
        write_line(f"{options.file}: signed ({_describe(provenance)})")
    return 0


def run_verify(options: argparse.Namespace) -> int:
    """Print the result of the verification."""
    from letstalk_rt.recording.credentials import read_authority
    from letstalk_rt.recording.signing import verify_recording

    authority = None if options.trust is None else read_authority(options.trust)
    found = verify_recording(options.file, authority)
    if options.json:
        write_json(_facts(options.file, found))
    else:
        _print(options.file, found)
    required = ("trusted",) if authority is not None else ("trusted", "intact")
    return 0 if found.state in required else 1


def _facts(path: Path, found: "Verification") -> dict[str, Any]:
    return {
        "file": path,
        "state": found.state,
        "signer": found.signer,
        "source_type": found.source_type,
        "provenance": None if found.provenance is None else found.provenance.assertion(),
        "failures": found.failures,
    }


def _print(path: Path, found: "Verification") -> None:
    write_line(f"{path}: {colored(found.state, _COLORS[found.state])}: {_MEANING[found.state]}")
    if found.signer is not None:
        write_line(f"signer: {_shown(found.signer)}")
    if found.source_type is not None:
        write_line(f"created: {_shown(found.source_type.rpartition('/')[2])}")
    if found.provenance is not None:
        write_line(f"letstalk_rt: {_describe(found.provenance)}")
    if found.failures:
        write_line(f"failed: {_shown(', '.join(found.failures))}")


def _shown(text: str) -> str:
    """Return what a file says on one line: it could move the cursor and print a verdict."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _describe(provenance: "Provenance") -> str:
    consent = provenance.consent_at
    return ", ".join(
        (
            f"model {_shown(provenance.model or 'unknown')}",
            "badge" if provenance.badge else "no badge",
            "consent not recorded" if consent is None else f"consent recorded {_shown(consent)}",
        )
    )
