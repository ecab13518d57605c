"""The causal SEANet of Mimi: convolutions between a waveform and latents at 25 Hz (Tagliasacchi et al. 2020)."""

from dataclasses import dataclass

from torch import Tensor, nn

from mmspeech.nn.conv import CausalConv1d, CausalConvTranspose1d
from mmspeech.nn.streaming import State


@dataclass
class StackState(State):
    """layers: one state per layer, None for layers that remember nothing."""

    layers: list[State | None]


class CausalStack(nn.Module):
    """Layers one after the other, [B, C, N] -> [B, C', N']; those with an `init_state` stream."""

    def __init__(self, layers: list[nn.Module]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def init_state(self, batch_size: int, *, device=None, dtype=None) -> StackState:
        states = [
            layer.init_state(batch_size, device=device, dtype=dtype) if hasattr(layer, "init_state") else None
            for layer in self.layers
        ]
        return StackState(states)

    def forward(self, x: Tensor, *, state: StackState | None = None) -> Tensor:
        for index, layer in enumerate(self.layers):
            if hasattr(layer, "init_state"):
                x = layer(x, state=None if state is None else state.layers[index])
            else:
                x = layer(x)
        return x


class ResidualBlock(nn.Module):
    """x plus a dilated and a pointwise convolution of it: [B, C, N] -> [B, C, N]."""

    def __init__(self, *, dim: int, kernel: int, dilation: int, compress: int):
        super().__init__()
        hidden = dim // compress
        self.block = CausalStack(
            [
                nn.ELU(),
                CausalConv1d(dim, hidden, kernel=kernel, dilation=dilation),
                nn.ELU(),
                CausalConv1d(hidden, dim, kernel=1),
            ]
        )

    def init_state(self, batch_size: int, *, device=None, dtype=None) -> StackState:
        return self.block.init_state(batch_size, device=device, dtype=dtype)

    def forward(self, x: Tensor, *, state: StackState | None = None) -> Tensor:
        return x + self.block(x, state=state)


def seanet_encoder(
    *,
    dim: int,
    num_filters: int,
    ratios: tuple[int, ...],
    kernel: int,
    residual_kernel: int,
    last_kernel: int,
    compress: int,
    num_residual_layers: int,
    dilation_base: int,
) -> CausalStack:
    """wave [B, 1, N] -> latents [B, dim, N / prod(ratios)]; `ratios` are in the decoder's order."""
    width = num_filters
    layers: list[nn.Module] = [CausalConv1d(1, width, kernel=kernel)]
    for ratio in reversed(ratios):
        for index in range(num_residual_layers):
            dilation = dilation_base**index
            layers.append(ResidualBlock(dim=width, kernel=residual_kernel, dilation=dilation, compress=compress))
        layers += [nn.ELU(), CausalConv1d(width, 2 * width, kernel=2 * ratio, stride=ratio)]
        width *= 2
    layers += [nn.ELU(), CausalConv1d(width, dim, kernel=last_kernel)]
    return CausalStack(layers)


def seanet_decoder(
    *,
    dim: int,
    num_filters: int,
    ratios: tuple[int, ...],
    kernel: int,
    residual_kernel: int,
    last_kernel: int,
    compress: int,
    num_residual_layers: int,
    dilation_base: int,
) -> CausalStack:
    """latents [B, dim, T] -> wave [B, 1, T * prod(ratios)]."""
    width = num_filters * 2 ** len(ratios)
    layers: list[nn.Module] = [CausalConv1d(dim, width, kernel=kernel)]
    for ratio in ratios:
        layers += [nn.ELU(), CausalConvTranspose1d(width, width // 2, kernel=2 * ratio, stride=ratio)]
        width //= 2
        for index in range(num_residual_layers):
            dilation = dilation_base**index
            layers.append(ResidualBlock(dim=width, kernel=residual_kernel, dilation=dilation, compress=compress))
    layers += [nn.ELU(), CausalConv1d(width, 1, kernel=last_kernel)]
    return CausalStack(layers)
