"""Gated cross-attention from a stream of steps to what is seen."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmspeech.nn.layers import build_norm
from mmspeech.types import VisualContext

GATE_KINDS = ("sigmoid", "tanh", "scalar_sigmoid", "scalar_tanh", "none")


class CrossProjections(nn.Module):
    """Queries from steps [B, T, D]; keys and values (rows of `kv_proj` in that order) from visual tokens [B, S, Ds].

    It has as many heads as its projections have rows for, as self-attention.
    """

    def __init__(self, *, dim: int, num_heads: int, source_dim: int):
        super().__init__()
        self.head_dim = dim // num_heads
        self.q_proj = nn.Linear(dim, dim, bias=False)
        self.kv_proj = nn.Linear(source_dim, 2 * dim, bias=False)
        self.out_proj = nn.Linear(dim, dim, bias=False)

    def keys_values(self, source: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = self.kv_proj(source).chunk(2, dim=-1)
        return keys, values

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, *, mask: Tensor | None) -> Tensor:
        query, keys, values = (
            y.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for y in (self.q_proj(x), keys, values)
        )
        y = F.scaled_dot_product_attention(query.to(keys.dtype), keys, values, attn_mask=mask)
        return self.out_proj(y.transpose(1, 2).flatten(2).to(x.dtype))


class Gate(nn.Module):
    """What share of an update [B, T, D] is let through: per channel from the update itself, or one learned number.

    `shift` is added before a sigmoid; a new gate lets through about sigmoid(shift).
    """

    def __init__(self, *, dim: int, kind: str, hidden: int, shift: float):
        super().__init__()
        if kind not in GATE_KINDS:
            raise ValueError(f"gate {kind!r}: expected one of {', '.join(GATE_KINDS)}")
        self.sigmoid, self.shift = kind.endswith("sigmoid"), shift
        self.conditional = not kind.startswith("scalar")
        if self.conditional:
            self.linear_in = nn.Linear(dim, hidden, bias=False)
            self.linear_out = nn.Linear(hidden, dim, bias=False)
        else:
            self.alpha = nn.Parameter(torch.zeros(1))

    def forward(self, update: Tensor) -> Tensor:
        x = self.linear_out(F.relu(self.linear_in(update))) if self.conditional else self.alpha.to(update.dtype)
        return torch.sigmoid(x + self.shift) if self.sigmoid else torch.tanh(x)


@dataclass(frozen=True)
class Sight:
    """What the steps of one forward see: mask [B, 1, T, S] and blind [B, T, 1], true where a step sees nothing.

    A blind step attends to everything, so that its softmax is finite, and its update is dropped. Where each row's
    tokens come at once, a step sees all of them or is blind, and there is no mask.
    """

    context: VisualContext
    mask: Tensor | None
    blind: Tensor


def sight_of(context: VisualContext, positions: Tensor) -> Sight:
    """Match tokens [B, S] with positions [B or 1, T]: a token is seen from its onset on."""
    if context.at_once:
        return Sight(context, None, (context.onset_frames[:, None, 0] > positions)[..., None])
    visible = context.onset_frames[:, None, :] <= positions[:, :, None]
    blind = ~visible.any(dim=-1, keepdim=True)
    return Sight(context, (visible | blind)[:, None], blind)


class Fusion(nn.Module):
    """Norm, cross-attention and gate of every layer that looks (`layers`, indices into the transformer).

    `shared`: one set of projections for all of them; `shared_gate`: one gate for all, and if both are shared one
    learned factor per layer. Nothing is added where nothing is seen, to the bit. `gated_layers`: those with a gate.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        layers: Sequence[int],
        source_dim: int,
        shared: bool = True,
        gate: str = "sigmoid",
        gate_hidden: int,
        gate_shift: float,
        shared_gate: bool = False,
        norm: str = "rms",
        norm_eps: float = 1e-8,
    ):
        super().__init__()
        self.place = {layer: i for i, layer in enumerate(layers)}
        count = len(self.place)
        self.norms = nn.ModuleList(build_norm(norm, dim, eps=norm_eps) for _ in range(count))
        self.projections = nn.ModuleList(
            CrossProjections(dim=dim, num_heads=num_heads, source_dim=source_dim) for _ in range(1 if shared else count)
        )
        num_gates = 0 if gate == "none" else 1 if shared_gate else count
        self.gates = nn.ModuleList(
            Gate(dim=dim, kind=gate, hidden=gate_hidden, shift=gate_shift) for _ in range(num_gates)
        )
        self.factors = nn.Parameter(torch.ones(count)) if shared and shared_gate else None
        self.gated_layers = tuple(self.place) if num_gates else ()

    def keys_values(self, source: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Visual tokens [B, S, Ds] -> keys and values [B, S, D]: one of each, or one per looking layer."""
        keys, values = zip(*(projection.keys_values(source) for projection in self.projections), strict=True)
        return keys, values

    def forward(self, layer: int, x: Tensor, sight: Sight) -> tuple[Tensor, Tensor | None]:
        """x [B, T, D] of a layer -> x with what it sees, and the mean gate [B, T] (None without gates)."""
        if layer not in self.place:
            return x, None
        i = self.place[layer]
        own, own_gate = i % len(self.projections), i % max(len(self.gates), 1)
        update = self.projections[own](
            self.norms[i](x), sight.context.keys[own], sight.context.values[own], mask=sight.mask
        )
        openness = None
        if len(self.gates):
            gate = self.gates[own_gate](update)
            update = update * gate
            openness = gate.detach().mean(dim=-1, dtype=torch.float32).masked_fill(sight.blind[..., 0], 0.0)
        if self.factors is not None:
            update = update * self.factors[i]
        return x + update.masked_fill(sight.blind, 0.0), openness
