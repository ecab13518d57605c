"""Fewer tokens for each picture, before the projection: what a memory of many frames pays for is tokens."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmspeech.config import ConfigError, VisionConfig


class MeanPool(nn.Module):
    """The mean over 2 x 2 places of a square grid: [B, S, D] -> [B, S / 4, D]; an odd side keeps its last row alone."""

    def forward(self, features: Tensor, mask: Tensor | None) -> tuple[Tensor, None]:
        """Raises ConfigError for tokens that are no square grid, as those of pictures of several sizes (`mask`)."""
        side = math.isqrt(features.shape[1])
        if mask is not None or side * side != features.shape[1]:
            found = "pictures of several sizes" if mask is not None else f"{features.shape[1]} tokens"
            raise ConfigError(f"vision.pool mean2x2: expected a square grid of tokens, got {found}; make it a number")
        grid = features.transpose(1, 2).unflatten(2, (side, side))
        pooled = F.avg_pool2d(grid, 2, ceil_mode=True, count_include_pad=False)
        return pooled.flatten(2).transpose(1, 2), None

    def count(self, tokens: int) -> int:
        return math.ceil(math.isqrt(tokens) / 2) ** 2


class QueryPool(nn.Module):
    """`num_queries` learned weighted means over a picture's tokens, however many there are: [B, S, D] -> [B, Q, D]."""

    def __init__(self, *, dim: int, num_queries: int):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(num_queries, dim))

    def forward(self, features: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """mask [B, S] bool or None: which tokens are there. The new one is false for pictures without any."""
        features = features.to(self.queries.dtype)
        scores = (self.queries @ features.transpose(1, 2)) * features.shape[2] ** -0.5
        if mask is not None:
            there = mask.any(dim=1, keepdim=True)
            scores = scores.masked_fill(~(mask | ~there)[:, None], -torch.inf)
            mask = there.expand(-1, len(self.queries))
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(features.dtype)
        return weights @ features, mask

    def count(self, tokens: int) -> int:
        return len(self.queries)


def build_pool(config: VisionConfig) -> MeanPool | QueryPool | None:
    """The pooling of `config`, None for none."""
    match config.pool:
        case None:
            return None
        case "mean2x2":
            return MeanPool()
        case num_queries:
            return QueryPool(dim=config.feature_dim, num_queries=num_queries)
