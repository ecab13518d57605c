"""Mimi: streaming equal to offline, causal, trainable. Equality with the reference: test_convert_codec.py."""

import pytest
import torch
from small_mimi import small_codec, small_config

from mmspeech.audio import mimi
from mmspeech.audio.codec import build_codec
from mmspeech.audio.mimi import MimiCodec
from mmspeech.config import ConfigError, MimiConfig, parse_config
from mmspeech.frames import FRAME_SAMPLES


def frames_of(codec: MimiCodec, wave: torch.Tensor, frames: int):
    return wave.split(frames * codec.frame_samples, dim=-1)


def snr_db(expected: torch.Tensor, got: torch.Tensor) -> float:
    return float(10 * torch.log10(expected.double().pow(2).sum() / (expected - got).double().pow(2).sum()))


def test_configs_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="num_codebooks 8 is more than total_codebooks 6"):
        small_config(num_codebooks=8)
    with pytest.raises(ConfigError, match=r"dim 64 and transformer\.dim 32 must be equal"):
        small_config(dim=64)


# Streaming


@pytest.mark.parametrize("frames", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("max_frames", [1, 3])
def test_streaming_is_offline(frames, max_frames):
    codec = small_codec()
    wave = torch.randn(2, 1, 20 * codec.frame_samples)
    codes = codec.encode(wave)
    assert codes.shape == (2, 4, 20) and codes.dtype == torch.long and len(codes.unique()) > 16
    state = codec.init_encoder_state(2, max_frames=max_frames)
    assert torch.equal(torch.cat([codec.encode(x, state=state) for x in frames_of(codec, wave, frames)], -1), codes)
    expected = codec.decode(codes)
    assert expected.shape == wave.shape
    state = codec.init_decoder_state(2, max_frames=max_frames)
    got = torch.cat([codec.decode(x, state=state) for x in codes.split(frames, dim=-1)], -1)
    assert snr_db(expected, got) > 110


def test_long_signals_are_coded_in_pieces(monkeypatch):
    codec = small_codec()
    wave = torch.randn(1, 1, 29 * codec.frame_samples - 5)
    codes = codec.encode(wave)
    decoded = codec.decode(codes)
    monkeypatch.setattr(mimi, "WHOLE_FRAMES", 8)
    assert torch.equal(codec.encode(wave), codes)
    assert snr_db(decoded, codec.decode(codes)) > 110


def test_full_width_streams_exactly():
    """Mimi's own widths and rates, fewer layers: 0.4 s frame by frame."""
    transformer = {**MimiConfig().transformer.model_dump(), "num_layers": 1}
    config = parse_config(MimiConfig, {"total_codebooks": 8, "transformer": transformer}, source="test")
    torch.manual_seed(0)
    codec = build_codec(config).eval()
    wave = 0.1 * torch.randn(1, 1, 5 * FRAME_SAMPLES)
    codes = codec.encode(wave)
    state = codec.init_encoder_state(1)
    assert torch.equal(torch.cat([codec.encode(x, state=state) for x in wave.split(FRAME_SAMPLES, -1)], -1), codes)
    expected, state = codec.decode(codes), codec.init_decoder_state(1)
    got = torch.cat([codec.decode(x, state=state) for x in codes.split(1, -1)], -1)
    assert snr_db(expected, got) > 110


def test_reset_of_one_row():
    codec = small_codec()
    wave = torch.randn(3, 1, 12 * codec.frame_samples)
    before, after = wave[..., : 7 * codec.frame_samples], wave[..., 7 * codec.frame_samples :]
    rows = torch.tensor([False, True, False])
    encoder, decoder = codec.init_encoder_state(3), codec.init_decoder_state(3)
    head = codec.encode(before, state=encoder)
    codec.decode(head, state=decoder)
    encoder.reset(rows)
    decoder.reset(rows)
    tail = codec.encode(after, state=encoder)
    heard = codec.decode(tail, state=decoder)
    assert torch.equal(tail[1:2], codec.encode(after[1:2]))
    assert snr_db(codec.decode(tail[1:2]), heard[1:2]) > 110
    whole = torch.cat([head, tail], -1)[[0, 2]]
    assert torch.equal(whole, codec.encode(wave[[0, 2]]))
    assert snr_db(codec.decode(whole)[..., 7 * codec.frame_samples :], heard[[0, 2]]) > 110
    encoder.reset()
    assert torch.equal(codec.encode(before, state=encoder), head)


def test_two_streams_interleaved():
    codec = small_codec()
    waves = torch.randn(2, 1, 1, 9 * codec.frame_samples)
    encoders = [codec.init_encoder_state(1) for _ in waves]
    decoders = [codec.init_decoder_state(1) for _ in waves]
    codes, heard = [[], []], [[], []]
    for step in range(9):
        for stream, wave in enumerate(waves):
            frame = frames_of(codec, wave, 1)[step]
            codes[stream].append(codec.encode(frame, state=encoders[stream]))
            heard[stream].append(codec.decode(codes[stream][-1], state=decoders[stream]))
    for stream, wave in enumerate(waves):
        assert torch.equal(torch.cat(codes[stream], -1), codec.encode(wave))
        assert snr_db(codec.decode(codec.encode(wave)), torch.cat(heard[stream], -1)) > 110


def test_state_is_kept_in_place_and_copied_whole():
    codec = small_codec()
    frames = frames_of(codec, torch.randn(1, 1, 8 * codec.frame_samples), 1)
    state = codec.init_encoder_state(1)
    places = [tensor.data_ptr() for tensor in state.tensors()]
    for frame in frames[:4]:
        codec.encode(frame, state=state)
    assert places == [tensor.data_ptr() for tensor in state.tensors()]
    copy = state.clone()
    first = [codec.encode(frame, state=state) for frame in frames[4:]]
    again = [codec.encode(frame, state=copy) for frame in frames[4:]]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_rows_do_not_see_each_other():
    codec = small_codec()
    wave = torch.randn(3, 1, 6 * codec.frame_samples)
    codes = codec.encode(wave)
    for row in range(3):
        assert torch.equal(codec.encode(wave[row : row + 1]), codes[row : row + 1])


def test_end_is_padded_with_zeros():
    codec = small_codec()
    wave = torch.randn(1, 1, 3 * codec.frame_samples - 7)
    padded = torch.cat([wave, torch.zeros(1, 1, 7)], -1)
    assert torch.equal(codec.encode(wave), codec.encode(padded))


def test_causal():
    codec = small_codec()
    wave = torch.randn(1, 1, 8 * codec.frame_samples, requires_grad=True)
    codec.latents(wave)[..., 4].sum().backward()
    assert wave.grad[..., 5 * codec.frame_samples :].abs().max() == 0
    assert wave.grad[..., : 5 * codec.frame_samples].abs().max() > 0
    latents = torch.randn(1, 32, 8, requires_grad=True)
    codec.synthesise(latents)[..., : 5 * codec.frame_samples].pow(2).sum().backward()
    assert latents.grad[..., 5:].abs().max() == 0
    assert latents.grad[..., 4].abs().max() > 0


def test_wrong_input_is_refused():
    codec = small_codec()
    with pytest.raises(ValueError, match=r"waveform of shape \(2, 48\); expected \[B, 1, N\]"):
        codec.encode(torch.zeros(2, 48))
    with pytest.raises(ValueError, match="N > 0"):
        codec.encode(torch.zeros(1, 1, 0))
    with pytest.raises(ValueError, match="25 samples, expected a multiple of 24"):
        codec.encode(torch.zeros(1, 1, 25), state=codec.init_encoder_state(1))
    for shape in ((1, 7, 3), (1, 1, 3), (1, 4, 0), (4, 3)):
        with pytest.raises(ValueError, match="expected .B, K, T. with K in 2..6 and T > 0"):
            codec.decode(torch.zeros(shape, dtype=torch.long))


# Training


def test_training_reduces_the_loss_and_moves_the_codebooks():
    torch.manual_seed(0)
    codec = build_codec(small_config()).train()
    time = torch.arange(40 * codec.frame_samples) / 24_000
    wave = (0.5 * torch.sin(2 * torch.pi * torch.tensor([[300.0], [440.0]]) * time))[:, None]
    optimizer = torch.optim.AdamW(codec.parameters(), lr=3e-3)
    losses, means = [], []
    for _ in range(60):
        out = codec(wave)
        loss = (out.wave - wave).pow(2).mean() + 0.1 * out.commitment
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        means.append(codec.quantizer.rest.codebooks[1].embedding_sum.clone())
    assert out.wave.shape == wave.shape and out.codes.shape == (2, 4, 40)
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    assert not torch.equal(means[0], means[-1])
    unused = codec.quantizer.rest.codebooks[4]  # beyond the 4 of 6 in use
    assert not unused.initialized


def test_gradients_reach_every_part():
    codec = small_codec().train()
    wave = torch.randn(1, 1, 6 * codec.frame_samples)
    out = codec(wave)
    (out.wave.pow(2).mean() + out.commitment).backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in codec.parameters())


def test_forward_in_eval_is_encode_then_decode():
    codec = small_codec()
    wave = torch.randn(2, 1, 6 * codec.frame_samples)
    with torch.no_grad():
        before = {key: value.clone() for key, value in codec.state_dict().items()}
        out = codec(wave)
        assert torch.equal(out.codes, codec.encode(wave))
        torch.testing.assert_close(out.wave, codec.decode(out.codes), atol=1e-5, rtol=1e-4)
        assert codec(wave, num_codebooks=3).codes.shape == (2, 3, 6)
        assert all(torch.equal(value, before[key]) for key, value in codec.state_dict().items())


def test_forward_without_codes():
    codec = small_codec()
    wave = torch.randn(1, 1, 4 * codec.frame_samples)
    out = codec(wave, quantize=False)
    assert out.codes is None and out.wave.shape == wave.shape and out.commitment == 0
