"""A Mimi of a few thousand weights, for tests."""

import torch

from mmspeech.audio.codec import build_codec
from mmspeech.audio.mimi import MimiCodec
from mmspeech.config import MimiConfig, parse_config


def small_config(**changes) -> MimiConfig:
    """Frames of 24 samples, attention over 10 steps (5 frames)."""
    transformer = {
        "dim": 32, "num_heads": 4, "num_layers": 2, "ffn_dim": 48, "context": 10, "norm": "layer", "norm_eps": 1e-5,
        "gated_ffn": False, "layer_scale": 0.5,
    }  # fmt: skip
    sizes = {
        "num_codebooks": 4, "total_codebooks": 6, "codebook_size": 32, "codebook_dim": 16, "dim": 32,
        "num_filters": 4, "ratios": [4, 3], "transformer": transformer,
    }  # fmt: skip
    return parse_config(MimiConfig, {**sizes, **changes}, source="test")


def small_codec(seed: int = 0, **changes) -> MimiCodec:
    """Random weights, with codebooks drawn from what they have to code, so that many codes are in use."""
    torch.manual_seed(seed)
    codec = build_codec(small_config(**changes)).train()
    with torch.no_grad():
        for parameter in codec.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        codec(torch.randn(2, 1, 60 * codec.frame_samples), num_codebooks=codec.total_codebooks)
        for books in (codec.quantizer.first.codebooks, codec.quantizer.rest.codebooks):
            for book in books:
                book.cluster_usage.uniform_(0.5, 20.0)
                book.embedding_sum.mul_(book.cluster_usage[:, None])
    return codec.eval()
