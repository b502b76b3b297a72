"""What an agent asks of an avatar worker."""

import json
from dataclasses import asdict, dataclass
from typing import Self

from letstalk_rt import ConfigError
from letstalk_rt.audio.speech_resampler import check_output_rate

AVATAR_WORKER = "letstalk-avatar"
"""The name under which avatar workers register, unless another is given."""


@dataclass(frozen=True, slots=True)
class AvatarJob:
    """A job for an avatar worker.

    Attributes:
        agent: identity of the agent that the avatar speaks for.
        identity: identity under which the avatar joins.
        sample_rate: of the audio that is published, in Hz.
    """

    agent: str
    identity: str
    sample_rate: int

    def to_json(self) -> str:
        """Return the metadata of the job."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, metadata: str) -> Self:
        """Read the metadata of a job.

        Raises:
            ConfigError: it is not that of an avatar job.
        """
        try:
            job = cls(**json.loads(metadata))
        except (ValueError, TypeError) as error:
            raise ConfigError(
                f"the job is not for an avatar: its metadata {error}; dispatch it with "
                "RemoteAvatarSession"
            ) from error
        if not (isinstance(job.agent, str) and isinstance(job.identity, str) and job.agent):
            raise ConfigError("the job names no agent; dispatch it with RemoteAvatarSession")
        check_output_rate(job.sample_rate)
        return job
