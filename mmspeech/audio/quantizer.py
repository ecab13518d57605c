"""Residual vector quantisation with codebooks kept as running means, as in Mimi.

A codebook stores `embedding_sum` and `cluster_usage`; its vectors are their ratio. Training assigns, passes gradients
straight through, moves the running means and restarts entries that fell out of use
(van den Oord et al. 2017; Zeghidour et al. 2021, SoundStream).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

USAGE_FLOOR = 1e-5


class Codebook(nn.Module):
    """`size` vectors of width `dim`, nearest by Euclidean distance.

    `decay` is that of the running means; entries used less than `restart_below` times (running mean per batch) are
    replaced by vectors of the batch at hand.
    """

    def __init__(self, *, size: int, dim: int, decay: float = 0.99, restart_below: float = 0.5):
        super().__init__()
        self.decay, self.restart_below = decay, restart_below
        self.register_buffer("initialized", torch.zeros(1))
        self.register_buffer("cluster_usage", torch.ones(size))
        self.register_buffer("embedding_sum", torch.randn(size, dim) / dim**0.5)

    @property
    def vectors(self) -> Tensor:
        """[size, dim]."""
        return self.embedding_sum / self.cluster_usage.clamp(min=USAGE_FLOOR)[:, None]

    def encode(self, x: Tensor) -> Tensor:
        """[..., dim] -> ids [...] long."""
        vectors = self.vectors.to(x.dtype)
        # |x - v|^2 without |x|^2, which is the same for all entries.
        scores = F.linear(x, vectors) - 0.5 * torch.linalg.vector_norm(vectors, dim=-1).square()
        return scores.argmax(-1)

    def decode(self, ids: Tensor) -> Tensor:
        """ids [...] -> [..., dim]."""
        # Rows first: dividing the whole codebook for a few frames would cost more than the rest of a step.
        return F.embedding(ids, self.embedding_sum) / self.cluster_usage.clamp(min=USAGE_FLOOR)[ids][..., None]

    @torch.no_grad()
    def update(self, x: Tensor, ids: Tensor) -> None:
        """Move the running means towards the vectors x [M, dim] that chose `ids` [M]."""
        size = self.cluster_usage.shape[0]
        if not self.initialized:
            self._fill(x, torch.ones(size, dtype=torch.bool, device=x.device))
            self.initialized.fill_(1)
            return
        usage = torch.bincount(ids, minlength=size).to(x.dtype)
        sums = torch.zeros_like(self.embedding_sum).index_add_(0, ids, x)
        self.cluster_usage.lerp_(usage, 1 - self.decay)
        self.embedding_sum.lerp_(sums, 1 - self.decay)
        self._fill(x, self.cluster_usage < self.restart_below)

    def _fill(self, x: Tensor, entries: Tensor) -> None:
        count = int(entries.sum())
        if count:
            # Without repetition as far as possible: equal entries would be ties.
            order = torch.randperm(x.shape[0], device=x.device)
            chosen = order.repeat(-(-count // x.shape[0]))[:count]
            self.embedding_sum[entries] = x[chosen]
            self.cluster_usage[entries] = 1.0


@dataclass
class QuantizerOut:
    """quantized [B, D, T] with straight-through gradients, codes [B, K, T] long, commitment loss (scalar)."""

    quantized: Tensor
    codes: Tensor
    commitment: Tensor


class ResidualQuantizer(nn.Module):
    """A chain of codebooks, each coding what the ones before left, between two 1x1 projections."""

    def __init__(self, *, num_codebooks: int, dim: int, codebook_dim: int, codebook_size: int):
        super().__init__()
        self.input_proj = nn.Conv1d(dim, codebook_dim, 1, bias=False)
        self.output_proj = nn.Conv1d(codebook_dim, dim, 1, bias=False)
        self.codebooks = nn.ModuleList(Codebook(size=codebook_size, dim=codebook_dim) for _ in range(num_codebooks))

    def bypass(self, x: Tensor) -> Tensor:
        """The two projections without codes between them: [B, D, T] -> [B, D, T]."""
        return self.output_proj(self.input_proj(x))

    def forward(self, x: Tensor, *, num_codebooks: int | None = None) -> QuantizerOut:
        """Training: x [B, D, T]; uses the first `num_codebooks` (None: all) and updates them when in training mode."""
        target = self.input_proj(x).transpose(1, 2).float()
        residual, total, codes, losses = target, torch.zeros_like(target), [], []
        for codebook in self.codebooks[:num_codebooks]:
            ids = codebook.encode(residual.detach())
            if self.training:
                codebook.update(residual.detach().flatten(0, 1), ids.flatten())
                ids = codebook.encode(residual.detach())
            chosen = codebook.decode(ids)
            losses.append(F.mse_loss(residual, chosen.detach()))
            total = total + chosen
            residual = residual - chosen.detach()
            codes.append(ids)
        quantized = target + (total - target).detach()
        out = self.output_proj(quantized.transpose(1, 2))
        return QuantizerOut(out, torch.stack(codes, dim=1), torch.stack(losses).mean())

    @torch.no_grad()
    def encode(self, x: Tensor, *, num_codebooks: int | None = None) -> Tensor:
        """x [B, D, T] -> codes [B, K, T] long."""
        residual = self.input_proj(x).transpose(1, 2)
        codes = []
        for codebook in self.codebooks[:num_codebooks]:
            ids = codebook.encode(residual)
            residual = residual - codebook.decode(ids).to(residual.dtype)
            codes.append(ids)
        return torch.stack(codes, dim=1)

    def decode(self, codes: Tensor) -> Tensor:
        """codes [B, K, T], K up to all codebooks -> [B, D, T]."""
        total = sum(codebook.decode(ids) for codebook, ids in zip(self.codebooks, codes.unbind(1), strict=False))
        return self.output_proj(total.transpose(1, 2).to(self.output_proj.weight.dtype))


class SplitResidualQuantizer(nn.Module):
    """Mimi's quantiser: a semantic chain (one codebook in Mimi) beside an acoustic one; their outputs add up."""

    def __init__(self, *, num_codebooks: int, dim: int, codebook_dim: int, codebook_size: int, num_semantic: int = 1):
        super().__init__()
        sizes = {"dim": dim, "codebook_dim": codebook_dim, "codebook_size": codebook_size}
        self.num_semantic = num_semantic
        self.first = ResidualQuantizer(num_codebooks=num_semantic, **sizes)
        self.rest = ResidualQuantizer(num_codebooks=num_codebooks - num_semantic, **sizes)

    def forward(self, x: Tensor, *, num_codebooks: int | None = None) -> tuple[QuantizerOut, QuantizerOut]:
        """The semantic and the acoustic part, each as QuantizerOut; `num_codebooks` counts both."""
        return self.first(x), self.rest(x, num_codebooks=self._acoustic(num_codebooks))

    def encode(self, x: Tensor, *, num_codebooks: int | None = None) -> Tensor:
        """x [B, D, T] -> codes [B, K, T] long, the semantic codebooks first."""
        rest = self.rest.encode(x, num_codebooks=self._acoustic(num_codebooks))
        return torch.cat([self.first.encode(x), rest], dim=1)

    def decode(self, codes: Tensor) -> Tensor:
        """codes [B, K, T] -> [B, D, T]."""
        return self.first.decode(codes[:, : self.num_semantic]) + self.rest.decode(codes[:, self.num_semantic :])

    def _acoustic(self, num_codebooks: int | None) -> int | None:
        return None if num_codebooks is None else num_codebooks - self.num_semantic
