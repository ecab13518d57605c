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
    """One matrix per step, weight [K, out, in]: x [k, M, in] of the steps from `first` on -> [k, M, out].

    x [M, in] goes through the matrices of the first `count` steps (None: of all) -> [count, M, out]. With a `schedule`
    there are fewer matrices than steps: step k has number schedule[k].
    """

    def __init__(self, num_steps: int, in_dim: int, out_dim: int, *, schedule: Sequence[int] | None = None):
        super().__init__()
        self.schedule = None if schedule is None else list(schedule)
        num_matrices = num_steps if schedule is None else max(schedule) + 1
        self.weight = nn.Parameter(torch.empty(num_matrices, out_dim, in_dim))
        nn.init.uniform_(self.weight, -(in_dim**-0.5), in_dim**-0.5)

    def forward(self, x: Tensor, first: int = 0, count: int | None = None) -> Tensor:
        if self.schedule is not None:
            return self._scheduled(x, first, count)
        if x.dim() == 2:
            weight = self._steps(0, self.weight.shape[0] if count is None else count)
            return F.linear(x, weight.flatten(0, 1)).unflatten(-1, weight.shape[:2]).transpose(0, 1)
        if x.shape[0] == 1:
            return F.linear(x, self.weight[first])
        return torch.bmm(x, self._steps(first, x.shape[0]).transpose(1, 2))

    def _scheduled(self, x: Tensor, first: int, count: int | None) -> Tensor:
        if x.dim() == 2:
            numbers = self.schedule[:count]
            used = self.weight[: max(numbers) + 1]
            return F.linear(x, used.flatten(0, 1)).unflatten(-1, used.shape[:2]).transpose(0, 1)[numbers]
        if x.shape[0] == 1:
            return F.linear(x, self.weight[self.schedule[first]])
        return torch.bmm(x, self.weight[self.schedule[first : first + x.shape[0]]].transpose(1, 2))

    def _steps(self, first: int, count: int) -> Tensor:
        """Matrices of `count` steps. All of them are not a slice, whose gradient would be filled up and copied."""
        return self.weight if count == self.weight.shape[0] else self.weight[first : first + count]


class StepLinears(nn.Module):
    """A StepLinear whose matrices stand one by one, for what can not hold them in one tensor (quantised weights)."""

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

    def forward(self, x: Tensor, first: int = 0, count: int | None = None) -> Tensor:
        if x.dim() == 2:
            return torch.stack([step(x) for step in self.steps[:count]])
        return torch.stack([self.steps[first + k](rows) for k, rows in enumerate(x)])


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
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.norm1 = build_norm(norm, dim, eps=norm_eps)
        self.in_proj = StepLinear(num_steps, dim, 3 * dim, schedule=schedule)
        self.out_proj = StepLinear(num_steps, dim, dim, schedule=schedule)
        self.norm2 = build_norm(norm, dim, eps=norm_eps)
        self.ffn_in = StepLinear(num_steps, dim, 2 * ffn_dim, schedule=schedule)
        self.ffn_out = StepLinear(num_steps, ffn_dim, dim, schedule=schedule)

    def init_state(self, batch_size: int, *, num_steps: int, device, dtype) -> DepthLayerState:
        shape = (batch_size, 2, self.num_heads, num_steps, self.head_dim)
        return DepthLayerState(torch.zeros(shape, device=device, dtype=dtype))

    def forward(self, x: Tensor, *, first: int = 0, state: DepthLayerState | None = None) -> Tensor:
        count, rows = x.shape[:2]
        qkv = self.in_proj(self.norm1(x), first)
        num_heads = qkv.shape[-1] // (3 * self.head_dim)  # of this process
        qkv = qkv.view(count, rows, 3, num_heads, self.head_dim).permute(1, 2, 3, 0, 4)
        if state is None:
            query, key, value = qkv.unbind(1)
        else:
            query = qkv.select(1, 0)
            state.keys_values.narrow(3, first, count).copy_(qkv.narrow(1, 1, 2))
            key, value = state.keys_values.narrow(3, 0, first + count).unbind(1)
        y = F.scaled_dot_product_attention(query.to(key.dtype), key, value, is_causal=x.shape[0] > 1)
        x = x + self.out_proj(y.permute(2, 0, 1, 3).flatten(2).to(x.dtype), first)
        return x + self.ffn_out(gated_silu(self.ffn_in(self.norm2(x), first)), first)


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
        return self._run(x).transpose(0, 1).unflatten(0, lead)

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
            logits.append(self._run(projected[k : k + 1] + token, first=k, state=state)[0])
            chosen.append(choose(k, logits[-1]))
        return torch.stack(chosen, dim=1), logits

    def _run(self, x: Tensor, *, first: int = 0, state: DepthState | None = None) -> Tensor:
        for index, layer in enumerate(self.layers):
            x = layer(x, first=first, state=None if state is None else state.layers[index])
        return self.audio_linear(x, first)


def _embed(ids: Tensor, table: Tensor, start: Tensor | int = 0) -> Tensor:
    return F.embedding(ids.clamp(min=0) + start, table) * (ids >= 0)[..., None].to(table.dtype)
