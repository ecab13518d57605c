import math

import pytest
import torch

from mmspeech.audio.codec import build_codec
from mmspeech.config import ConfigError, SpectralConfig, parse_config

FRAME_SAMPLES = 1920


@pytest.fixture(scope="module")
def codec():
    torch.manual_seed(0)
    sizes = {"dim": 32, "hidden": 16, "low_blocks": 2, "high_blocks": 2, "codebook_size": 16, "codebook_dim": 8}
    return build_codec(SpectralConfig(**sizes, num_phones=5)).eval()


def noise(*, batch: int, frames: int) -> torch.Tensor:
    return 0.1 * torch.randn(batch, 1, frames * FRAME_SAMPLES, generator=torch.Generator().manual_seed(1))


def chunked(function, x, sizes, state):
    parts, start = [], 0
    for size in sizes:
        parts.append(function(x[..., start : start + size], state=state))
        start += size
    return torch.cat(parts, dim=-1)


@pytest.mark.parametrize("chunks", [[1] * 9, [2, 3, 4], [7, 2]])
def test_streaming_equals_offline(codec, chunks):
    wave = noise(batch=2, frames=9)
    codes = codec.encode(wave)
    samples = [chunk * FRAME_SAMPLES for chunk in chunks]
    assert torch.equal(codes, chunked(codec.encode, wave, samples, codec.init_encoder_state(2)))
    whole = codec.decode(codes)
    streamed = chunked(codec.decode, codes, chunks, codec.init_decoder_state(2))
    error = (whole - streamed).pow(2).mean()
    assert whole.shape == wave.shape
    assert 10 * math.log10(whole.pow(2).mean() / error.clamp(min=1e-30)) >= 110


def test_a_reset_row_starts_anew_and_leaves_the_other_alone(codec):
    wave = noise(batch=2, frames=6)
    state = codec.init_encoder_state(2)
    codec.encode(wave[..., : 3 * FRAME_SAMPLES], state=state)
    state.reset(torch.tensor([True, False]))
    codes = codec.encode(wave[..., 3 * FRAME_SAMPLES :], state=state)
    assert torch.equal(codes[:1], codec.encode(wave[:1, :, 3 * FRAME_SAMPLES :]))
    assert torch.equal(codes[1:], codec.encode(wave[1:])[..., 3:])


def test_the_future_changes_nothing(codec):
    wave = noise(batch=1, frames=6)
    other = wave.clone()
    other[..., 4 * FRAME_SAMPLES :] += 0.3
    assert torch.equal(codec.encode(wave)[..., :4], codec.encode(other)[..., :4])
    codes = codec.encode(wave)
    changed = codes.clone()
    changed[..., 4:] = (changed[..., 4:] + 1) % codec.codebook_size
    keep = 4 * FRAME_SAMPLES
    assert torch.equal(codec.decode(codes)[..., :keep], codec.decode(changed)[..., :keep])


def test_windows_of_unit_gain_add_up_to_the_signal_they_cover(codec):
    decoder = codec.decoder
    windows = torch.ones(1, 40, decoder.window_samples) * decoder.window
    wave = decoder.overlap_add(windows, state=None)
    assert torch.allclose(wave[:, decoder.window_samples :], torch.ones(()), atol=1e-5)


def test_training_pass_gives_gradients_to_every_weight():
    torch.manual_seed(0)
    sizes = {"dim": 32, "hidden": 16, "low_blocks": 1, "high_blocks": 1, "codebook_size": 16, "codebook_dim": 8}
    codec = build_codec(SpectralConfig(**sizes, num_phones=5)).train()
    out = codec(noise(batch=2, frames=8))
    (out.wave.pow(2).mean() + out.commitment + out.phone_logits.pow(2).mean()).backward()
    assert out.codes.shape == (2, codec.num_codebooks, 8)
    assert out.phone_logits.shape == (2, 8, 4, 5)
    missing = [name for name, p in codec.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert missing == []


def test_an_odd_chunk_is_refused(codec):
    with pytest.raises(ValueError, match="expected a multiple of 1920"):
        codec.encode(torch.zeros(1, 1, 1000), state=codec.init_encoder_state(1))


def test_hop_must_divide_the_frame():
    with pytest.raises(ConfigError, match="hop_samples must divide 1920"):
        parse_config(SpectralConfig, {"hop_samples": 250}, source="x.yaml")
