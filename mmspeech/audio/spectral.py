"""A small causal codec: log-mel frames -> ConvNeXt stacks -> split RVQ -> ConvNeXt stacks -> inverse STFT.

Blocks after Liu et al. 2022 (ConvNeXt), the head after Siuzdak 2023 (Vocos). The first codebooks can be taught phones,
as Mimi's is taught by a speech model, so that what is said is easy to read from it.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmspeech.audio.codec import Codec, CodecTrainOut
from mmspeech.audio.quantizer import SplitResidualQuantizer
from mmspeech.frames import FRAME_SAMPLES
from mmspeech.nn.conv import CausalConv1d, ConvState
from mmspeech.nn.streaming import State

PHONE_SLOTS = 4  # phone labels per code frame, 20 ms each
LOG_FLOOR = 1e-5


class ConvNeXtBlock(nn.Module):
    """Causal depthwise convolution, norm, two linear layers, residual. [B, D, T] -> [B, D, T]."""

    def __init__(self, *, dim: int, kernel: int):
        super().__init__()
        self.conv = CausalConv1d(dim, dim, kernel=kernel, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, 3 * dim)
        self.down = nn.Linear(3 * dim, dim)
        self.scale = nn.Parameter(torch.full((dim,), 0.1))

    def forward(self, x: Tensor, *, state: ConvState | None = None) -> Tensor:
        y = self.conv(x, state=state).transpose(1, 2)
        y = self.down(F.gelu(self.up(self.norm(y)))) * self.scale
        return x + y.transpose(1, 2)


@dataclass
class StackState(State):
    """blocks: one ConvState per block."""

    blocks: list[ConvState]


class ConvNeXtStack(nn.Module):
    """`num_blocks` ConvNeXt blocks and a last norm. [B, D, T] -> [B, D, T]."""

    def __init__(self, *, dim: int, kernel: int, num_blocks: int):
        super().__init__()
        self.blocks = nn.ModuleList(ConvNeXtBlock(dim=dim, kernel=kernel) for _ in range(num_blocks))
        self.norm = nn.LayerNorm(dim)

    def init_state(self, batch_size: int) -> StackState:
        return StackState([block.conv.init_state(batch_size) for block in self.blocks])

    def forward(self, x: Tensor, *, state: StackState | None = None) -> Tensor:
        for index, block in enumerate(self.blocks):
            x = block(x, state=None if state is None else state.blocks[index])
        return self.norm(x.transpose(1, 2)).transpose(1, 2)


def mel_filters(*, num_mels: int, window_samples: int, sample_rate_hz: int, max_hz: float) -> Tensor:
    """Triangular filters on the mel scale (2595 log10(1 + f / 700)): [window_samples // 2 + 1, num_mels]."""
    top = 2595 * math.log10(1 + max_hz / 700)
    edges_hz = 700 * (10 ** (torch.linspace(0, top, num_mels + 2) / 2595) - 1)
    bins_hz = torch.linspace(0, sample_rate_hz / 2, window_samples // 2 + 1)
    rise = (bins_hz[:, None] - edges_hz[None, :-2]) / (edges_hz[1:-1] - edges_hz[:-2])
    fall = (edges_hz[None, 2:] - bins_hz[:, None]) / (edges_hz[2:] - edges_hz[1:-1])
    return torch.minimum(rise, fall).clamp(min=0)


@dataclass
class EncoderState(State):
    """samples [B, window - hop]: audio that the next window still covers; the convolutions' states."""

    samples: Tensor
    stem: ConvState
    high: StackState
    down: ConvState
    low: StackState


class SpectralEncoder(nn.Module):
    """wave [B, 1, N] -> latents [B, dim, T]; N a multiple of 1920 samples."""

    def __init__(
        self,
        *,
        sample_rate_hz: int,
        hop_samples: int,
        window_samples: int,
        num_mels: int,
        dim: int,
        hidden: int,
        low_blocks: int,
        high_blocks: int,
        kernel: int,
    ):
        super().__init__()
        self.hop_samples, self.window_samples = hop_samples, window_samples
        stride = FRAME_SAMPLES // hop_samples
        filters = mel_filters(
            num_mels=num_mels, window_samples=window_samples, sample_rate_hz=sample_rate_hz, max_hz=8_000.0
        )
        self.register_buffer("filters", filters, persistent=False)
        self.register_buffer("window", torch.hann_window(window_samples), persistent=False)
        self.stem = CausalConv1d(num_mels, hidden, kernel=3)
        self.high = ConvNeXtStack(dim=hidden, kernel=kernel, num_blocks=high_blocks)
        self.down = CausalConv1d(hidden, dim, kernel=2 * stride, stride=stride)
        self.low = ConvNeXtStack(dim=dim, kernel=kernel, num_blocks=low_blocks)

    def init_state(self, batch_size: int) -> EncoderState:
        past = torch.zeros(batch_size, self.window_samples - self.hop_samples, device=self.window.device)
        convs = [conv.init_state(batch_size) for conv in (self.stem, self.high, self.down, self.low)]
        return EncoderState(past, *convs)

    def forward(self, wave: Tensor, *, state: EncoderState | None = None) -> Tensor:
        x = self.log_mel(wave[:, 0], state=state)
        x = self.stem(x, state=state and state.stem)
        x = self.high(x, state=state and state.high)
        x = self.down(x, state=state and state.down)
        return self.low(x, state=state and state.low)

    def log_mel(self, wave: Tensor, *, state: EncoderState | None) -> Tensor:
        """wave [B, N] -> [B, num_mels, N / hop]; each window ends at its hop's last sample."""
        overlap = self.window_samples - self.hop_samples
        if state is None:
            wave = F.pad(wave, (overlap, 0))
        else:
            wave = torch.cat([state.samples, wave], dim=-1)
            state.samples.copy_(wave[:, -overlap:])
        windows = wave.unfold(-1, self.window_samples, self.hop_samples) * self.window
        power = torch.fft.rfft(windows.float()).abs().pow(2)
        return (power @ self.filters).clamp(min=LOG_FLOOR).log().transpose(1, 2) / 4


@dataclass
class DecoderState(State):
    """tail [B, window - hop]: the overlap that the next hops still add to."""

    low: StackState
    high: StackState
    tail: Tensor


class SpectralDecoder(nn.Module):
    """latents [B, dim, T] -> wave [B, 1, T * 1920], late by window - hop samples."""

    def __init__(
        self,
        *,
        hop_samples: int,
        window_samples: int,
        dim: int,
        hidden: int,
        low_blocks: int,
        high_blocks: int,
        kernel: int,
    ):
        super().__init__()
        self.hop_samples, self.window_samples = hop_samples, window_samples
        self.stride = FRAME_SAMPLES // hop_samples
        self.low = ConvNeXtStack(dim=dim, kernel=kernel, num_blocks=low_blocks)
        self.up = nn.Linear(dim, self.stride * hidden)
        self.high = ConvNeXtStack(dim=hidden, kernel=kernel, num_blocks=high_blocks)
        self.head = nn.Linear(hidden, 2 * (window_samples // 2 + 1))
        window = torch.hann_window(window_samples)
        # Hann windows at this overlap sum to window / (2 hop): with it, overlap-add has unit gain.
        self.register_buffer("window", window * (2 * hop_samples / window_samples), persistent=False)

    def init_state(self, batch_size: int) -> DecoderState:
        tail = torch.zeros(batch_size, self.window_samples - self.hop_samples, device=self.window.device)
        return DecoderState(self.low.init_state(batch_size), self.high.init_state(batch_size), tail)

    def forward(self, latents: Tensor, *, state: DecoderState | None = None) -> Tensor:
        x = self.low(latents, state=state and state.low)
        batch, _, frames = x.shape
        x = self.up(x.transpose(1, 2)).view(batch, frames * self.stride, -1).transpose(1, 2)
        x = self.high(x, state=state and state.high)
        magnitude, phase = self.head(x.transpose(1, 2)).float().chunk(2, dim=-1)
        magnitude = magnitude.clamp(max=8.0).exp()
        spectrum = torch.complex(magnitude * phase.cos(), magnitude * phase.sin())
        windows = torch.fft.irfft(spectrum, n=self.window_samples) * self.window
        return self.overlap_add(windows, state=state)[:, None]

    def overlap_add(self, windows: Tensor, *, state: DecoderState | None) -> Tensor:
        """windows [B, H, W] at every hop -> [B, H * hop]: sample n is out once no later window can touch it."""
        batch, hops, width = windows.shape
        pieces = width // self.hop_samples
        parts = windows.view(batch, hops, pieces, self.hop_samples)
        total = windows.new_zeros(batch, hops + pieces - 1, self.hop_samples)
        for piece in range(pieces):
            total[:, piece : piece + hops] += parts[:, :, piece]
        wave = total.flatten(1)
        overlap = width - self.hop_samples
        if state is not None:
            wave[:, :overlap] += state.tail
            state.tail.copy_(wave[:, -overlap:])
        return wave[:, : hops * self.hop_samples]


class SpectralCodec(Codec):
    """The small codec of mmspeech-tiny. See SpectralConfig for the arguments."""

    def __init__(
        self,
        *,
        sample_rate_hz: int,
        num_codebooks: int,
        codebook_size: int,
        codebook_dim: int,
        hop_samples: int,
        window_samples: int,
        num_mels: int,
        dim: int,
        hidden: int,
        low_blocks: int,
        high_blocks: int,
        kernel: int,
        num_phones: int = 0,
        num_semantic: int = 1,
    ):
        super().__init__()
        self.sample_rate_hz, self.frame_samples = sample_rate_hz, FRAME_SAMPLES
        self.num_codebooks, self.codebook_size = num_codebooks, codebook_size
        self.decoder_delay_samples = window_samples - hop_samples
        stacks = {"dim": dim, "hidden": hidden, "low_blocks": low_blocks, "high_blocks": high_blocks, "kernel": kernel}
        hops = {"hop_samples": hop_samples, "window_samples": window_samples}
        self.encoder = SpectralEncoder(sample_rate_hz=sample_rate_hz, num_mels=num_mels, **hops, **stacks)
        self.quantizer = SplitResidualQuantizer(
            num_codebooks=num_codebooks, dim=dim, codebook_dim=codebook_dim, codebook_size=codebook_size,
            num_semantic=num_semantic,
        )  # fmt: skip
        self.decoder = SpectralDecoder(**hops, **stacks)
        self.phone_head = PhoneHead(dim=dim, num_phones=num_phones) if num_phones else None

    def init_encoder_state(self, batch_size: int) -> EncoderState:
        return self.encoder.init_state(batch_size)

    def init_decoder_state(self, batch_size: int) -> DecoderState:
        return self.decoder.init_state(batch_size)

    @torch.no_grad()
    def encode(self, wave: Tensor, *, state: EncoderState | None = None) -> Tensor:
        if state is None:
            wave = F.pad(wave, (0, -wave.shape[-1] % FRAME_SAMPLES))
        elif wave.shape[-1] % FRAME_SAMPLES:
            raise ValueError(f"a stream chunk has {wave.shape[-1]} samples, expected a multiple of {FRAME_SAMPLES}")
        return self.quantizer.encode(self.encoder(wave, state=state))

    @torch.no_grad()
    def decode(self, codes: Tensor, *, state: DecoderState | None = None) -> Tensor:
        return self.decoder(self.quantizer.decode(codes), state=state)

    def forward(self, wave: Tensor, *, quantize: bool = True, num_codebooks: int | None = None) -> CodecTrainOut:
        latents = self.encoder(wave)
        if quantize:
            first, rest = self.quantizer(latents, num_codebooks=num_codebooks)
            codes, commitment = torch.cat([first.codes, rest.codes], dim=1), first.commitment + rest.commitment
            semantic, acoustic = first.quantized, rest.quantized
        else:
            codes, commitment = None, latents.new_zeros(())
            semantic, acoustic = self.quantizer.first.bypass(latents), self.quantizer.rest.bypass(latents)
        phone_logits = None if self.phone_head is None else self.phone_head(semantic)
        return CodecTrainOut(self.decoder(semantic + acoustic), codes, commitment, phone_logits)


class PhoneHead(nn.Module):
    """Reads phones from the semantic codebooks: [B, D, T] -> [B, T, PHONE_SLOTS, phones] for the frame before each.

    One frame of delay gives the encoder the end of a sound before it must name it.
    """

    def __init__(self, *, dim: int, num_phones: int):
        super().__init__()
        self.context = CausalConv1d(dim, dim, kernel=3)
        self.out = nn.Linear(dim, PHONE_SLOTS * num_phones)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(self.context(x)).transpose(1, 2)
        return self.out(hidden).unflatten(-1, (PHONE_SLOTS, -1))
