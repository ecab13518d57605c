"""The temporal transformer: what was said and heard so far -> a hidden vector and the next text token."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmspeech.config import TransformerConfig
from mmspeech.nn.cross_attention import Fusion
from mmspeech.nn.layers import build_norm
from mmspeech.nn.transformer import Transformer, TransformerState, Watch
from mmspeech.types import VisualContext

GATE_REPORT_LAYERS = 10
EMBEDDING_STD = 0.05


@dataclass
class LMOut:
    """hidden [B, T, D] (normed; the depth transformer reads it), text_logits [B, T, V] or None, gate [B, T], and
    layer_gates [B, T, L], one for each of the `gated_layers`.

    layer_gates: mean over channels of how far a layer lets what it sees in; 0 without a picture. gate: their mean over
    the last ten layers.
    """

    hidden: Tensor
    text_logits: Tensor | None
    gate: Tensor
    layer_gates: Tensor


class TokenEmbedding(nn.Module):
    """Sum of one embedding per stream, from one table of `num_streams * card` rows.

    Ids [B, R, T] -> [B, T, D]; id -1 adds zeros.
    """

    def __init__(self, *, num_streams: int, card: int, dim: int):
        super().__init__()
        self.card = card
        self.weight = nn.Parameter(torch.empty(num_streams * card, dim))
        nn.init.normal_(self.weight, std=EMBEDDING_STD)

    def forward(self, ids: Tensor) -> Tensor:
        ids = ids.transpose(1, 2)
        rows = ids.clamp(min=0)
        if ids.shape[2] > 1:
            rows = rows + torch.arange(0, self.weight.shape[0], self.card, device=ids.device)
        return (F.embedding(rows, self.weight) * (ids >= 0)[..., None].to(self.weight.dtype)).sum(dim=2)


class TemporalTransformer(nn.Module):
    """Streams [B, 1 + 2K, T] with delays applied -> LMOut. Ids run to text_card and audio_card (the initial tokens).

    With `logits` false the text head stays out: a loss runs it on the frames that it counts. `watch`: see
    Transformer.forward.
    """

    def __init__(
        self,
        *,
        text_card: int,
        audio_card: int,
        num_audio_streams: int,
        dim: int,
        transformer: Transformer,
        fusion: Fusion | None,
        norm: str,
        norm_eps: float,
    ):
        super().__init__()
        self.text_emb = TokenEmbedding(num_streams=1, card=text_card + 1, dim=dim)
        self.audio_emb = TokenEmbedding(num_streams=num_audio_streams, card=audio_card + 1, dim=dim)
        self.transformer = transformer
        self.fusion = fusion
        self.out_norm = build_norm(norm, dim, eps=norm_eps)
        self.text_linear = nn.Linear(dim, text_card, bias=False)

    def forward(
        self,
        codes: Tensor,
        *,
        visual: VisualContext | None = None,
        state: TransformerState | None = None,
        logits: bool = True,
        watch: Watch | None = None,
    ) -> LMOut:
        x = self.text_emb(codes[:, :1]) + self.audio_emb(codes[:, 1:])
        gate = torch.zeros(x.shape[:2], device=x.device)
        layer_gates = gate[..., None].expand(-1, -1, len(self.gated_layers))
        if visual is None:
            x = self.transformer(x, state=state, watch=watch)
        else:
            x, gate, layer_gates = self._look(x, gate, visual, state, watch)
        hidden = self.out_norm(x)
        return LMOut(hidden, self.text_linear(hidden) if logits else None, gate, layer_gates)

    @property
    def gated_layers(self) -> tuple[int, ...]:
        """Indices of the layers that look through a gate."""
        return () if self.fusion is None else self.fusion.gated_layers

    def _look(
        self, x: Tensor, gate: Tensor, visual: VisualContext, state: TransformerState | None, watch: Watch | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        if self.fusion is None:
            raise ValueError("this model has no cross-attention (lm.fusion is null) but was given something to look at")
        if visual.onset_frames.shape[0] != x.shape[0]:
            raise ValueError(f"what is seen has {visual.onset_frames.shape[0]} rows, the codes have {x.shape[0]}")
        num_layers = len(self.transformer.layers)
        sight, opened = None, {}

        def between(layer: int, x: Tensor, positions: Tensor) -> Tensor:
            nonlocal gate, sight
            if sight is None:
                sight = self.fusion.sight(visual, positions)
            x, openness = self.fusion(layer, x, sight)
            if openness is not None:
                opened[layer] = openness
                if layer >= num_layers - GATE_REPORT_LAYERS:
                    gate = gate + openness
            return x

        x = self.transformer(x, state=state, between=between, watch=watch)
        layer_gates = torch.stack([*opened.values()], dim=-1) if opened else gate.new_zeros(*gate.shape, 0)
        return x, gate / min(GATE_REPORT_LAYERS, num_layers), layer_gates


def build_temporal(
    options: TransformerConfig, *, text_card: int, audio_card: int, num_audio_streams: int, fusion: Fusion | None = None
) -> TemporalTransformer:
    """The temporal transformer that a configuration describes, with fresh weights."""
    transformer = Transformer(
        dim=options.dim,
        num_heads=options.num_heads,
        num_layers=options.num_layers,
        ffn_dim=options.ffn_dim,
        context=options.context,
        norm=options.norm,
        norm_eps=options.norm_eps,
        max_period=options.max_period,
        gated_ffn=options.gated_ffn,
        layer_scale=options.layer_scale,
    )
    return TemporalTransformer(
        text_card=text_card,
        audio_card=audio_card,
        num_audio_streams=num_audio_streams,
        dim=options.dim,
        transformer=transformer,
        fusion=fusion,
        norm=options.norm,
        norm_eps=options.norm_eps,
    )
