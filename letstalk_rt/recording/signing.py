"""Signs recordings with C2PA manifests, and verifies them.

Source: Coalition for Content Provenance and Authenticity, technical specification 2.2.
"""

import io
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from letstalk_rt.errors import ConfigError
from letstalk_rt.portrait.watermark import SOURCE_TYPE
from letstalk_rt.recording.credentials import ALGORITHM, SigningCredentials, import_c2pa
from letstalk_rt.recording.mp4_boxes import PlayablePart, has_manifest
from letstalk_rt.recording.provenance import Provenance, read_provenance
from letstalk_rt.version import __version__

MEDIA_TYPES = {".mp4": "video/mp4", ".m4v": "video/mp4", ".mov": "video/quicktime"}
ASSERTION = "org.letstalk-rt.avatar"
"""Label of our own assertion: model, badge, consent."""

State = Literal["trusted", "intact", "changed", "unsigned"]

_OFFLINE = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}}
_UNTRUSTED = "signingCredential.untrusted"


@dataclass(frozen=True, slots=True)
class Verification:
    """The result of `verify_recording`.

    Attributes:
        state: `trusted`: unchanged since it was signed, by a signer whom the given authority
            vouches for; `intact`: unchanged, but nobody vouches for the signer; `changed`: it, its
            manifest or its signature was changed, or the certificate could not sign; `unsigned`.
        signer: common name in the signer's certificate.
        source_type: digital source type of the action `c2pa.created`.
        provenance: our own assertion.
        failures: codes of what failed, as C2PA names them.
    """

    state: State
    signer: str | None = None
    source_type: str | None = None
    provenance: Provenance | None = None
    failures: tuple[str, ...] = ()


def media_type_of(path: Path) -> str:
    """Return the media type of a recording that can be signed.

    Raises:
        ConfigError: its container cannot carry a signature.
    """
    media_type = MEDIA_TYPES.get(path.suffix.lower())
    if media_type is None:
        raise ConfigError(
            f"{path.name} cannot carry a C2PA signature; only {', '.join(MEDIA_TYPES)} can."
        )
    return media_type


