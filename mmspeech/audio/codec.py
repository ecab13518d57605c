"""The contract of codecs: waveform <-> codes at 12.5 Hz, whole or frame by frame."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmspeech.config import CodecConfig, MimiConfig
from mmspeech.nn.streaming import State


@dataclass
class CodecTrainOut:
    """What one training pass of a codec gives.

    wave [B, 1, N]: the reconstruction, late by `decoder_delay_samples`; codes [B, K, T] long (None when
    not quantised); commitment: scalar loss; phone_logits [B, T, slots, phones] of the semantic head, or None.
    """

    wave: Tensor
    codes: Tensor | None
    commitment: Tensor
    phone_logits: Tensor | None = None


NOT_CODES = ("decoder", "upsample", "phone_head")  # parts of a codec that do not decide which codes a wave gets


class Codec(nn.Module):
    """Base of codecs. A frame is `frame_samples` samples and one column of `num_codebooks` codes.

    Decoded audio lags the input by `decoder_delay_samples`; streaming and offline decoding give the same samples.
    """

    sample_rate_hz: int
    frame_samples: int
    num_codebooks: int
    codebook_size: int
    decoder_delay_samples: int = 0

    def init_encoder_state(self, batch_size: int) -> State:
        """State for `encode` of `batch_size` streams."""
        raise NotImplementedError

    def init_decoder_state(self, batch_size: int) -> State:
        """State for `decode` of `batch_size` streams."""
        raise NotImplementedError

    def encode(self, wave: Tensor, *, state: State | None = None) -> Tensor:
        """wave [B, 1, N] -> codes [B, K, T] long. Offline, N is padded with zeros to whole frames."""
        raise NotImplementedError

    def decode(self, codes: Tensor, *, state: State | None = None) -> Tensor:
        """codes [B, K, T] -> wave [B, 1, T * frame_samples]."""
        raise NotImplementedError

    def forward(self, wave: Tensor, *, quantize: bool = True, num_codebooks: int | None = None) -> CodecTrainOut:
        """Training pass, wave [B, 1, N] in whole frames, straight-through gradients; `quantize=False` skips codes."""
        raise NotImplementedError


def build_codec(config: CodecConfig) -> Codec:
    """The codec a configuration describes, with fresh weights."""
    sizes = config.model_dump(exclude={"kind"})
    if isinstance(config, MimiConfig):
        from mmspeech.audio.mimi import MimiCodec

        return MimiCodec(**sizes)
    from mmspeech.audio.spectral import SpectralCodec

    return SpectralCodec(**sizes)


def codec_hash(codec: Codec) -> str:
    """16 hex digits naming the codes of a codec: its encoder and quantiser, to half precision.

    A retrained decoder keeps the hash, and so does storing the weights in half precision.
    """
    digest = hashlib.sha256()
    for name, value in sorted(codec.state_dict().items()):
        if not name.startswith(NOT_CODES):
            digest.update(name.encode())
            digest.update(value.detach().to("cpu", torch.float16).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
