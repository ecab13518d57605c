"""Causal convolutions: one forward for whole signals and for streams."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmspeech.nn.streaming import State


@dataclass
class ConvState(State):
    """previous [B, C, P]: the last input samples; started [B] bool: false until the first chunk (replicate padding)."""

    previous: Tensor
    started: Tensor = field(metadata={"reset_value": False})


class CausalConv1d(nn.Module):
    """Convolution that sees only the past. [B, C, N] -> [B, C', ceil(N / stride)].

    Offline, the left is padded with zeros (or the first sample, `pad_mode="replicate"`) and the right with zeros
    up to a whole stride. A stream must come in multiples of the stride; anything else raises ValueError.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel: int,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        pad_mode: str = "constant",
    ):
        super().__init__()
        if pad_mode not in ("constant", "replicate"):
            raise ValueError(f"pad_mode {pad_mode!r}: expected 'constant' or 'replicate'")
        self.conv = nn.Conv1d(
            in_channels, out_channels, kernel, stride=stride, dilation=dilation, groups=groups, bias=bias
        )
        self.stride = stride
        self.past = (kernel - 1) * dilation - (stride - 1)
        if self.past < 0:
            raise ValueError(f"kernel {kernel} with dilation {dilation} is shorter than stride {stride}")
        self.pad_mode = pad_mode

    def init_state(self, batch_size: int, *, device=None, dtype=None) -> ConvState:
        weight = self.conv.weight
        device = weight.device if device is None else device
        previous = torch.zeros(batch_size, self.conv.in_channels, self.past, device=device, dtype=dtype or weight.dtype)
        return ConvState(previous, torch.zeros(batch_size, dtype=torch.bool, device=device))

    def forward(self, x: Tensor, *, state: ConvState | None = None) -> Tensor:
        if state is None:
            extra = -x.shape[-1] % self.stride
            if self.past:
                x = F.pad(x, (self.past, 0), mode=self.pad_mode)
            return self.conv(F.pad(x, (0, extra)) if extra else x)
        if x.shape[-1] % self.stride:
            raise ValueError(f"a stream chunk has {x.shape[-1]} steps, expected a multiple of stride {self.stride}")
        past = state.previous.to(x.dtype)
        if self.pad_mode == "replicate":
            past = torch.where(state.started[:, None, None], past, x[:, :, :1].expand_as(past))
        x = torch.cat([past, x], dim=-1)
        if self.past:
            state.previous.copy_(x[:, :, -self.past :])
        state.started.fill_(True)
        return self.conv(x)


@dataclass
class ConvTransposeState(State):
    """tail [B, C', kernel - stride]: what earlier input still adds to the next output, without bias."""

    tail: Tensor


class CausalConvTranspose1d(nn.Module):
    """Transposed convolution, trimmed on the right: [B, C, N] -> [B, C', N * stride]."""

    def __init__(
        self, in_channels: int, out_channels: int, *, kernel: int, stride: int, groups: int = 1, bias: bool = True
    ):
        super().__init__()
        if kernel < stride:
            raise ValueError(f"kernel {kernel} is shorter than stride {stride}")
        self.convtr = nn.ConvTranspose1d(in_channels, out_channels, kernel, stride=stride, groups=groups, bias=bias)
        self.overlap = kernel - stride

    def init_state(self, batch_size: int, *, device=None, dtype=None) -> ConvTransposeState:
        weight = self.convtr.weight
        device = weight.device if device is None else device
        shape = (batch_size, self.convtr.out_channels, self.overlap)
        return ConvTransposeState(torch.zeros(shape, device=device, dtype=dtype or weight.dtype))

    def forward(self, x: Tensor, *, state: ConvTransposeState | None = None) -> Tensor:
        y = self.convtr(x)
        if not self.overlap:
            return y
        out, tail = y[..., : -self.overlap], y[..., -self.overlap :]
        if state is not None:
            bias = 0.0 if self.convtr.bias is None else self.convtr.bias[:, None]
            # The earlier tail falls on the first `overlap` samples, which may reach past this chunk into the next tail.
            y = torch.cat([y[..., : self.overlap] + state.tail.to(y.dtype), y[..., self.overlap :]], dim=-1)
            out, tail = y[..., : -self.overlap], y[..., -self.overlap :]
            state.tail.copy_(tail - bias)
        return out
