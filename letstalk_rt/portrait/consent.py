"""Who stated that the person in a portrait agreed to be animated, and when."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from letstalk_rt.errors import PortraitError


@dataclass(frozen=True, slots=True)
class Consent:
    """A recorded consent.

    Attributes:
        by: who stated it: a name, or the subject of a token.
        at: when, as ISO 8601 in UTC.
    """

    by: str
    at: str

    @classmethod
    def now(cls, by: str) -> Self:
        """Return a consent that is stated now."""
        return cls(by, datetime.now(UTC).isoformat(timespec="seconds"))

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Return the consent in a file, or None if there is no file.

        Raises:
            PortraitError: the file is damaged.
        """
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            return cls(str(fields["by"]), datetime.fromisoformat(fields["at"]).isoformat())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PortraitError(
                f"The record of consent {path} cannot be read; expected JSON with by and at. "
                "Add the avatar again."
            ) from error

    def text(self) -> str:
        """Return the content of a file that `read` understands."""
        return json.dumps({"by": self.by, "at": self.at}) + "\n"
