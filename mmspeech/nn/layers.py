"""Norms, feed-forward and layer scale."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x * alpha / sqrt(mean(x^2) + eps) over the last axis, in float32.

    `variance=True` divides by the unbiased variance of x instead (x itself is not centred): a flavour that some
    released checkpoints were computed with.
    """

    def __init__(self, dim: int, *, eps: float = 1e-8, variance: bool = False):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(dim))
        self.eps = eps
        self.variance = variance
        # As tensors: an operation with a number of Python costs more than one with two tensors.
        self._least = torch.tensor(math.sqrt(dim * eps), device="cpu")
        self._scale = torch.tensor(dim**-0.5, device="cpu")

    def forward(self, x: Tensor) -> Tensor:
        if self.variance:
            wide = x.float()
            y = wide * (self.alpha.float() * torch.rsqrt(wide.var(dim=-1, keepdim=True) + self.eps))
        elif x.is_cpu:
            # torch has no kernel of its own for it on CPUs: its ten operations take three times as long as these five,
            # which is a tenth of a small model's step. sqrt(mean(x^2) + eps) is hypot(|x|, sqrt(D * eps)) / sqrt(D).
            wide = in_float32(x)
            root = torch.hypot(torch.linalg.vector_norm(wide, dim=-1, keepdim=True), self._least)
            y = wide / (root * self._scale) * in_float32(self.alpha)
        else:
            y = F.rms_norm(x.float(), self.alpha.shape, self.alpha.float(), self.eps)
        return y if y.dtype == x.dtype else y.to(x.dtype)


def in_float32(x: Tensor) -> Tensor:
    """x.float(), but for the time that takes where there is nothing to do: a step of a small model has a hundred."""
    return x if x.dtype == torch.float32 else x.float()


def build_norm(kind: str, dim: int, *, eps: float) -> nn.Module:
    """A norm over the last axis: `rms`, `rms_variance` or `layer`."""
    match kind:
        case "rms" | "rms_variance":
            return RMSNorm(dim, eps=eps, variance=kind == "rms_variance")
        case "layer":
            return nn.LayerNorm(dim, eps=eps)
    raise ValueError(f"norm {kind!r}: expected 'rms', 'rms_variance' or 'layer'")


class FeedForward(nn.Module):
    """[..., D] -> [..., D] without biases: `W_out(silu(a) * b)` with (a, b) = W_in x, or `W_out(gelu(W_in x))`."""

    def __init__(self, *, dim: int, hidden: int, gated: bool):
        super().__init__()
        self.gated = gated
        self.linear_in = nn.Linear(dim, 2 * hidden if gated else hidden, bias=False)
        self.linear_out = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_out(gated_silu(self.linear_in(x)) if self.gated else F.gelu(self.linear_in(x)))


def gated_silu(x: Tensor) -> Tensor:
    """[..., 2D] -> [..., D]: the first half, activated, times the second."""
    gate, value = x.view(*x.shape[:-1], 2, x.shape[-1] // 2).unbind(-2)  # takes half as long as chunk
    return F.silu(gate) * value


class LayerScale(nn.Module):
    """[..., D] times one learned number per channel."""

    def __init__(self, dim: int, *, init: float):
        super().__init__()
        self.scale = nn.Parameter(torch.full((dim,), init))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale
