"""What may be in an offer, and in the candidates that follow it. Text only."""

import re
from dataclasses import dataclass

from letstalk_server.errors import BadOfferError, BadRequestError
from letstalk_server.session.transport import PeerRole

MAX_OFFER_CHARS = 64_000
MAX_FRAGMENT_CHARS = 16_000
MAX_CANDIDATES = 64

_MOST = {
    PeerRole.TALKER: {"video": 1, "audio": 1, "application": 1},
    PeerRole.VIEWER: {"video": 1, "audio": 1, "application": 1},
    PeerRole.PUBLISHER: {"video": 1, "audio": 1, "application": 1},
}
_NEEDED = {PeerRole.TALKER: ("video",), PeerRole.VIEWER: (), PeerRole.PUBLISHER: ("audio",)}
_WORDS = {
    PeerRole.TALKER: "one video section, at most one audio section and at most one data channel "
    "section",
    PeerRole.VIEWER: "a video or an audio section, at most one of each",
    PeerRole.PUBLISHER: "one audio section",
}
"""What each role needs; a publisher's video is declined, for programs like OBS always offer it."""


def clean_offer(sdp: str, role: PeerRole) -> str:
    """Check the outline of an offer and take out what would only cost time.

    mDNS candidates (`.local`) need multicast to resolve, which holds up the answer for seconds
    where there is none. The peer reaches us all the same: it knows our addresses, and its checks
    tell us its own. End-of-candidates goes too, or ICE would give up before they arrive.

    Raises:
        BadOfferError: it is too long, or has other sections than the role needs.
    """
    if len(sdp) > MAX_OFFER_CHARS:
        raise BadOfferError(
            f"The offer has {len(sdp)} characters; at most {MAX_OFFER_CHARS} are read."
        )
    lines = _lines(sdp)
    kinds = media_kinds(sdp)
    if (
        any(kinds.count(kind) > _MOST[role].get(kind, 0) for kind in kinds)
        or any(kind not in kinds for kind in _NEEDED[role])
        or not {"video", "audio"} & set(kinds)
    ):
        raise BadOfferError(f"The offer must have {_WORDS[role]}.")
    mids = {line[6:].strip() for line in lines if line.startswith("a=mid:")}
    bundles = [line.split()[1:] for line in lines if line.startswith("a=group:BUNDLE")]
    if any(mid not in mids for bundle in bundles for mid in bundle):
        raise BadOfferError("The offer bundles a section that it does not have.")
    if sum(line.startswith("a=candidate:") for line in lines) > MAX_CANDIDATES:
        raise BadOfferError(f"The offer has more than {MAX_CANDIDATES} candidates.")
    return "\r\n".join(line for line in lines if not _SLOW_LINE.match(line))


def media_kinds(sdp: str) -> list[str]:
    """Give the kind of each media section: `audio`, `video`, `application` or something else."""
    return [line[2:].split(" ")[0] for line in _lines(sdp) if line.startswith("m=")]


@dataclass(frozen=True, slots=True)
class Fragment:
    """Candidates that come after the offer.

    Attributes:
        candidates: what follows `candidate:`, with the section that each belongs to.
        ufrag: of the connection they are for; `None` where it is not said.
    """

    candidates: tuple[tuple[str, str], ...]
    ufrag: str | None


def parse_fragment(text: str) -> Fragment:
    """Read an SDP fragment (RFC 8840); unknown lines are passed over, as it asks.

    Raises:
        BadRequestError: it is too long, or names no section where it must.
    """
    if len(text) > MAX_FRAGMENT_CHARS:
        raise BadRequestError(
            f"The fragment has {len(text)} characters; at most {MAX_FRAGMENT_CHARS} are read."
        )
    candidates, mid, ufrag = [], None, None
    for line in _lines(text):
        if line.startswith("a=mid:"):
            mid = line[6:].strip()
        elif line.startswith("a=ice-ufrag:"):
            ufrag = line[12:].strip()
        elif line.startswith("a=candidate:") and not _SLOW_LINE.match(line):
            if mid is None:
                raise BadRequestError("Candidates must follow the a=mid line of their section.")
            candidates.append((line[12:].strip(), mid))
    if len(candidates) > MAX_CANDIDATES:
        raise BadRequestError(f"The fragment has more than {MAX_CANDIDATES} candidates.")
    return Fragment(tuple(candidates), ufrag)


def _lines(sdp: str) -> list[str]:
    return sdp.replace("\r\n", "\n").split("\n")


_SLOW_LINE = re.compile(r"a=candidate:\S+ \d+ \S+ \d+ \S+\.local |a=end-of-candidates")
