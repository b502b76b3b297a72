"""The audio projector: speech features of a frame and its neighbours to audio tokens.

Parameters of the published shape (5 frames, 12 layers of 768, 512 inside, 32 tokens of 768):

    46,080 x 512 + 512           23,593,472   first layer; 46,080 = 5 x 12 x 768
    512 x 512 + 512                 262,656   second layer
    512 x 24,576 + 24,576        12,607,488   third layer; 24,576 = 32 x 768
    2 x 768                           1,536   normalisation
                                 36,465,152   36.47 M

Source: LetsTalk, arXiv:2411.16748, and its public code, whose training leaves these parameters
out of the optimiser and the moving average; here they are trained and averaged with the denoiser.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from letstalk_rt.errors import ConfigError
from letstalk_rt.models.layers.checks import check_tensor


@dataclass(frozen=True)
class AudioProjectorConfig:
    """Shape of an audio projector.

    Attributes:
        reach: neighbouring frames used on either side; the later ones are its look-ahead.
        layers: number of layers of the speech model whose features are stacked.
        feature_width: width of each layer's features.
        hidden: width of the hidden layers.
        tokens: audio tokens per frame.
        token_width: width of an audio token.
    """

    reach: int
    layers: int
    feature_width: int
    hidden: int
    tokens: int
    token_width: int

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            lowest = 0 if name == "reach" else 1
            if value < lowest:
                raise ConfigError(f"{name} of an audio projector must be >= {lowest}, got {value}")


PUBLISHED_PROJECTOR = AudioProjectorConfig(
    reach=2, layers=12, feature_width=768, hidden=512, tokens=32, token_width=768
)


@dataclass
class ProjectorState:
    """The features of a stream that later frames need; allocated once, written in place.

    Attributes:
        past: `(B, 2 reach, layers, feature_width)`.
        started: whether the stream has had a frame, `(B,)` bool; the first frame is repeated to
            fill the past.
    """

    past: Tensor
    started: Tensor

    def reset(self) -> None:
        """Return to the state of a new stream."""
        self.past.zero_()
        self.started.zero_()


class AudioProjector(nn.Module):
    """Three layers from stacked features of `2 reach + 1` frames to audio tokens.

    Args:
        config: shape.
    """

    def __init__(self, config: AudioProjectorConfig = PUBLISHED_PROJECTOR) -> None:
        super().__init__()
        self.config = config
        read = (2 * config.reach + 1) * config.layers * config.feature_width
        self.layer1 = nn.Linear(read, config.hidden)
        self.layer2 = nn.Linear(config.hidden, config.hidden)
        self.layer3 = nn.Linear(config.hidden, config.tokens * config.token_width)
        self.norm = nn.LayerNorm(config.token_width)

    @property
    def lookahead_frames(self) -> int:
        """The delay of a stream's tokens, in frames."""
        return self.config.reach

    def init_state(self, batch_size: int) -> ProjectorState:
        """Return the state of new streams."""
        config, weight = self.config, self.norm.weight
        past = weight.new_zeros(batch_size, 2 * config.reach, config.layers, config.feature_width)
        return ProjectorState(past, torch.zeros(batch_size, dtype=torch.bool, device=weight.device))

    def forward(self, features: Tensor, state: ProjectorState | None = None) -> Tensor:
        """Project features of frames to their audio tokens.

        Args:
            features: `(B, T, layers, feature_width)`; without a state a whole sequence, whose first
                and last frames are repeated at the edges.
            state: of a stream, updated in place; the tokens then belong to frames `reach` earlier.

        Returns:
            `(B, T, tokens, token_width)`.

        Raises:
            InputError: `features` has the wrong shape or type.
        """
        config = self.config
        check_tensor("features", features, ("B", "T", config.layers, config.feature_width))
        if state is None:
            edge = [features[:, :1]] * config.reach, [features[:, -1:]] * config.reach
            padded = torch.cat([*edge[0], features, *edge[1]], 1)
        else:
            past = torch.where(state.started[:, None, None, None], state.past, features[:, :1])
            padded = torch.cat([past.to(features.dtype), features], 1)
            state.past.copy_(padded[:, features.shape[1] :].detach())
            state.started.fill_(True)
        return self.project_inner(padded)

    def project_inner(self, features: Tensor) -> Tensor:
        """Project the frames all of whose neighbours are given.

        Args:
            features: `(B, T + 2 * reach, layers, feature_width)`.

        Returns:
            `(B, T, tokens, token_width)`, without the first and the last `reach` frames.
        """
        features = features.to(self.norm.weight.dtype)
        windows = features.unfold(1, 2 * self.config.reach + 1, 1)  # (B, T, layers, width, frames)
        windows = windows.permute(0, 1, 4, 2, 3).flatten(2)
        hidden = F.relu(self.layer2(F.relu(self.layer1(windows))))
        tokens = self.layer3(hidden).unflatten(-1, (self.config.tokens, -1))
        normed: Tensor = self.norm(tokens)
        return normed
