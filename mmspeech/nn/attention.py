"""Causal self-attention over a sliding window, for whole sequences and for streams."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmspeech.nn.rope import rotate, rotation
from mmspeech.nn.streaming import State


@dataclass
class AttentionState(State):
    """Ring of past keys and values, each [B, H, C, Dh]; the step at position p lies in slot p % C."""

    keys: Tensor
    values: Tensor


@dataclass(frozen=True)
class Steps:
    """What all layers of one forward share.

    positions [B or 1, T]; turns: rotary factors or None; mask: bool, true where a query may look, [T, T] offline or
    [B, 1, T, C] in a stream, None for the plain causal mask; slots [B, 1, T, 1]: where a stream writes its steps.
    """

    positions: Tensor
    turns: Tensor | None
    mask: Tensor | None
    slots: Tensor | None


def offline_steps(num_steps: int, *, context: int, head_dim: int, max_period: float | None, device) -> Steps:
    """Positions 0..T-1, each seeing itself and the `context - 1` steps before it."""
    positions = torch.arange(num_steps, device=device)
    mask = None
    if num_steps > context:
        distance = positions[:, None] - positions
        mask = (distance >= 0) & (distance < context)
    positions = positions[None]
    return Steps(positions, _turns(positions, head_dim, max_period), mask, None)


def streaming_steps(
    num_steps: int, *, offset: Tensor, capacity: int, context: int, head_dim: int, max_period: float | None
) -> Steps:
    """The next T positions of rows that stand at `offset` [B], against rings of `capacity` slots.

    Raises ValueError if the chunk would overwrite keys that its first step still has to see.
    """
    longest = capacity - context + 1
    if num_steps > longest:
        raise ValueError(
            f"a chunk of {num_steps} steps came to a state made for {longest}: call init_state(max_steps={num_steps})"
        )
    positions = offset[:, None] + torch.arange(num_steps, device=offset.device)
    last = positions[:, -1:]
    # A slot holds the newest position congruent to it; negative ones were never written.
    held = last - (last - torch.arange(capacity, device=offset.device)) % capacity
    distance = positions[:, :, None] - held[:, None]
    mask = (distance >= 0) & (distance < context) & (held >= 0)[:, None]
    slots = (positions % capacity)[:, None, :, None]
    return Steps(positions, _turns(positions, head_dim, max_period), mask[:, None], slots)


def _turns(positions: Tensor, head_dim: int, max_period: float | None) -> Tensor | None:
    return None if max_period is None else rotation(positions, head_dim=head_dim, max_period=max_period)


class CausalSelfAttention(nn.Module):
    """Multi-head self-attention, [B, T, D] -> [B, T, D]; rows of `in_proj` are queries, keys, values.

    It has as many heads as `in_proj` has rows for: all of them, or the share of one process among several.
    """

    def __init__(self, *, dim: int, num_heads: int):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim {dim} is not a multiple of num_heads {num_heads}")
        self.head_dim = dim // num_heads
        self.in_proj = nn.Linear(dim, 3 * dim, bias=False)
        self.out_proj = nn.Linear(dim, dim, bias=False)

    def init_state(self, batch_size: int, *, capacity: int, device, dtype) -> AttentionState:
        num_heads = self.in_proj.weight.shape[0] // (3 * self.head_dim)
        shape = (batch_size, num_heads, capacity, self.head_dim)
        return AttentionState(*(torch.zeros(shape, device=device, dtype=dtype) for _ in range(2)))

    def forward(self, x: Tensor, *, steps: Steps, state: AttentionState | None = None) -> Tensor:
        qkv = self.in_proj(x).unflatten(-1, (3, -1, self.head_dim))
        query_key, value = qkv[:, :, :2], qkv[:, :, 2].transpose(1, 2)
        if steps.turns is not None:
            query_key = rotate(query_key, steps.turns)
        query, key = query_key.permute(2, 0, 3, 1, 4).unbind(0)
        if state is not None:
            slots = steps.slots.expand_as(key)
            key = state.keys.scatter_(2, slots, key.detach().to(state.keys.dtype))
            value = state.values.scatter_(2, slots, value.detach().to(state.values.dtype))
            query = query.to(key.dtype)
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=steps.mask, is_causal=steps.mask is None)
        return self.out_proj(y.transpose(1, 2).flatten(2).to(x.dtype))
