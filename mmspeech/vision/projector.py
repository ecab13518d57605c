"""Visual features -> the width the speech model's cross-attention reads."""

import torch.nn.functional as F
from torch import Tensor, nn

from mmspeech.config import ConfigError, NormKind, VisionConfig
from mmspeech.nn.layers import build_norm
from mmspeech.vision.pool import MeanPool, QueryPool, build_pool


class Projector(nn.Module):
    """[B, S, D] -> [B, S', dim]: a linear layer with bias, or two around a GELU, then a norm.

    pool: makes fewer tokens of a picture before all else. hidden_dim None: one layer, `proj` alone. norm None: no norm.
    project False: only the norm, D is `dim` already.
    With one layer the names map one to one to Kyutai's: proj.weight, proj.bias (proj_xa) and norm.alpha (norm_xa).
    """

    def __init__(
        self,
        *,
        source_dim: int,
        dim: int,
        project: bool = True,
        hidden_dim: int | None = None,
        norm: NormKind | None = "rms",
        norm_eps: float = 1e-5,
        pool: MeanPool | QueryPool | None = None,
    ):
        super().__init__()
        if not project and (hidden_dim is not None or source_dim != dim):
            raise ConfigError(f"a projector without projection keeps width {source_dim}; it cannot give width {dim}")
        self.pool = pool
        self.hidden = None if hidden_dim is None else nn.Linear(source_dim, hidden_dim)
        self.proj = nn.Linear(source_dim if hidden_dim is None else hidden_dim, dim) if project else None
        self.norm = nn.Identity() if norm is None else build_norm(norm, dim, eps=norm_eps)

    def forward(self, features: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """features [B, S, D] of single pictures, mask [B, S] bool or None (all are tokens) -> tokens and their mask."""
        if self.pool is not None:
            features, mask = self.pool(features, mask)
        if self.proj is None:
            return self.norm(features), mask
        x = features.to(self.proj.weight.dtype)
        if self.hidden is not None:
            x = F.gelu(self.hidden(x))
        return self.norm(self.proj(x)), mask

    def count(self, tokens: int) -> int:
        """How many tokens come of a picture that has so many from the tower."""
        return tokens if self.pool is None else self.pool.count(tokens)


def build_projector(config: VisionConfig, *, dim: int) -> Projector:
    """The projector of `config` to a model that reads width `dim`."""
    return Projector(
        source_dim=config.feature_dim,
        dim=dim,
        project=config.project,
        hidden_dim=config.projector_hidden,
        norm=config.projector_norm,
        norm_eps=config.projector_norm_eps,
        pool=build_pool(config),
    )
