"""A model that only listens: audio codes in, a delayed stream of text out (Kyutai's speech to text, 2025).

It is the temporal transformer alone. At each frame it reads the codes of that frame and the text token that it chose
the frame before; words come `delay_sec` after they were spoken.
"""

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor, nn

from mmspeech.config import MimiConfig, StrictModel, TransformerConfig
from mmspeech.lm.temporal import LMOut, build_temporal
from mmspeech.nn.streaming import State
from mmspeech.nn.transformer import TransformerState


class ListenerConfig(StrictModel):
    """Sizes of a listener. `prefix_sec` of silence go before the sound; what is said is told `delay_sec` later.
    `num_extra_heads` of `extra_head_dim` classes tell pauses (0: none)."""

    text_card: int = Field(gt=0)
    audio_card: int = Field(gt=0)
    num_codebooks: int = Field(gt=0)
    text_pad_id: int = 3
    text_epad_id: int = 0
    temporal: TransformerConfig
    num_extra_heads: int = Field(0, ge=0)
    extra_head_dim: int = Field(6, gt=0)
    delay_sec: float = Field(0.5, ge=0)
    prefix_sec: float = Field(0.0, ge=0)
    codec: MimiConfig = MimiConfig(num_codebooks=32)


@dataclass
class ListenerState(State):
    """temporal: of the transformer; text [B] long: the token that each row chose last."""

    temporal: TransformerState
    text: Tensor


class Listener(nn.Module):
    """Codes [B, K] of a frame -> text ids [B]; the likeliest, always."""

    def __init__(self, config: ListenerConfig):
        super().__init__()
        self.config = config
        cards = {"text_card": config.text_card, "audio_card": config.audio_card}
        self.temporal = build_temporal(config.temporal, num_audio_streams=config.num_codebooks, **cards)
        self.extra_heads = nn.ModuleList(
            nn.Linear(config.temporal.dim, config.extra_head_dim, bias=False) for _ in range(config.num_extra_heads)
        )

    def forward(self, columns: Tensor, *, state: TransformerState | None = None) -> LMOut:
        """Columns [B, 1 + K, T] of text and codes; the first of a call holds `initial_ids`."""
        return self.temporal(columns, state=state)

    def initial_ids(self) -> Tensor:
        """[1 + K] long: what the first column holds."""
        config, device = self.config, self.temporal.text_linear.weight.device
        return torch.tensor([config.text_card] + [config.audio_card] * config.num_codebooks, device=device)

    @torch.no_grad()
    def begin(self, batch_size: int) -> ListenerState:
        """The state of calls that have just begun; what the first column says is chosen."""
        state = ListenerState(self.temporal.transformer.init_state(batch_size), torch.empty(0))
        out = self(self.initial_ids()[None, :, None].expand(batch_size, -1, -1), state=state.temporal)
        state.text = out.text_logits[:, 0].argmax(dim=-1)
        return state

    @torch.no_grad()
    def step(self, codes: Tensor, *, state: ListenerState) -> tuple[Tensor, list[Tensor]]:
        """codes [B, K] of the next frame -> text ids [B], and of each extra head its probabilities [B, classes]."""
        if codes.shape[1:] != (self.config.num_codebooks,):
            raise ValueError(f"codes are {list(codes.shape)}, expected [B, {self.config.num_codebooks}]")
        column = torch.cat([state.text[:, None], codes], dim=1)[:, :, None]
        out = self(column, state=state.temporal)
        state.text = out.text_logits[:, 0].argmax(dim=-1)
        return state.text, [head(out.hidden[:, 0]).softmax(dim=-1) for head in self.extra_heads]