def sign_recording(
    path: Path,
    credentials: SigningCredentials,
    provenance: Provenance,
    *,
    name: Path | None = None,
) -> None:
    """Sign a recording in place.

    The signed file is written beside it and then takes its place, so a failure leaves the unsigned
    recording as it was. That takes as much space again.

    Args:
        path: the recording.
        credentials: certificate and private key.
        provenance: what the signature states.
        name: the name that the file will have, if that is another.

    Raises:
        ConfigError: the file cannot be signed, for example because the disk is full.
        DependencyError: the extra `c2pa` is not installed.
    """
    import_c2pa()
    name = name or path
    media_type_of(name)
    temporary = path.with_name(path.name + ".signing")
    try:
        with PlayablePart(path) as source, _NotingFile(temporary) as target:
            _sign(source, target, name, credentials, provenance)
        shutil.copymode(path, temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise ConfigError(
            f"Cannot sign {name}: {error.strerror or error}. It was left unsigned; free as much "
            "space as it takes, then run: letstalk sign"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def sign_existing(path: Path, credentials: SigningCredentials) -> Provenance:
    """Sign a recording that was not signed at its end, for example because of a crash.

    Returns:
        What the recording says about itself, which the signature now states.

    Raises:
        ConfigError: it is not a recording of letstalk_rt, is signed already, or cannot be signed.
        DependencyError: the extra `c2pa` is not installed.
    """
    state = verify_recording(path).state
    if state != "unsigned":
        found = "has been changed since it was signed" if state == "changed" else "is signed"
        raise ConfigError(f"{path} {found}; only recordings without a signature can be signed.")
    provenance = read_provenance(path)
    sign_recording(path, credentials, provenance)
    return provenance


def verify_recording(path: Path, authority: bytes | None = None) -> Verification:
    """Return whether a recording is signed, by whom, and unchanged since.

    Args:
        path: the recording.
        authority: PEM certificates of authorities whose signers are trusted; see
            `read_authority`.

    Raises:
        ConfigError: the file or the authority cannot be read.
        DependencyError: the extra `c2pa` is not installed.
    """
    import_c2pa()
    import c2pa

    media_type = media_type_of(path)
    try:
        with (
            open(path, "rb") as source,
            c2pa.Reader(media_type, source, context=_context(authority)) as reader,
        ):
            return _verification(json.loads(reader.json()), str(reader.get_validation_state()))
    except OSError as error:
        raise ConfigError(f"Cannot read {path}: {error.strerror or error}.") from error
    except c2pa.C2paError.ManifestNotFound:
        return Verification("unsigned")
    except c2pa.C2paError as error:  # the file or its manifest cannot even be parsed
        if not has_manifest(path):
            return Verification("unsigned")
        return Verification("changed", failures=(_kind(error),))


class _NotingFile(io.FileIO):
    """A file that keeps the error of a write, of which the library only says that there was one."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")
        self.failure: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of `data`."""
        rest = memoryview(data)
        try:
            while len(rest):
                rest = rest[super().write(rest) :]
        except OSError as error:
            self.failure = error
            raise
        return len(data)


def _sign(
    source: PlayablePart,
    target: _NotingFile,
    name: Path,
    credentials: SigningCredentials,
    provenance: Provenance,
) -> None:
    import c2pa

    info = c2pa.C2paSignerInfo(
        alg=ALGORITHM, sign_cert=credentials.chain, private_key=credentials.key, ta_url=None
    )
    try:
        with (
            c2pa.Signer.from_info(info) as signer,
            c2pa.Builder(_manifest(provenance, name.name), context=_context()) as builder,
        ):
            builder.sign(signer, media_type_of(name), source, target)
    except c2pa.C2paError as error:
        if target.failure is not None:
            raise target.failure from error
        raise ConfigError(
            f"Cannot sign {name}: {error}. The file may be too damaged; it was left unsigned."
        ) from error


def _context(authority: bytes | None = None) -> Any:
    import c2pa

    settings: dict[str, Any] = {**_OFFLINE, "builder": {"thumbnail": {"enabled": False}}}
    if authority is not None:
        settings["trust"] = {"user_anchors": authority.decode("ascii")}
    return c2pa.Context.from_dict(settings)


def _manifest(provenance: Provenance, title: str) -> dict[str, Any]:
    created = {"action": "c2pa.created", "digitalSourceType": provenance.source_type}
    return {
        "title": title,
        "claim_generator_info": [{"name": "letstalk_rt", "version": __version__}],
        "assertions": [
            {"label": "c2pa.actions.v2", "data": {"actions": [created]}},
            {"label": ASSERTION, "data": provenance.assertion()},
        ],
    }


def _verification(report: dict[str, Any], validation: str) -> Verification:
    manifest = report.get("manifests", {}).get(report.get("active_manifest"), {})
    codes = tuple(item["code"] for item in report.get("validation_status") or ())
    states: dict[str, State] = {"Trusted": "trusted", "Valid": "intact"}
    state = states.get(validation, "changed")
    data = {item["label"]: item.get("data") or {} for item in manifest.get("assertions", ())}
    actions = data.get("c2pa.actions.v2", {}).get("actions", ())
    created = [action for action in actions if action.get("action") == "c2pa.created"]
    source_type = created[0].get("digitalSourceType") if created else None
    provenance = None
    if ASSERTION in data:
        provenance = Provenance.from_assertion(data[ASSERTION], source_type or SOURCE_TYPE)
    return Verification(
        state,
        signer=manifest.get("signature_info", {}).get("common_name"),
        source_type=source_type,
        provenance=provenance,
        failures=tuple(code for code in codes if state == "changed" or code != _UNTRUSTED),
    )


def _kind(error: Exception) -> str:
    return str(error).partition(":")[0]
