"""A language model of a few thousand parameters, with and without eyes."""

from collections.abc import Callable

import pytest
import torch

from mmspeech.config import LMConfig, ModelConfig, VisionConfig
from mmspeech.lm.model import VisionSpeechModel


class FixedTower(torch.nn.Module):
    """Pixels [B, 3, 2, 2] -> 4 tokens of width 6, without parameters."""

    def forward(self, pixels):
        tokens = pixels.flatten(2).transpose(1, 2)
        return torch.cat([tokens, tokens.square()], dim=-1), None


def config(*, fusion: dict | None = None, eyes: bool = True, **changes) -> ModelConfig:
    sizes = {"num_heads": 2, "num_layers": 2, "ffn_dim": 16, "context": 6}
    lm = {
        "text_card": 11,
        "audio_card": 7,
        "num_codebooks": 3,
        "delays": (0, 0, 1, 1, 0, 1, 1),
        "temporal": {"dim": 16, **sizes},
        "depth": {"dim": 8, **sizes, "max_period": None},
        "fusion": ({"shared": False} | (fusion or {})) if eyes else None,
    } | changes
    vision = VisionConfig(tower="vit", image_size_px=2, tower_dim=6) if eyes else None
    return ModelConfig(lm=LMConfig(**lm), codec={"kind": "spectral"}, vision=vision)


@pytest.fixture
def make_model() -> Callable[..., VisionSpeechModel]:
    def make(*, seed: int = 0, **changes) -> VisionSpeechModel:
        torch.manual_seed(seed)
        model = VisionSpeechModel(config(**changes)).eval()
        # Larger than at the start of training, so that every part matters in a comparison.
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
        model.tower = FixedTower() if model.projector is not None else None
        return model

    return make


@pytest.fixture
def make_codes() -> Callable[..., torch.Tensor]:
    def make(model: VisionSpeechModel, *, batch_size: int = 2, num_frames: int = 12, seed: int = 0) -> torch.Tensor:
        """Random frames [B, R, T]."""
        draw = torch.Generator().manual_seed(seed)
        cards = model.lm.layout.initial_ids()[None, :, None]
        shape = (batch_size, model.lm.layout.num_streams, num_frames)
        return (torch.rand(shape, generator=draw) * cards).long()

    return make
