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


BLOCK_STEPS = 128


@dataclass(frozen=True)
class Block:
    """Queries that look at the same stretch of keys; mask [queries, keys], true where one may look."""

    queries: slice
    keys: slice
    mask: Tensor


@dataclass(frozen=True)
class Steps:
    """What all layers of one forward share.

    positions [B or 1, T]; turns: rotary factors or None. A stream writes its steps into slots [B, 1, T, 1] of the
    rings, or all rows into the one `slot`, reads the first `read` slots, and has mask [B, 1, T, read], true where a
    query may look, or None where every query sees all of them. Offline there are blocks when the window is shorter than
    the sequence, and otherwise the plain causal mask, which needs neither.
    """

    positions: Tensor
    turns: Tensor | None
    mask: Tensor | None = None
    slots: Tensor | None = None
    slot: int | None = None
    read: int | None = None
    blocks: tuple[Block, ...] = ()


def offline_steps(num_steps: int, *, context: int, head_dim: int, max_period: float | None, device) -> Steps:
    """Positions 0..T-1, each seeing itself and the `context - 1` steps before it."""
    positions = torch.arange(num_steps, device=device)[None]
    blocks = _blocks(num_steps, context, device) if num_steps > context else ()
    return Steps(positions, _turns(positions, head_dim, max_period), blocks=blocks)


def _blocks(num_steps: int, context: int, device) -> tuple[Block, ...]:
    """Blocks of queries with the keys in reach of any of them: the work grows with the sequence, not its square."""
    width, before = max(context, BLOCK_STEPS), context - 1
    keys = torch.arange(before + width, device=device)
    ahead = keys - torch.arange(width, device=device)[:, None]
    mask = (ahead >= 0) & (ahead < context)
    blocks = []
    for start in range(0, num_steps, width):
        stop, first = min(start + width, num_steps), max(start - before, 0)
        own = mask[: stop - start, first - start + before : stop - start + before]
        blocks.append(Block(slice(start, stop), slice(first, stop), own))
    return tuple(blocks)


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
    turns, reach = _turns(positions, head_dim, max_period), _known_reach(offset)
    read = capacity if reach is None else min(capacity, reach[1] + num_steps)
    if num_steps == 1 and reach is not None and reach[0] == reach[1] and read <= context:
        return Steps(positions, turns, slot=reach[0] % capacity, read=read)  # calls in step: all that is there is seen
    last = positions[:, -1:]
    # A slot holds the newest position congruent to it; negative ones were never written.
    held = last - (last - torch.arange(read, device=offset.device)) % capacity
    distance = positions[:, :, None] - held[:, None]
    mask = (distance >= 0) & (distance < context) & (held >= 0)[:, None]
    return Steps(positions, turns, mask[:, None], slots=(positions % capacity)[:, None, :, None], read=read)


def _known_reach(offset: Tensor) -> tuple[int, int] | None:
    """The least and the greatest number of steps taken by a row: slots that no row has reached need not be read. None
    on other devices, where to know it would mean to wait."""
    return (int(offset.min()), int(offset.max())) if offset.device.type == "cpu" else None


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
            query = query.to(state.keys.dtype)
            key, value = _kept(state.keys, key.detach(), steps), _kept(state.values, value.detach(), steps)
        if steps.blocks:
            parts = [
                F.scaled_dot_product_attention(
                    query[:, :, block.queries], key[:, :, block.keys], value[:, :, block.keys], attn_mask=block.mask
                )
                for block in steps.blocks
            ]
            y = torch.cat(parts, dim=2)
        else:
            is_causal = state is None and steps.mask is None
            y = F.scaled_dot_product_attention(query, key, value, attn_mask=steps.mask, is_causal=is_causal)
        return self.out_proj(y.transpose(1, 2).flatten(2).to(x.dtype))


def _kept(ring: Tensor, new: Tensor, steps: Steps) -> Tensor:
    """What is there to read of a ring [B, H, C, Dh] with the new steps [B, H, T, Dh] in their slots."""
    if steps.slot is not None:
        ring.narrow(2, steps.slot, 1).copy_(new)
    else:
        ring.scatter_(2, steps.slots.expand_as(new), new.to(ring.dtype))
    return ring.narrow(2, 0, steps.read)
