"""The memory bank of motion: the codes that were shown in the last windows, and their speech."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class MotionMemory:
    """The memory bank of B sessions, updated in place; slot M - 1 is the newest.

    Attributes:
        codes: normal codes that were shown, `(B, M, N, D)`.
        heard: features of speech and predicted lips in these windows, `(B, M, N, F)`.
        filled: which windows there are, `(B, M)` bool.
    """

    codes: Tensor
    heard: Tensor
    filled: Tensor

    @classmethod
    def at_rest(cls, batch_size: int, codes: tuple[int, int, int], heard: int) -> "MotionMemory":
        """Return the memory of new sessions: one window of the face at rest, in silence.

        Args:
            batch_size: number of sessions.
            codes: `(M, N, D)`.
            heard: `F`.
        """
        windows, frames, _ = codes
        memory = cls(
            torch.zeros(batch_size, *codes),
            torch.zeros(batch_size, windows, frames, heard),
            torch.zeros(batch_size, windows, dtype=torch.bool),
        )
        memory.reset()
        return memory

    def reset(self) -> None:
        """Return to the state of a new session."""
        self.codes.zero_()
        self.heard.zero_()
        self.filled.zero_()
        self.filled[:, -1] = True

    def rewind(self, frames: int) -> None:
        """Take back the last frames, which were not shown."""
        frames = min(frames, self.codes.shape[1] * self.codes.shape[2] - 1)
        if not frames:
            return
        for bank in (self.codes, self.heard):
            kept = bank.flatten(1, 2)[:, :-frames].clone()
            bank.zero_().flatten(1, 2)[:, frames:] = kept
        lost = -(-frames // self.codes.shape[2])
        kept = self.filled[:, : self.filled.shape[1] - lost].clone()
        self.filled.fill_(False)[:, lost:] = kept
        self.filled[:, -1] = True

    def write(self, codes: Tensor, heard: Tensor) -> None:
        """Append a window: normal codes `(B, N, D)` and speech `(B, N, F)`."""
        for bank, new in ((self.codes, codes), (self.heard, heard)):
            bank.copy_(torch.cat([bank[:, 1:], new[:, None]], 1))
        self.filled.copy_(torch.cat([self.filled[:, 1:], torch.ones_like(self.filled[:, :1])], 1))
