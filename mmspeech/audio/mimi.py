"""Mimi (Kyutai 2024): a causal neural codec at 12.5 Hz, offline and frame by frame, batched and trainable."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmspeech.audio.codec import Codec, CodecTrainOut
from mmspeech.audio.quantizer import SplitResidualQuantizer
from mmspeech.audio.seanet import StackState, seanet_decoder, seanet_encoder
from mmspeech.nn.conv import CausalConv1d, CausalConvTranspose1d, ConvState, ConvTransposeState
from mmspeech.nn.streaming import State
from mmspeech.nn.transformer import Transformer, TransformerState

STEPS_PER_FRAME = 2  # the transformers run at 25 Hz
WHOLE_FRAMES = 250  # longer signals are coded in pieces of this size, so that memory stays bounded


@dataclass
class MimiEncoderState(State):
    """What the encoder remembers of its streams."""

    convs: StackState
    transformer: TransformerState
    down: ConvState


@dataclass
class MimiDecoderState(State):
    """What the decoder remembers of its streams."""

    up: ConvTransposeState
    transformer: TransformerState
    convs: StackState


class MimiCodec(Codec):
    """SEANet and a transformer at 25 Hz, a learned halving to 12.5 Hz, a split RVQ, and all of it mirrored.

    `num_codebooks` of the `total_codebooks` trained ones are used. `transformer` holds the arguments of
    `nn.transformer.Transformer`, for both of them. See MimiConfig for the rest. Decoding adds no delay.
    """

    def __init__(
        self,
        *,
        sample_rate_hz: int,
        num_codebooks: int,
        total_codebooks: int,
        codebook_size: int,
        codebook_dim: int,
        dim: int,
        ratios: tuple[int, ...],
        transformer: dict[str, Any],
        num_filters: int,
        kernel: int,
        residual_kernel: int,
        last_kernel: int,
        compress: int,
        num_residual_layers: int,
        dilation_base: int,
    ):
        super().__init__()
        self.sample_rate_hz, self.frame_samples = sample_rate_hz, STEPS_PER_FRAME * math.prod(ratios)
        self.num_codebooks, self.total_codebooks, self.codebook_size = num_codebooks, total_codebooks, codebook_size
        convs = {
            "dim": dim,
            "num_filters": num_filters,
            "ratios": ratios,
            "kernel": kernel,
            "residual_kernel": residual_kernel,
            "last_kernel": last_kernel,
            "compress": compress,
            "num_residual_layers": num_residual_layers,
            "dilation_base": dilation_base,
        }
        resampling = {"kernel": 2 * STEPS_PER_FRAME, "stride": STEPS_PER_FRAME, "bias": False}
        self.encoder = seanet_encoder(**convs)
        self.encoder_transformer = Transformer(**transformer)
        self.downsample = CausalConv1d(dim, dim, pad_mode="replicate", **resampling)
        self.quantizer = SplitResidualQuantizer(
            num_codebooks=total_codebooks, dim=dim, codebook_dim=codebook_dim, codebook_size=codebook_size
        )
        self.upsample = CausalConvTranspose1d(dim, dim, groups=dim, **resampling)
        self.decoder_transformer = Transformer(**transformer)
        self.decoder = seanet_decoder(**convs)

    def init_encoder_state(self, batch_size: int, *, max_frames: int = 1) -> MimiEncoderState:
        """State for `encode`. Chunks may have any number of frames; they are worked off `max_frames` at a time."""
        return MimiEncoderState(
            self.encoder.init_state(batch_size),
            self.encoder_transformer.init_state(batch_size, max_steps=STEPS_PER_FRAME * max_frames),
            self.downsample.init_state(batch_size),
        )

    def init_decoder_state(self, batch_size: int, *, max_frames: int = 1) -> MimiDecoderState:
        """State for `decode`, see `init_encoder_state`."""
        return MimiDecoderState(
            self.upsample.init_state(batch_size),
            self.decoder_transformer.init_state(batch_size, max_steps=STEPS_PER_FRAME * max_frames),
            self.decoder.init_state(batch_size),
        )

    @torch.no_grad()
    def encode(self, wave: Tensor, *, state: MimiEncoderState | None = None) -> Tensor:
        if wave.dim() != 3 or wave.shape[1] != 1 or not wave.shape[-1]:
            raise ValueError(f"cannot encode a waveform of shape {tuple(wave.shape)}; expected [B, 1, N] with N > 0")
        missing_samples = -wave.shape[-1] % self.frame_samples
        if state is None:
            wave = F.pad(wave, (0, missing_samples))
            if wave.shape[-1] > WHOLE_FRAMES * self.frame_samples:
                state = self.init_encoder_state(wave.shape[0], max_frames=WHOLE_FRAMES)
        elif missing_samples:
            raise ValueError(
                f"a stream chunk has {wave.shape[-1]} samples, expected a multiple of {self.frame_samples}"
            )
        pieces = [wave]
        if state is not None:
            pieces = wave.split(_frames_at_once(self.encoder_transformer, state) * self.frame_samples, dim=-1)
        codes = [
            self.quantizer.encode(self.latents(piece, state=state), num_codebooks=self.num_codebooks)
            for piece in pieces
        ]
        return torch.cat(codes, dim=-1)

    @torch.no_grad()
    def decode(self, codes: Tensor, *, state: MimiDecoderState | None = None) -> Tensor:
        if codes.dim() != 3 or not 2 <= codes.shape[1] <= self.total_codebooks or not codes.shape[-1]:
            raise ValueError(
                f"cannot decode codes of shape {tuple(codes.shape)}; expected [B, K, T] with K in 2.."
                f"{self.total_codebooks} and T > 0"
            )
        if state is None and codes.shape[-1] > WHOLE_FRAMES:
            state = self.init_decoder_state(codes.shape[0], max_frames=WHOLE_FRAMES)
        pieces = [codes]
        if state is not None:
            pieces = codes.split(_frames_at_once(self.decoder_transformer, state), dim=-1)
        return torch.cat([self.synthesise(self.quantizer.decode(piece), state=state) for piece in pieces], dim=-1)

    def latents(self, wave: Tensor, *, state: MimiEncoderState | None = None) -> Tensor:
        """wave [B, 1, N] in whole frames -> [B, D, T], what the quantiser sees."""
        x = self.encoder(wave, state=None if state is None else state.convs)
        x = self.encoder_transformer(x.transpose(1, 2), state=None if state is None else state.transformer)
        return self.downsample(x.transpose(1, 2), state=None if state is None else state.down)

    def synthesise(self, latents: Tensor, *, state: MimiDecoderState | None = None) -> Tensor:
        """Quantised latents [B, D, T] -> wave [B, 1, T * frame_samples]."""
        x = self.upsample(latents, state=None if state is None else state.up)
        x = self.decoder_transformer(x.transpose(1, 2), state=None if state is None else state.transformer)
        return self.decoder(x.transpose(1, 2), state=None if state is None else state.convs)

    def forward(self, wave: Tensor, *, quantize: bool = True, num_codebooks: int | None = None) -> CodecTrainOut:
        latents = self.latents(wave)
        if not quantize:
            bypassed = self.quantizer.first.bypass(latents) + self.quantizer.rest.bypass(latents)
            return CodecTrainOut(self.synthesise(bypassed), None, latents.new_zeros(()))
        used = self.num_codebooks if num_codebooks is None else num_codebooks
        first, rest = self.quantizer(latents, num_codebooks=used)
        reconstruction = self.synthesise(first.quantized + rest.quantized)
        codes = torch.cat([first.codes, rest.codes], dim=1)
        return CodecTrainOut(reconstruction, codes, first.commitment + rest.commitment)


def _frames_at_once(transformer: Transformer, state: MimiEncoderState | MimiDecoderState) -> int:
    """The `max_frames` a state was made for, from the size of its rings."""
    capacity = state.transformer.layers[0].keys.shape[2]
    return (capacity - transformer.context + 1) // STEPS_PER_FRAME
