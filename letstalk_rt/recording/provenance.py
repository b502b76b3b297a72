"""What a recording states about how it was made, in its metadata and in its signature."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import av

from letstalk_rt.errors import ConfigError
from letstalk_rt.portrait.consent import Consent
from letstalk_rt.portrait.watermark import (
    DUBBED_SOURCE_TYPE,
    DUBBED_STATEMENT,
    SOURCE_TYPE,
    STATEMENT,
)
from letstalk_rt.recording.mp4_boxes import PlayablePart

_KEY = "description"
_MADE_BY = "Made by letstalk_rt"
_STATEMENTS = {SOURCE_TYPE: STATEMENT, DUBBED_SOURCE_TYPE: DUBBED_STATEMENT}


@dataclass(frozen=True, slots=True)
class Provenance:
    """How a recording was made.

    Attributes:
        model: preset that generated it; None if unknown.
        badge: whether its frames carry the visible badge.
        consent_at: when the consent of the person in the portrait was recorded, ISO 8601; None if
            it was not. Who stated it stays with the portrait.
        source_type: digital source type (IPTC): all generated, or a film with generated parts.
    """

    model: str | None = None
    badge: bool = True
    consent_at: str | None = None
    source_type: str = SOURCE_TYPE

    @classmethod
    def of(cls, model: str | None, badge: bool, consent: Consent | None) -> Self:
        """Return the provenance of a recording that begins now."""
        return cls(model, badge, None if consent is None else consent.at)

    def assertion(self) -> dict[str, Any]:
        """Return it as JSON object, for the signature, which states the source type elsewhere."""
        consent: dict[str, Any] = {"recorded": self.consent_at is not None}
        if self.consent_at is not None:
            consent["at"] = self.consent_at
        return {"model": self.model, "badge": self.badge, "consent": consent}

    @classmethod
    def from_assertion(cls, fields: Mapping[str, Any], source_type: str = SOURCE_TYPE) -> Self:
        """Return the provenance in the JSON object of `assertion`, of a file of this source type.

        Raises:
            ConfigError: it is not such an object.
        """
        try:
            consent_at = fields["consent"].get("at")
            model, badge = fields["model"], fields["badge"]
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError("The provenance in the file is damaged.") from error
        known = (str | None, bool, str | None)
        if not all(map(isinstance, (model, badge, consent_at), known)):
            raise ConfigError("The provenance in the file is damaged.")
        return cls(model, badge, consent_at, source_type)

    def metadata(self) -> dict[str, str]:
        """Return the metadata of the container: the statement for people, and this for `read`."""
        stated = json.dumps({"letstalk_rt": self.assertion()})
        return {"comment": _STATEMENTS[self.source_type], _KEY: stated}


def read_provenance(path: Path) -> Provenance:
    """Return what a recording in an MP4 or QuickTime file says about itself.

    Recordings say it from their first second, so that one which a crash cut off can still be
    signed.

    Raises:
        ConfigError: the file cannot be read, or is not a recording of letstalk_rt.
    """
    try:
        with PlayablePart(path) as file, av.open(file) as container:
            metadata = dict(container.metadata)
    except (OSError, av.FFmpegError) as error:
        raise ConfigError(
            f"Cannot read {path}: {error.strerror or error}. Expected a recording of letstalk_rt."
        ) from error
    comment = metadata.get("comment", "")
    named = [each for each in _STATEMENTS if each in comment]
    if not (_MADE_BY in comment and named):
        raise ConfigError(
            f"{path} is not a recording of letstalk_rt: its metadata lack the statement that it is "
            "generated. Only such recordings are signed."
        )
    try:
        fields = json.loads(metadata.get(_KEY, "{}")).get("letstalk_rt", {})
    except (ValueError, AttributeError):
        fields = {}  # a recording of 0.1, or a description of somebody else
    if not fields:
        return Provenance(source_type=named[0])
    return Provenance.from_assertion(fields, named[0])
