"""Gated cross-attention from a stream of steps to what is seen."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmspeech.nn.layers import build_norm
from mmspeech.types import VisualContext

GATE_KINDS = ("sigmoid", "tanh", "scalar_sigmoid", "scalar_tanh", "none")


class CrossProjections(nn.Module):
    """Queries from steps [B, T, D]; keys and values (rows of `kv_proj` in that order) from visual tokens [B, S, Ds].

    It has as many heads as its projections have rows for, as self-attention. With `age_buckets` a key also carries how
    long ago it came: what `age` makes of that bucket is added to it for each step. Zeros at first.
    """

    def __init__(self, *, dim: int, num_heads: int, source_dim: int, age_buckets: int = 0):
        super().__init__()
        self.head_dim, self.age_buckets = dim // num_heads, age_buckets
        self.q_proj = nn.Linear(dim, dim, bias=False)
        self.kv_proj = nn.Linear(source_dim, 2 * dim, bias=False)
        self.out_proj = nn.Linear(dim, dim, bias=False)
        # A table, as a matrix: split over processes by heads like the other projections.
        self.age = nn.Linear(age_buckets, dim, bias=False) if age_buckets else None
        if self.age is not None:
            nn.init.zeros_(self.age.weight)

    def keys_values(self, source: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = self.kv_proj(source).chunk(2, dim=-1)
        return keys, values

    def forward(
        self, x: Tensor, keys: Tensor, values: Tensor, *, mask: Tensor | None, ages: Tensor | None = None
    ) -> Tensor:
        """x [B, T, D], keys, values [B, S, D], mask [B, 1, T, S] bool, ages [B, T, S] long (buckets) -> [B, T, D]."""
        query, keys, values = (
            y.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for y in (self.q_proj(x), keys, values)
        )
        query = query.to(keys.dtype)
        if self.age is not None:
            mask = self._age_logits(query, ages).masked_fill(~mask, -torch.inf)
        y = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
        return self.out_proj(y.transpose(1, 2).flatten(2).to(x.dtype))

    def _age_logits(self, query: Tensor, ages: Tensor) -> Tensor:
        """query [B, H, T, Dh] and ages [B, T, S] -> what the age of a key adds to each logit, [B, H, T, S]."""
        buckets = torch.eye(self.age_buckets, device=query.device, dtype=query.dtype)
        table = self.age(buckets).unflatten(-1, (-1, self.head_dim)).permute(1, 2, 0)
        by_bucket = (query @ table.to(query.dtype)) * self.head_dim**-0.5
        return by_bucket.gather(-1, ages[:, None].expand(-1, query.shape[1], -1, -1))


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


BLOCK_STEPS = 6  # frames of a clip come 6 steps apart, so that a block sees two of them
BLOCKS_FROM_FRAMES = 5  # fewer pictures are looked at faster all at once


@dataclass(frozen=True)
class Blocks:
    """The steps of whole calls in blocks of BLOCK_STEPS, each of which looks only at pictures that a step of it sees.

    frames [N * W] long: the W pictures of each of the N blocks, numbers into all pictures of all rows; B, T: of the
    steps.
    """

    frames: Tensor
    batch_size: int
    num_steps: int
    frame_tokens: int

    def join(self, x: Tensor) -> Tensor:
        """What `split_steps` makes, put together again."""
        return x.unflatten(0, (self.batch_size, -1)).flatten(1, 2)[:, : self.num_steps]

    def pick(self, tokens: Tensor) -> Tensor:
        """Of tokens [B, S, ...] those that each block looks at [N, W * frame_tokens, ...]."""
        whole = tokens.flatten(0, 1).unflatten(0, (-1, self.frame_tokens)).flatten(1)  # a row each: copied as a whole
        picked = whole.index_select(0, self.frames)
        num_blocks = self.batch_size * -(-self.num_steps // BLOCK_STEPS)
        return picked.view(num_blocks, -1, *tokens.shape[2:])


def split_steps(x: Tensor) -> Tensor:
    """[B, T, ...] -> [N, BLOCK_STEPS, ...]; the last step is repeated to fill the last block."""
    missing = -x.shape[1] % BLOCK_STEPS
    if missing:
        x = torch.cat([x, x[:, -1:].expand(-1, missing, *x.shape[2:])], dim=1)
    return x.unflatten(1, (-1, BLOCK_STEPS)).flatten(0, 1)


@dataclass(frozen=True)
class Sight:
    """What the steps of one forward see: mask [B, 1, T, S] and blind [B, T, 1], true where a step sees nothing; ages
    [B, T, S] long: the bucket of how long ago a token came, where keys carry that. With `blocks` mask and ages are of
    blocks, for B, and the tokens these look at.

    A blind step attends to everything, so that its softmax is finite, and its update is dropped. Where each row's
    tokens come at once, a step sees all of them or is blind, and there is no mask.
    """

    context: VisualContext
    mask: Tensor | None
    blind: Tensor
    ages: Tensor | None = None
    blocks: Blocks | None = None


def sight_of(context: VisualContext, positions: Tensor, *, age_starts: Tensor | None = None) -> Sight:
    """Match tokens [B, S] with positions [B or 1, T]: a token is seen from its onset on, until it leaves.

    age_starts: the age in frames at which each bucket begins, ascending from 0.
    """
    onset, until = context.onset_frames, context.until_frames
    if context.at_once and age_starts is None:
        return Sight(context, None, (onset[:, None, 0] > positions)[..., None])
    if _has_blocks(context, positions):
        return _sight_in_blocks(context, positions.expand(len(onset), -1), age_starts)
    visible = onset[:, None, :] <= positions[:, :, None]
    if until is not None:
        visible = visible & (positions[:, :, None] < until[:, None, :])
    blind = ~visible.any(dim=-1, keepdim=True)
    ages = None
    if age_starts is not None:
        stamps = onset if context.stamp_frames is None else context.stamp_frames
        age = (positions[:, :, None] - stamps[:, None, :]).clamp(min=0)
        ages = torch.bucketize(age, age_starts, right=True) - 1
    return Sight(context, (visible | blind)[:, None], blind, ages)


def _has_blocks(context: VisualContext, positions: Tensor) -> bool:
    num_tokens, many = context.onset_frames.shape[1], BLOCKS_FROM_FRAMES
    return context.frame_tokens is not None and num_tokens >= many * context.frame_tokens and positions.shape[1] > 1


def _sight_in_blocks(context: VisualContext, positions: Tensor, age_starts: Tensor | None) -> Sight:
    """Each block as a row of its own; positions [B, T]."""
    size = context.frame_tokens
    onset, until = (times.unflatten(1, (-1, size)).amin(-1) for times in (context.onset_frames, context.until_frames))
    batch_size, num_frames = onset.shape
    steps = split_steps(positions)
    # Of each block [B, N / B]: how many pictures have left before it, and how many have come when it ends.
    begins, ends = (steps[:, place].view(batch_size, -1, 1) for place in (0, -1))
    first, end = (until[:, None] <= begins).sum(-1), (onset[:, None] <= ends).sum(-1)
    width = max(1, int((end - first).max()))
    number = first[..., None] + torch.arange(width, device=first.device)
    rows = torch.arange(batch_size, device=first.device)[:, None, None] * num_frames
    blocks = Blocks((rows + number.clamp(max=num_frames - 1)).flatten(), *positions.shape, size)
    there = (number < num_frames).flatten(0, 1).repeat_interleave(size, dim=1)
    onsets = torch.where(there, blocks.pick(context.onset_frames), VisualContext.NEVER)
    inside = VisualContext((), (), onsets, blocks.pick(context.until_frames))
    sight = sight_of(inside, steps, age_starts=age_starts)
    return replace(sight, context=context, blind=blocks.join(sight.blind), blocks=blocks)


def age_bucket_starts(count: int) -> list[int]:
    """The first age in frames of each of `count` buckets: single frames at first, then four to an octave (two frames of
    a clip that come half a second apart fall into different ones for the first three seconds)."""
    starts: list[int] = []
    for k in range(count):
        starts.append(0 if k == 0 else max(starts[-1] + 1, round(2 ** ((k - 1) / 4))))
    return starts


class Fusion(nn.Module):
    """Norm, cross-attention and gate of every layer that looks (`layers`, indices into the transformer).

    `shared`: one set of projections for all of them; `shared_gate`: one gate for all, and if both are shared one
    learned factor per layer. `age_buckets`: see CrossProjections. Nothing is added where nothing is seen, to the bit.
    `gated_layers`: those with a gate.
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
        age_buckets: int = 0,
        norm: str = "rms",
        norm_eps: float = 1e-8,
    ):
        super().__init__()
        self.place = {layer: i for i, layer in enumerate(layers)}
        count = len(self.place)
        self.norms = nn.ModuleList(build_norm(norm, dim, eps=norm_eps) for _ in range(count))
        self.projections = nn.ModuleList(
            CrossProjections(dim=dim, num_heads=num_heads, source_dim=source_dim, age_buckets=age_buckets)
            for _ in range(1 if shared else count)
        )
        starts = torch.tensor(age_bucket_starts(age_buckets)) if age_buckets else None
        self.register_buffer("age_starts", starts, persistent=False)
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

    def sight(self, context: VisualContext, positions: Tensor) -> Sight:
        """What steps at `positions` [B or 1, T] see of `context`."""
        return sight_of(context, positions, age_starts=self.age_starts)

    def forward(self, layer: int, x: Tensor, sight: Sight) -> tuple[Tensor, Tensor | None]:
        """x [B, T, D] of a layer -> x with what it sees, and the mean gate [B, T] (None without gates)."""
        if layer not in self.place:
            return x, None
        i = self.place[layer]
        own, own_gate = i % len(self.projections), i % max(len(self.gates), 1)
        keys, values = sight.context.keys[own], sight.context.values[own]
        update = self._look(self.projections[own], self.norms[i](x), keys, values, sight)
        openness = None
        if len(self.gates):
            gate = self.gates[own_gate](update)
            update = update * gate
            openness = gate.detach().mean(dim=-1, dtype=torch.float32).masked_fill(sight.blind[..., 0], 0.0)
        if self.factors is not None:
            update = update * self.factors[i]
        return x + update.masked_fill(sight.blind, 0.0), openness

    def _look(self, projections: CrossProjections, x: Tensor, keys: Tensor, values: Tensor, sight: Sight) -> Tensor:
        seen = {"mask": sight.mask, "ages": sight.ages}
        if (blocks := sight.blocks) is None:
            return projections(x, keys, values, **seen)
        return blocks.join(projections(split_steps(x), blocks.pick(keys), blocks.pick(values), **seen))
