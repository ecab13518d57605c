"""A model that only speaks: text, decided a word ahead of the sound, and audio codes (Kyutai's text to speech, 2025).

It is the duplex model's class with one side only: a temporal transformer over a text stream and K audio streams, and a
depth transformer. Conditions are summed into every step, or looked at through plain cross-attention.
"""

from dataclasses import dataclass

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from mmspeech.config import MimiConfig, StrictModel, TransformerConfig
from mmspeech.lm.conditions import Conditions, ConditionsConfig, ConditionSet
from mmspeech.lm.depth import DepthState
from mmspeech.lm.speaker_depth import SpeakerDepth, TextEmbedding
from mmspeech.lm.temporal import TokenEmbedding
from mmspeech.nn.cross_attention import CrossProjections
from mmspeech.nn.layers import build_norm
from mmspeech.nn.streaming import State
from mmspeech.nn.transformer import Transformer, TransformerState

LOOK_NORM_EPS = 1e-5


class SpeakerConfig(StrictModel):
    """Sizes of a speaker. The sound of a word comes `audio_delay_frames` after its text; on top of that each codebook
    has its own of the `delays` (frames).

    text_out_card: classes of the text head, which has only to say where words begin. lookahead_words: how far ahead
    the second text stream is (0: there is none). depth_schedule: which matrices each codebook's step has.
    """

    text_card: int = Field(gt=0)
    text_out_card: int = Field(gt=0)
    audio_card: int = Field(gt=0)
    num_codebooks: int = Field(gt=0)
    delays: tuple[int, ...]
    audio_delay_frames: int = Field(ge=0)
    lookahead_words: int = Field(0, ge=0)
    two_text_streams: bool = False
    temporal: TransformerConfig
    depth: TransformerConfig
    depth_schedule: tuple[int, ...] | None = None
    depth_rank: int | None = None
    depth_out_norm: tuple[str, float] | None = None
    conditions: ConditionsConfig = ConditionsConfig()
    codec: MimiConfig = MimiConfig(num_codebooks=32)

    @model_validator(mode="after")
    def _counts_match(self):
        for name, values in (("delays", self.delays), ("depth_schedule", self.depth_schedule)):
            if values is not None and len(values) != self.num_codebooks:
                raise ValueError(f"{name} has {len(values)} entries, expected {self.num_codebooks}, one a codebook")
        if self.lookahead_words and not self.two_text_streams:
            raise ValueError("lookahead_words without two_text_streams: there is no stream for what is ahead")
        return self


class Look(nn.Module):
    """Plain cross-attention of one layer: x [B, T, D] to keys and values made once."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=LOOK_NORM_EPS)
        self.attn = CrossProjections(dim=dim, num_heads=num_heads, source_dim=dim)

    def forward(self, x: Tensor, seen: tuple[Tensor, Tensor]) -> Tensor:
        return x + self.attn(self.norm(x), *seen, mask=None)


@dataclass
class SpeakerState(State):
    """Of calls under way."""

    temporal: TransformerState
    depth: DepthState


class Speaker(nn.Module):
    """Streams [B, 1 + K, T], delays applied -> hidden and text logits; then `depth` for the codes."""

    def __init__(self, config: SpeakerConfig):
        super().__init__()
        self.config, options = config, config.temporal
        cards = {"text_card": config.text_card, "audio_card": config.audio_card, "num_codebooks": config.num_codebooks}
        self.text_emb = TextEmbedding(config.text_card + 1, options.dim, pairs=config.two_text_streams)
        self.audio_emb = TokenEmbedding(num_streams=config.num_codebooks, card=config.audio_card + 1, dim=options.dim)
        self.transformer = Transformer(**options.model_dump())
        looks = options.num_layers if config.conditions.looked_at else 0
        self.looks = nn.ModuleList(Look(options.dim, options.num_heads) for _ in range(looks))
        self.out_norm = build_norm(options.norm, options.dim, eps=options.norm_eps)
        self.text_linear = nn.Linear(options.dim, config.text_out_card, bias=False)
        self.depth = SpeakerDepth(
            config.depth, source_dim=options.dim, schedule=config.depth_schedule, rank=config.depth_rank,
            pairs=config.two_text_streams, out_norm=config.depth_out_norm, **cards,
        )  # fmt: skip
        self.conditions = ConditionSet(config.conditions, options.dim)

    @property
    def device(self) -> torch.device:
        return self.text_linear.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.text_linear.weight.dtype

    def initial_ids(self) -> Tensor:
        """[1 + K] long: what a stream holds before its first token."""
        config = self.config
        return torch.tensor([config.text_card] + [config.audio_card] * config.num_codebooks, device=self.device)

    def init_state(self, batch_size: int) -> SpeakerState:
        return SpeakerState(self.transformer.init_state(batch_size), self.depth.init_state(batch_size))

    def look(self, conditions: Conditions) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of each layer, for `forward`; once a call."""
        if conditions.source is None:
            return []
        source = conditions.source.to(self.dtype)
        return [look.attn.keys_values(source) for look in self.looks]

    def forward(
        self,
        columns: Tensor,
        conditions: Conditions,
        *,
        seen: list[tuple[Tensor, Tensor]] | None = None,
        state: TransformerState | None = None,
    ) -> tuple[Tensor, Tensor]:
        """columns [B, 1 + K, T] -> hidden [B, T, D] and text logits [B, T, text_out_card]. seen: what `look` made."""
        x = self.text_emb(columns[:, 0]) + self.audio_emb(columns[:, 1:])
        if conditions.added is not None:
            x = x + conditions.added.to(x.dtype)
        seen = self.look(conditions) if seen is None else seen

        def between(layer: int, x: Tensor, positions: Tensor) -> Tensor:
            return self.looks[layer](x, seen[layer])

        hidden = self.out_norm(self.transformer(x, state=state, between=between if seen else None))
        return hidden, self.text_linear(hidden)
