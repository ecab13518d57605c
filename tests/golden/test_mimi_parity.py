"""Mimi against the moshi package's codec, on stored outputs of it: the same weights in Kyutai's layout."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmspeech.config import MimiConfig, load_config
from mmspeech.formats.mimi import load_mimi
from mmspeech.nn import transformer
from mmspeech.nn.attention import Steps, streaming_steps

SMALL = Path(__file__).parent / "mimi-small"


@pytest.fixture(scope="module")
def codec():
    return load_mimi(SMALL / "mimi.safetensors", load_config(MimiConfig, SMALL / "config.json"))


@pytest.fixture(scope="module")
def expected():
    return load_file(SMALL / "expected.safetensors")


@pytest.fixture
def their_ring(monkeypatch):
    """Their ring holds `context` steps and is written before it is read, so that the first of the two steps of a frame
    does not see the oldest one that it sees offline. Ours has room for it. Here it is hidden, as there."""

    def steps_of(num_steps: int, *, offset, capacity: int, context: int, **others) -> Steps:
        steps = streaming_steps(num_steps, offset=offset, capacity=capacity, context=context, **others)
        last = steps.positions[:, -1:]
        held = last - (last - torch.arange(steps.read)) % capacity
        shown = (held > last - context)[:, None, None]
        return replace(steps, mask=shown if steps.mask is None else steps.mask & shown)

    monkeypatch.setattr(transformer, "streaming_steps", steps_of)


def encoded(codec, wave: torch.Tensor, frames: int) -> torch.Tensor:
    state = codec.init_encoder_state(len(wave), max_frames=frames)
    pieces = wave.split(frames * codec.frame_samples, dim=-1)
    return torch.cat([codec.encode(piece, state=state) for piece in pieces], dim=-1)


def decoded(codec, codes: torch.Tensor, frames: int) -> torch.Tensor:
    state = codec.init_decoder_state(len(codes), max_frames=frames)
    return torch.cat([codec.decode(piece, state=state) for piece in codes.split(frames, dim=-1)], dim=-1)


@torch.no_grad()
def test_whole_recordings(codec, expected):
    torch.testing.assert_close(codec.latents(expected["wave"]), expected["latents"], atol=1e-4, rtol=0)
    assert torch.equal(codec.encode(expected["wave"]), expected["codes"])
    torch.testing.assert_close(codec.decode(expected["codes"]), expected["sound"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("frames", [1, 3, 7])
def test_streams_are_their_whole_recordings(codec, expected, frames):
    assert torch.equal(encoded(codec, expected["wave"], frames), expected["codes"])
    torch.testing.assert_close(decoded(codec, expected["codes"], frames), expected["sound"], atol=1e-4, rtol=0)


def test_their_streams_are_ours_without_the_oldest_step(codec, expected, their_ring):
    assert not torch.equal(expected["streamed_codes"], expected["codes"])
    assert torch.equal(encoded(codec, expected["wave"], 1), expected["streamed_codes"])
    sound = decoded(codec, expected["streamed_codes"], 1)
    torch.testing.assert_close(sound, expected["streamed_sound"], atol=1e-4, rtol=0)
