"""Rotary positions on interleaved pairs, turned in float32 by angles that stay exact in long calls."""

import math

import torch
from torch import Tensor


def rotation(positions: Tensor, *, head_dim: int, max_period: float) -> Tensor:
    """Unit complex numbers [B, T, Dh / 2] that turn pair i of position p by p * max_period ** (-2i / Dh).

    After an hour (45,000 steps) a float32 angle is off by 0.002 rad, and steps no longer lie as far apart as they do.
    """
    pairs = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32)
    exact = torch.float32 if positions.device.type == "mps" else torch.float64  # which mps does not have
    angles = (positions.to(exact)[..., None] * (max_period ** (-pairs / head_dim)).to(exact)) % (2 * math.pi)
    return torch.polar(torch.ones_like(angles), angles).to(torch.complex64)


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Turn the pairs (x[2i], x[2i + 1]) of x [B, T, ..., Dh] by `turns` [B, T, Dh / 2]; the dtype stays."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    for _ in range(x.dim() - turns.dim()):
        turns = turns.unsqueeze(2)
    return torch.view_as_real(pairs * turns).flatten(-2).to(x.dtype)
