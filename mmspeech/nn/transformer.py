"""Pre-norm causal transformer: the temporal stack of the language model, and those inside Mimi."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmspeech.nn.attention import AttentionState, CausalSelfAttention, Steps, offline_steps, streaming_steps
from mmspeech.nn.layers import FeedForward, LayerScale, build_norm
from mmspeech.nn.streaming import State

Watch = Callable[[int, Tensor], None]


@dataclass
class TransformerState(State):
    """offset [B] long: steps taken by each row; layers: one ring each."""

    offset: Tensor
    layers: list[AttentionState]


class TransformerLayer(nn.Module):
    """Self-attention and feed-forward, each behind a norm: two calls, so that something may stand between them."""

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        ffn_dim: int,
        norm: str = "rms",
        norm_eps: float = 1e-8,
        gated_ffn: bool = True,
        layer_scale: float | None = None,
    ):
        super().__init__()
        self.norm1 = build_norm(norm, dim, eps=norm_eps)
        self.self_attn = CausalSelfAttention(dim=dim, num_heads=num_heads)
        self.norm2 = build_norm(norm, dim, eps=norm_eps)
        self.ffn = FeedForward(dim=dim, hidden=ffn_dim, gated=gated_ffn)
        self.scale1, self.scale2 = (
            nn.Identity() if layer_scale is None else LayerScale(dim, init=layer_scale) for _ in range(2)
        )

    def attend(self, x: Tensor, *, steps: Steps, state: AttentionState | None) -> Tensor:
        return x + self.scale1(self.self_attn(self.norm1(x), steps=steps, state=state))

    def feed(self, x: Tensor) -> Tensor:
        return x + self.scale2(self.ffn(self.norm2(x)))


class Transformer(nn.Module):
    """[B, T, D] -> [B, T, D], causal; a step sees itself and the `context - 1` steps before it.

    `forward(x)` starts at position 0; with a state it continues in place, for any chunk of at most the state's
    `max_steps` steps, with equal results. No final norm.

    `recompute`: set it to keep only each layer's input for the backward pass and compute the layer again there, which
    trades a third more time for memory that does not grow with a layer's width.
    """

    recompute = False

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        num_layers: int,
        ffn_dim: int,
        context: int,
        norm: str = "rms",
        norm_eps: float = 1e-8,
        max_period: float | None = 10_000.0,
        gated_ffn: bool = True,
        layer_scale: float | None = None,
    ):
        super().__init__()
        self.context = context
        self.head_dim = dim // num_heads
        self.max_period = max_period
        self.layers = nn.ModuleList(
            TransformerLayer(
                dim=dim, num_heads=num_heads, ffn_dim=ffn_dim, norm=norm, norm_eps=norm_eps,
                gated_ffn=gated_ffn, layer_scale=layer_scale,
            )
            for _ in range(num_layers)
        )  # fmt: skip

    def init_state(self, batch_size: int, *, max_steps: int = 1, device=None, dtype=None) -> TransformerState:
        """Empty state for chunks of up to `max_steps` steps; device and dtype default to those of the weights."""
        weight = self.layers[0].self_attn.in_proj.weight
        device, dtype = device or weight.device, dtype or weight.dtype
        capacity = self.context + max_steps - 1
        rings = [
            layer.self_attn.init_state(batch_size, capacity=capacity, device=device, dtype=dtype)
            for layer in self.layers
        ]
        return TransformerState(torch.zeros(batch_size, dtype=torch.long, device=device), rings)

    def plan(self, num_steps: int, *, state: TransformerState | None, device) -> Steps:
        """Positions, mask and rotary factors of the next `num_steps` steps."""
        common = {"context": self.context, "head_dim": self.head_dim, "max_period": self.max_period}
        if state is None:
            return offline_steps(num_steps, device=device, **common)
        capacity = state.layers[0].keys.shape[2]
        return streaming_steps(num_steps, offset=state.offset, capacity=capacity, **common)

    def compile_layers(self) -> None:
        """Let torch.compile fuse what each layer does; the same kernels serve all layers. Names and results stay."""
        for layer in self.layers:
            layer.attend, layer.feed = torch.compile(layer.attend), torch.compile(layer.feed)

    def forward(
        self,
        x: Tensor,
        *,
        state: TransformerState | None = None,
        between: Callable[[int, Tensor, Tensor], Tensor] | None = None,
        watch: Watch | None = None,
    ) -> Tensor:
        """`between(layer index, x [B, T, D], positions [B or 1, T])` replaces x after each layer's self-attention;
        `watch(layer index, x)` is told what each layer gives."""
        num_steps = x.shape[1]
        steps = self.plan(num_steps, state=state, device=x.device)
        for index in range(len(self.layers)):
            if self.recompute and torch.is_grad_enabled():
                # ZeRO-3 gives weights back between the two passes, which the check would take for a difference.
                x = checkpoint(
                    self._layer, index, x, steps, state, between, use_reentrant=False, determinism_check="none"
                )
            else:
                x = self._layer(index, x, steps, state, between)
            if watch is not None:
                watch(index, x)
        if state is not None:
            state.offset.add_(num_steps)
        return x

    def _layer(self, index: int, x: Tensor, steps: Steps, state: TransformerState | None, between) -> Tensor:
        layer = self.layers[index]
        x = layer.attend(x, steps=steps, state=None if state is None else state.layers[index])
        if between is not None:
            x = between(index, x, steps.positions)
        return layer.feed(x)
