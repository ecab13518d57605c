"""Rotary positions on interleaved pairs, in float32."""

import torch
from torch import Tensor


def rotation(positions: Tensor, *, head_dim: int, max_period: float) -> Tensor:
    """Unit complex numbers [B, T, Dh / 2] that turn pair i of position p by p * max_period ** (-2i / Dh)."""
    pairs = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32)
    angles = positions.float()[..., None] * max_period ** (-pairs / head_dim)
    return torch.polar(torch.ones_like(angles), angles)


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Turn the pairs (x[2i], x[2i + 1]) of x [B, T, ..., Dh] by `turns` [B, T, Dh / 2]; the dtype stays."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    for _ in range(x.dim() - turns.dim()):
        turns = turns.unsqueeze(2)
    return torch.view_as_real(pairs * turns).flatten(-2).to(x.dtype)
