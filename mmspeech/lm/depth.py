"""The depth transformer: one hidden vector -> the K codes of a frame, each given the text token and the codes before.

Every one of the K steps has its own weights. Tensors run step-first, [K, M, ...] with M frames of any origin, so that a
whole batch of frames is one batched product per weight (training), and one step of it a plain product (sampling).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmspeech.nn.layers import build_norm, gated_silu
from mmspeech.nn.streaming import State

EMBEDDING_STD = 0.05


@dataclass
class DepthLayerState(State):
    """keys_values [B, 2, H, K, Dh] of the frame in work; each frame overwrites the last."""

    keys_values: Tensor


@dataclass
class DepthState(State):
    """layers: one state each."""

    layers: list[DepthLayerState]


class StepLinear(nn.Module):
    """One matrix per step, weight [K, out, in]: x [k, M, in] of the first k steps -> [k, M, out], or x [M, in] of step
    `number` -> [M, out].

    Without a number x [M, in] goes through the matrices of the first `count` steps (None: of all) -> [count, M, out].
    With a `schedule` there are fewer matrices than steps: step k has number schedule[k].
    """

    def __init__(self, num_steps: int, in_dim: int, out_dim: int, *, schedule: Sequence[int] | None = None):
        super().__init__()
        self.schedule = None if schedule is None else list(schedule)
        num_matrices = num_steps if schedule is None else max(schedule) + 1
        self.weight = nn.Parameter(torch.empty(num_matrices, out_dim, in_dim))
        nn.init.uniform_(self.weight, -(in_dim**-0.5), in_dim**-0.5)

    def forward(self, x: Tensor, number: int | None = None, *, count: int | None = None) -> Tensor:
        if number is not None:
            return F.linear(x, self.weight[number if self.schedule is None else self.schedule[number]])
        if x.dim() == 3:
            return torch.bmm(x, self._of_steps(len(x)).transpose(1, 2))
        numbers = None if self.schedule is None else self.schedule[:count]
        weight = self._first(count) if numbers is None else self.weight[: max(numbers) + 1]
        y = F.linear(x, weight.flatten(0, 1)).unflatten(-1, weight.shape[:2]).transpose(0, 1)
        return y if numbers is None else y[numbers]

    def _of_steps(self, count: int) -> Tensor:
        return self._first(count) if self.schedule is None else self.weight[self.schedule[:count]]

    def _first(self, count: int | None) -> Tensor:
        """The first matrices. All of them are not a slice, whose gradient would be filled up and copied."""
        return self.weight if count in (None, len(self.weight)) else self.weight[:count]


class StepLinears(nn.Module):
    """A StepLinear whose matrices stand one by one, for what can not hold them in one tensor: quantised weights,
    and those that DeepSpeed splits."""

    def __init__(self, steps: list[nn.Linear]):
        super().__init__()
        self.steps = nn.ModuleList(steps)

    @classmethod
    def of(cls, whole: StepLinear) -> "StepLinears":
        """The same matrices, not copied."""
        steps = []
        for weight in whole.weight.detach():
            with torch.device("meta"):
                linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            linear.weight = nn.Parameter(weight, requires_grad=False)
            steps.append(linear)
        return cls(steps)

    def forward(self, x: Tensor, number: int | None = None, *, count: int | None = None) -> Tensor:
        if number is not None:
            return self.steps[number](x)
        rows = x if x.dim() == 3 else [x] * len(self.steps[:count])
        return torch.stack([step(row) for step, row in zip(self.steps, rows, strict=False)])


class DepthLayer(nn.Module):
    """Pre-norm causal attention over the steps of a frame and a gated feed-forward; only the norms are shared by all.

    With a `schedule` some steps have their matrices together (see StepLinear).
    """

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        ffn_dim: int,
        num_steps: int,
        norm: str,
        norm_eps: float,
        schedule: Sequence[int] | None = None,
    ):
        super().__init__()
        self.num_heads, self.head_dim = num_heads, dim // num_heads  # DeepSpeed sets the first to a process's share
        self.norm1 = build_norm(norm, dim, eps=norm_eps)
        self.in_proj = StepLinear(num_steps, dim, 3 * dim, schedule=schedule)
        self.out_proj = StepLinear(num_steps, dim, dim, schedule=schedule)
        self.norm2 = build_norm(norm, dim, eps=norm_eps)
        self.ffn_in = StepLinear(num_steps, dim, 2 * ffn_dim, schedule=schedule)
        self.ffn_out = StepLinear(num_steps, ffn_dim, dim, schedule=schedule)

    def init_state(self, batch_size: int, *, num_steps: int, device, dtype) -> DepthLayerState:
        shape = (batch_size, 2, self.num_heads, num_steps, self.head_dim)
        return DepthLayerState(torch.zeros(shape, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """All steps of whole frames, or the first ones, [K, M, D]."""
        count, rows = x.shape[:2]
        qkv = self.in_proj(self.norm1(x))
        query, key, value = qkv.view(count, rows, 3, self.num_heads, self.head_dim).permute(2, 1, 3, 0, 4).unbind(0)
        y = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out_proj(y.permute(2, 0, 1, 3).flatten(2))
        return x + self.ffn_out(gated_silu(self.ffn_in(self.norm2(x))))

    def step(self, x: Tensor, number: int, state: DepthLayerState) -> Tensor:
        """One step of a frame, [M, D], after those whose keys and values are in `state`."""
        qkv = self.in_proj(self.norm1(x), number).view(x.shape[0], 3, -1, self.head_dim)
        state.keys_values.select(3, number).copy_(qkv.narrow(1, 1, 2))
        key, value = state.keys_values.narrow(3, 0, number + 1).unbind(1)
        query = qkv.select(1, 0).unsqueeze(2).to(key.dtype)
        y = F.scaled_dot_product_attention(query, key, value).flatten(1)
        x = x + self.out_proj(y.to(x.dtype), number)
        return x + self.ffn_out(gated_silu(self.ffn_in(self.norm2(x), number)), number)


class DepthTransformer(nn.Module):
    """hidden [..., D] -> logits of K codebooks. Ids may be -1 (embedded as zeros) up to the cards (initial tokens)."""

    def __init__(
        self,
        *,
        text_card: int,
        audio_card: int,
        num_codebooks: int,
        source_dim: int,
        dim: int,
        num_heads: int,
        num_layers: int,
        ffn_dim: int,
        norm: str = "rms",
        norm_eps: float = 1e-8,
    ):
        super().__init__()
        self.num_codebooks = num_codebooks
        self.audio_rows = audio_card + 1
        self.hidden_in = StepLinear(num_codebooks, source_dim, dim)
        self.text_emb = nn.Parameter(torch.empty(text_card + 1, dim))
        self.audio_emb = nn.Parameter(torch.empty((num_codebooks - 1) * self.audio_rows, dim))
        for table in (self.text_emb, self.audio_emb):
            nn.init.normal_(table, std=EMBEDDING_STD)
        self.layers = nn.ModuleList(
            DepthLayer(
                dim=dim, num_heads=num_heads, ffn_dim=ffn_dim, num_steps=num_codebooks, norm=norm, norm_eps=norm_eps
            )
            for _ in range(num_layers)
        )
        self.audio_linear = StepLinear(num_codebooks, dim, audio_card)

    def init_state(self, batch_size: int, *, device=None, dtype=None) -> DepthState:
        options = {"device": device or self.text_emb.device, "dtype": dtype or self.text_emb.dtype}
        return DepthState(
            [layer.init_state(batch_size, num_steps=self.num_codebooks, **options) for layer in self.layers]
        )

    def forward(self, hidden: Tensor, text: Tensor, codes: Tensor) -> Tensor:
        """Teacher-forced: hidden [..., D], text [...], codes [..., K] of the same frames -> logits [..., K, card].

        With the codes of the first codebooks only, only their steps are run.
        """
        lead = text.shape
        hidden, text = hidden.reshape(-1, hidden.shape[-1]), text.reshape(-1)
        codes = codes.reshape(-1, codes.shape[-1])
        earlier = codes[:, :-1].t()
        starts = torch.arange(earlier.shape[0], device=codes.device)[:, None] * self.audio_rows
        tokens = torch.cat([_embed(text[None], self.text_emb), _embed(earlier, self.audio_emb, starts)])
        x = self.hidden_in(hidden, count=codes.shape[1]) + tokens
        for layer in self.layers:
            x = layer(x)
        return self.audio_linear(x).transpose(0, 1).unflatten(0, lead)

    @torch.no_grad()
    def sample(
        self, hidden: Tensor, text: Tensor, choose: Callable[[int, Tensor], Tensor], *, state: DepthState, count: int
    ) -> tuple[Tensor, list[Tensor]]:
        """hidden [B, D], text [B] -> the first `count` codes [B, K] and their K logits [B, card]; `choose(k, logits)`
        picks ids [B]."""
        projected, token = self.hidden_in(hidden, count=count), _embed(text, self.text_emb)
        chosen, logits = [], []
        for k in range(count):
            if k > 0:  # what is drawn is never -1
                token = F.embedding(chosen[-1] + (k - 1) * self.audio_rows, self.audio_emb)
            x = projected[k] + token
            for layer, own in zip(self.layers, state.layers, strict=True):
                x = layer.step(x, k, own)
            logits.append(self.audio_linear(x, k))
            chosen.append(choose(k, logits[-1]))
        return torch.stack(chosen, dim=1), logits


def _embed(ids: Tensor, table: Tensor, start: Tensor | int = 0) -> Tensor:
    return F.embedding(ids.clamp(min=0) + start, table) * (ids >= 0)[..., None].to(table.dtype)
