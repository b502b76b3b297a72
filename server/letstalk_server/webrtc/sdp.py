"""Checks of SDP offers and of trickled ICE candidates, on the text alone."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from letstalk_server.errors import BadOfferError, BadRequestError
from letstalk_server.session.transport import PeerRole

MAX_OFFER_CHARS = 64_000
MAX_FRAGMENT_CHARS = 16_000
MAX_CANDIDATES = 64

_KNOWN_KINDS = {"video", "audio", "application"}
_REQUIRED = {PeerRole.TALKER: ("video",), PeerRole.VIEWER: (), PeerRole.PUBLISHER: ("audio",)}
_REQUIREMENTS = {
    PeerRole.TALKER: "one video section, at most one audio section and at most one data channel "
    "section",
    PeerRole.VIEWER: "a video or an audio section, at most one of each",
    PeerRole.PUBLISHER: "one audio section",
}
"""What an offer of each role must contain; a publisher's video, which OBS offers, is declined."""


def clean_offer(sdp: str, role: PeerRole, take: Callable[[str], bool]) -> str:
    """Check the media sections of an offer and return it without lines that delay the answer.

    Args:
        sdp: the offer.
        role: role of the peer.
        take: returns whether a candidate is used, from the text after `candidate:`; the others are
            removed.

    Resolving mDNS candidates (`.local`) needs multicast and delays the answer by seconds where
    there is none. The peer can connect without them: it knows our addresses, and we learn its own
    from its connectivity checks. `end-of-candidates` is removed as well, or ICE would give up
    before those checks arrive.

    Raises:
        BadOfferError: The offer is too long, or its media sections do not match the role.
    """
    if len(sdp) > MAX_OFFER_CHARS:
        raise BadOfferError(f"The offer has {len(sdp)} characters; the limit is {MAX_OFFER_CHARS}.")
    lines = _lines(sdp)
    kinds = media_kinds(sdp)
    if (
        not set(kinds) <= _KNOWN_KINDS
        or len(kinds) > len(set(kinds))
        or any(kind not in kinds for kind in _REQUIRED[role])
        or not {"video", "audio"} & set(kinds)
    ):
        raise BadOfferError(f"The offer must have {_REQUIREMENTS[role]}.")
    mids = _mids(lines)
    if len(mids) > len(set(mids)):
        raise BadOfferError("Two media sections of the offer have the same a=mid, or none.")
    bundles = [line.split()[1:] for line in lines if line.startswith("a=group:BUNDLE")]
    if any(mid not in mids for bundle in bundles for mid in bundle):
        raise BadOfferError(
            "The offer's BUNDLE group names a media section that is not in the offer."
        )
    if sum(line.startswith(_CANDIDATE) for line in lines) > MAX_CANDIDATES:
        raise BadOfferError(f"The offer has more than {MAX_CANDIDATES} candidates.")
    return "\r\n".join(
        line
        for line in lines
        if not _SLOW_LINE.match(line)
        and (not line.startswith(_CANDIDATE) or take(line.removeprefix(_CANDIDATE)))
    )


def media_kinds(sdp: str) -> list[str]:
    """Return the kind of each media section: `audio`, `video`, `application` or something else."""
    return [line[2:].split(" ")[0] for line in _lines(sdp) if line.startswith("m=")]


def _mids(lines: list[str]) -> list[str]:
    """Return the `mid` of each media section: its last one, as aiortc reads it; or nothing."""
    mids: list[str] = []
    for line in lines:
        if line.startswith("m="):
            mids.append("")
        elif line.startswith("a=mid:") and mids:
            mids[-1] = line[6:].strip()
    return mids


@dataclass(frozen=True, slots=True)
class SdpFragment:
    """Trickled ICE candidates.

    Attributes:
        candidates: the text after `candidate:` and the `mid` of the media section, for each.
        ufrag: ICE user name fragment of the connection; `None` if the fragment has none.
        password: likewise the ICE password.
    """

    candidates: tuple[tuple[str, str], ...]
    ufrag: str | None
    password: str | None = None


def parse_fragment(text: str) -> SdpFragment:
    """Parse an SDP fragment (RFC 8840); unknown lines are ignored, as the RFC requires.

    Raises:
        BadRequestError: The fragment is too long, or a candidate has no `mid`.
    """
    if len(text) > MAX_FRAGMENT_CHARS:
        raise BadRequestError(
            f"The fragment has {len(text)} characters; the limit is {MAX_FRAGMENT_CHARS}."
        )
    candidates, mid, ufrag, password = [], None, None, None
    for line in _lines(text):
        if line.startswith("a=mid:"):
            mid = line[6:].strip()
        elif line.startswith("a=ice-ufrag:"):
            ufrag = line[12:].strip()
        elif line.startswith("a=ice-pwd:"):
            password = line[10:].strip()
        elif line.startswith(_CANDIDATE) and not _SLOW_LINE.match(line):
            if mid is None:
                raise BadRequestError(
                    "Candidates must follow the a=mid line of their media section."
                )
            candidates.append((line.removeprefix(_CANDIDATE).strip(), mid))
    if len(candidates) > MAX_CANDIDATES:
        raise BadRequestError(f"The fragment has more than {MAX_CANDIDATES} candidates.")
    return SdpFragment(tuple(candidates), ufrag, password)


def is_ice_text(text: str | None, shortest: int) -> bool:
    """Return whether a text may be an ICE user name fragment or password (RFC 8839, 5.4)."""
    return text is not None and re.fullmatch(rf"[A-Za-z0-9+/]{{{shortest},256}}", text) is not None


def _lines(sdp: str) -> list[str]:
    return sdp.splitlines()  # as aiortc does, so that no line is hidden from the checks


_CANDIDATE = "a=candidate:"
_SLOW_LINE = re.compile(r"a=candidate:\S+ \d+ \S+ \d+ \S+\.local |a=end-of-candidates")
