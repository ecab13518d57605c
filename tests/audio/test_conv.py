"""Causal convolutions: a stream gives what the whole signal gives, whatever the chunks."""

import pytest
import torch
import torch.nn.functional as F

from mmspeech.nn.conv import CausalConv1d, CausalConvTranspose1d

CONVS = [
    {"kernel": 1},
    {"kernel": 3},
    {"kernel": 7},
    {"kernel": 3, "dilation": 4},
    {"kernel": 4, "stride": 2},
    {"kernel": 4, "stride": 4},
    {"kernel": 5, "stride": 2},
    {"kernel": 16, "stride": 8},
    {"kernel": 4, "stride": 2, "bias": False, "pad_mode": "replicate"},
    {"kernel": 7, "stride": 3, "pad_mode": "replicate", "groups": 2},
    {"kernel": 3, "stride": 2, "dilation": 3},
]
TRANSPOSED = [
    {"kernel": 2, "stride": 2},
    {"kernel": 4, "stride": 2},
    {"kernel": 4, "stride": 2, "groups": 4, "bias": False},
    {"kernel": 5, "stride": 2},
    {"kernel": 9, "stride": 2},
    {"kernel": 7, "stride": 1},
    {"kernel": 16, "stride": 8},
]


def stream(layer, x: torch.Tensor, chunks: list[int], state) -> torch.Tensor:
    return torch.cat([layer(piece, state=state) for piece in x.split(chunks, dim=-1)], dim=-1)


def chunk_sizes(total: int, step: int) -> list[int]:
    return [step] * (total // step) + ([total % step] if total % step else [])


@pytest.mark.parametrize("settings", CONVS, ids=str)
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_conv_stream_is_offline(settings, steps):
    layer = CausalConv1d(4, 6, **settings)
    x = torch.randn(2, 4, 21 * layer.stride)
    chunks = chunk_sizes(x.shape[-1], steps * layer.stride)
    with torch.no_grad():
        expected = layer(x)
        assert expected.shape == (2, 6, 21)
        torch.testing.assert_close(stream(layer, x, chunks, layer.init_state(2)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("settings", TRANSPOSED, ids=str)
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_transposed_stream_is_offline(settings, steps):
    layer = CausalConvTranspose1d(4, 4, **settings)
    x = torch.randn(2, 4, 21)
    with torch.no_grad():
        expected = layer(x)
        assert expected.shape == (2, 4, 21 * settings["stride"])
        got = stream(layer, x, chunk_sizes(21, steps), layer.init_state(2))
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_conv_is_torch_with_left_padding():
    layer = CausalConv1d(3, 5, kernel=7, stride=2)
    x = torch.randn(2, 3, 20)
    torch.testing.assert_close(layer(x), F.conv1d(F.pad(x, (5, 0)), layer.conv.weight, layer.conv.bias, stride=2))
    replicate = CausalConv1d(3, 5, kernel=4, stride=2, pad_mode="replicate")
    padded = torch.cat([x[:, :, :1].expand(-1, -1, 2), x], dim=-1)
    torch.testing.assert_close(replicate(x), F.conv1d(padded, replicate.conv.weight, replicate.conv.bias, stride=2))


def test_conv_pads_the_end_to_a_whole_stride():
    layer = CausalConv1d(2, 2, kernel=8, stride=4)
    x = torch.randn(1, 2, 10)
    torch.testing.assert_close(layer(x), layer(F.pad(x, (0, 2))))


@pytest.mark.parametrize("pad_mode", ["constant", "replicate"])
def test_reset_of_one_row(pad_mode):
    layer = CausalConv1d(2, 2, kernel=5, pad_mode=pad_mode)
    x = torch.randn(2, 2, 16)
    state = layer.init_state(2)
    with torch.no_grad():
        first = layer(x[:, :, :8], state=state)
        state.reset(torch.tensor([False, True]))
        second = layer(x[:, :, 8:], state=state)
        torch.testing.assert_close(torch.cat([first, second], -1)[0], layer(x)[0])
        torch.testing.assert_close(second[1], layer(x[:, :, 8:])[1])


def test_transposed_reset_of_one_row():
    layer = CausalConvTranspose1d(2, 2, kernel=7, stride=2)
    x = torch.randn(2, 2, 8)
    state = layer.init_state(2)
    with torch.no_grad():
        first = layer(x[:, :, :4], state=state)
        state.reset(torch.tensor([False, True]))
        second = layer(x[:, :, 4:], state=state)
        torch.testing.assert_close(torch.cat([first, second], -1)[0], layer(x)[0])
        torch.testing.assert_close(second[1], layer(x[:, :, 4:])[1])


@pytest.mark.parametrize("settings", CONVS, ids=str)
def test_conv_is_causal(settings):
    layer = CausalConv1d(4, 6, **settings)
    x = torch.randn(1, 4, 12 * layer.stride, requires_grad=True)
    layer(x)[..., 5].sum().backward()
    assert x.grad[..., 6 * layer.stride :].abs().max() == 0
    assert x.grad[..., : 6 * layer.stride].abs().max() > 0


def test_state_stays_in_place():
    layer = CausalConv1d(2, 2, kernel=5)
    state = layer.init_state(1)
    places = [tensor.data_ptr() for tensor in state.tensors()]
    with torch.no_grad():
        for _ in range(5):
            layer(torch.randn(1, 2, 3), state=state)
    assert places == [tensor.data_ptr() for tensor in state.tensors()]


def test_refusals():
    with pytest.raises(ValueError, match="pad_mode 'reflect': expected 'constant' or 'replicate'"):
        CausalConv1d(1, 1, kernel=3, pad_mode="reflect")
    with pytest.raises(ValueError, match="kernel 2 with dilation 1 is shorter than stride 4"):
        CausalConv1d(1, 1, kernel=2, stride=4)
    with pytest.raises(ValueError, match="kernel 2 is shorter than stride 4"):
        CausalConvTranspose1d(1, 1, kernel=2, stride=4)
    layer = CausalConv1d(1, 1, kernel=4, stride=2)
    with pytest.raises(ValueError, match="3 steps, expected a multiple of stride 2"):
        layer(torch.zeros(1, 1, 3), state=layer.init_state(1))
