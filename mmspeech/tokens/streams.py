"""Order, delays and initial tokens of the streams.

The model reads columns. Column 0 holds initial tokens; column c of row r holds the code of frame c - 1 - delay[r], and
the initial token while that is negative. At position t the model reads column t and predicts column t + 1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class StreamLayout:
    """Rows: text, K own codebooks, K user codebooks. `delays` has one entry per row, in frames."""

    num_codebooks: int
    delays: tuple[int, ...]
    text_card: int
    audio_card: int

    @property
    def num_streams(self) -> int:
        return 1 + 2 * self.num_codebooks

    @property
    def own(self) -> slice:
        """Rows of the model's codebooks."""
        return slice(1, 1 + self.num_codebooks)

    @property
    def user(self) -> slice:
        """Rows of the user's codebooks."""
        return slice(1 + self.num_codebooks, self.num_streams)

    @property
    def max_delay(self) -> int:
        return max(self.delays)

    def initial_ids(self, device=None) -> Tensor:
        """[R] long: the token each row starts with, one past its vocabulary."""
        return torch.tensor([self.text_card] + [self.audio_card] * (self.num_streams - 1), device=device)

    def delay(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Frames [B, R, T] -> columns [B, R, T + 1] and a mask [R, T + 1], true where a column holds a frame.

        The model's input is columns[..., :-1], its targets are columns[..., 1:]. The last frames of delayed rows fall
        off.
        """
        if codes.shape[1] != self.num_streams:
            raise ValueError(f"codes have {codes.shape[1]} rows, expected {self.num_streams} (text, own, user)")
        return self.shift(codes, fill=self.initial_ids(codes.device)[:, None])

    def shift(self, values: Tensor, *, fill: Tensor | float = 0, rows: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Any per-frame values [B, R', T] of the given rows, moved like codes; `fill` where there is no frame yet."""
        frames = torch.arange(-1, values.shape[-1], device=values.device) - self._delays(rows, values.device)[:, None]
        held = frames >= 0
        moved = values.gather(2, frames.clamp(min=0).expand(values.shape[0], -1, -1))
        return torch.where(held, moved, fill), held

    def _delays(self, rows: slice, device) -> Tensor:
        return torch.tensor(self.delays[rows], device=device)
