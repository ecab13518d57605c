"""Mimi: equal to transformers' MimiModel, streaming equal to offline, causal, trainable, both file layouts."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmspeech.audio import mimi
from mmspeech.audio.codec import build_codec
from mmspeech.audio.mimi import MimiCodec
from mmspeech.audio.waveform import FRAME_SAMPLES, SAMPLE_RATE_HZ
from mmspeech.config import ConfigError, MimiConfig, load_config, parse_config
from mmspeech.convert_codec import (
    config_from_transformers,
    config_to_transformers,
    export_mimi,
    import_mimi,
    load_mimi,
    save_mimi,
)

MIMI_YAML = Path(__file__).parents[2] / "configs" / "codec" / "mimi.yaml"


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


def frames_of(codec: MimiCodec, wave: torch.Tensor, frames: int):
    return wave.split(frames * codec.frame_samples, dim=-1)


def snr_db(expected: torch.Tensor, got: torch.Tensor) -> float:
    return float(10 * torch.log10(expected.double().pow(2).sum() / (expected - got).double().pow(2).sum()))


# Equality with the reference


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """(transformers' MimiModel, our codec loaded from what it saved), with the same random weights."""
    from transformers import MimiModel

    sizes = {"num_codebooks": 6, "num_residual_layers": 2}
    ours, theirs = (tmp_path_factory.mktemp(name) for name in ("ours", "theirs"))
    save_mimi(ours, small_codec(**sizes), small_config(**sizes), layout="transformers")
    reference = MimiModel.from_pretrained(ours).eval()
    reference.save_pretrained(theirs)
    return reference, load_mimi(theirs)


@pytest.mark.parametrize("frames", [1, 4, 17])
def test_equals_transformers(pair, frames):
    reference, codec = pair
    wave = torch.randn(2, 1, frames * codec.frame_samples)
    with torch.no_grad():
        latents = reference.encoder(wave).latents
        torch.testing.assert_close(codec.latents(wave), latents, atol=1e-4, rtol=1e-4)
        codes = reference.encode(wave).audio_codes
        assert torch.equal(codec.encode(wave), codes)
        expected = reference.decode(codes).audio_values
    assert expected.std() > 0.01
    torch.testing.assert_close(codec.decode(codes), expected, atol=1e-4, rtol=1e-4)


def test_equals_transformers_with_fewer_codebooks(pair):
    reference, codec = pair
    wave = torch.randn(1, 1, 5 * codec.frame_samples)
    with torch.no_grad():
        codes = reference.encode(wave, num_quantizers=3).audio_codes
        expected = reference.decode(codes).audio_values
    assert torch.equal(codec.encode(wave)[:, :3], codes)
    torch.testing.assert_close(codec.decode(codes), expected, atol=1e-4, rtol=1e-4)


def test_transformers_loads_what_we_write(tmp_path):
    from transformers import MimiModel

    codec, config = small_codec(), small_config()
    save_mimi(tmp_path / "saved", codec, config, layout="transformers")
    reference, info = MimiModel.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    wave = torch.randn(1, 1, 7 * codec.frame_samples)
    with torch.no_grad():
        codes = reference.encode(wave, num_quantizers=4).audio_codes
        expected = reference.decode(codes).audio_values
    assert torch.equal(codec.encode(wave), codes)
    torch.testing.assert_close(codec.decode(codes), expected, atol=1e-4, rtol=1e-4)


# Files


KYUTAI_SHAPES = {
    "encoder.model.0.conv.conv.weight": (64, 1, 7),
    "encoder.model.1.block.1.conv.conv.weight": (32, 64, 3),
    "encoder.model.1.block.3.conv.conv.bias": (64,),
    "encoder.model.12.conv.conv.weight": (1024, 512, 16),
    "encoder.model.14.conv.conv.weight": (512, 1024, 3),
    "decoder.model.0.conv.conv.weight": (1024, 512, 7),
    "decoder.model.2.convtr.convtr.weight": (1024, 512, 16),
    "decoder.model.3.block.1.conv.conv.weight": (256, 512, 3),
    "decoder.model.14.conv.conv.weight": (1, 64, 3),
    "encoder_transformer.transformer.layers.7.self_attn.in_proj_weight": (1536, 512),
    "encoder_transformer.transformer.layers.0.self_attn.out_proj.weight": (512, 512),
    "decoder_transformer.transformer.layers.0.norm1.bias": (512,),
    "decoder_transformer.transformer.layers.0.linear1.weight": (2048, 512),
    "decoder_transformer.transformer.layers.0.linear2.weight": (512, 2048),
    "decoder_transformer.transformer.layers.0.layer_scale_1.scale": (512,),
    "downsample.conv.conv.conv.weight": (512, 512, 4),
    "upsample.convtr.convtr.convtr.weight": (512, 1, 4),
    "quantizer.rvq_first.input_proj.weight": (256, 512, 1),
    "quantizer.rvq_rest.output_proj.weight": (512, 256, 1),
    "quantizer.rvq_first.vq.layers.0._codebook.embedding_sum": (2048, 256),
    "quantizer.rvq_rest.vq.layers.30._codebook.cluster_usage": (2048,),
    "quantizer.rvq_rest.vq.layers.30._codebook._initialized": (1,),
}


def test_kyutai_layout_at_full_size():
    config = load_config(MimiConfig, MIMI_YAML)
    assert config == MimiConfig()
    with torch.device("meta"):
        codec = build_codec(config)
    assert (codec.frame_samples, codec.sample_rate_hz) == (FRAME_SAMPLES, SAMPLE_RATE_HZ)
    tensors = export_mimi(codec.state_dict(), layout="kyutai", num_heads=8)
    assert sum(value.numel() for value in tensors.values()) == 96_151_393
    for key, shape in KYUTAI_SHAPES.items():
        assert tensors[key].shape == shape, key
    assert len(tensors) == len(codec.state_dict())


@pytest.mark.parametrize("layout", ["kyutai", "transformers"])
def test_save_then_load(tmp_path, layout):
    codec, config = small_codec(), small_config()
    path = tmp_path / "new" / "mimi.safetensors"
    save_mimi(path, codec, config, layout=layout)
    loaded = load_mimi(path, config)
    assert loaded.state_dict().keys() == codec.state_dict().keys()
    for key, value in codec.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_reads_names_used_in_memory(pair, tmp_path):
    """MimiModel().state_dict() and moshi's in-memory names, which people save directly."""
    reference, codec = pair
    save_file(reference.state_dict(), tmp_path / "memory.safetensors")
    config = small_config(num_codebooks=6, num_residual_layers=2)
    loaded = load_mimi(tmp_path / "memory.safetensors", config).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in codec.state_dict().items())

    tensors = export_mimi(codec.state_dict(), layout="kyutai", num_heads=4)
    renamed = {
        key.replace("in_proj_weight", "in_projs.0.weight").replace("out_proj.weight", "out_projs.0.weight"): value
        for key, value in tensors.items()
        if not key.endswith("_initialized")
    }
    read = import_mimi(renamed, config, source="memory")
    assert all(torch.equal(read[key], value) for key, value in codec.state_dict().items() if "initialized" not in key)
    assert read["quantizer.first.codebooks.0.initialized"].item() == 1


@pytest.mark.parametrize("layout", ["kyutai", "transformers"])
def test_keys_that_are_off_are_named(tmp_path, layout):
    codec, config = small_codec(), small_config()
    tensors = export_mimi(codec.state_dict(), layout=layout, num_heads=4)
    lost = "encoder_transformer.layers.1.self_attn.k_proj.weight"
    if layout == "kyutai":
        lost = "encoder_transformer.transformer.layers.1.self_attn.in_proj_weight"
    misshaped = next(key for key in tensors if "upsample" in key)
    tensors = {key: value.clone() for key, value in tensors.items() if key != lost}
    tensors[misshaped] = tensors[misshaped][:, :, :1].clone()
    tensors["extra.weight"] = torch.zeros(1)
    path = tmp_path / "bad.safetensors"
    save_file(tensors, path)
    with pytest.raises(ConfigError) as caught:
        load_mimi(path, config)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    for text in (f"1 missing: {lost}", "1 unexpected: extra.weight", f"1 misshaped: {misshaped}"):
        assert text in message


def test_other_files_are_refused(tmp_path):
    save_file({"lm.weight": torch.zeros(2)}, tmp_path / "lm.safetensors")
    with pytest.raises(ConfigError, match=r"lm\.safetensors: not a Mimi checkpoint \(lm\.weight\)"):
        load_mimi(tmp_path / "lm.safetensors")
    with pytest.raises(ConfigError, match=r"nope\.safetensors: not there"):
        load_mimi(tmp_path / "nope.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(ConfigError, match=r"text\.safetensors: not a readable safetensors file"):
        load_mimi(tmp_path / "text.safetensors")


def test_too_few_codebooks_in_the_file(tmp_path):
    save_mimi(tmp_path / "a.safetensors", small_codec(), small_config(), layout="kyutai")
    assert len(load_file(tmp_path / "a.safetensors")) == len(small_codec().state_dict())
    with pytest.raises(ConfigError, match=r"missing: quantizer\.rvq_rest\.vq\.layers\.5\._codebook\.cluster_usage"):
        load_mimi(tmp_path / "a.safetensors", small_config(total_codebooks=7))


def test_transformers_config_round_trip():
    for config in (MimiConfig(), small_config()):
        data = json.loads(json.dumps(config_to_transformers(config)))
        again = config_from_transformers(data, source="config.json")
        assert again.model_copy(update={"num_codebooks": config.num_codebooks}) == config


def test_transformers_defaults_are_the_released_mimi():
    from transformers import MimiConfig as ReferenceConfig

    assert config_from_transformers(ReferenceConfig().to_dict(), source="config.json") == MimiConfig()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model_type", "encodec", "model_type 'encodec', expected 'mimi'"),
        ("use_conv_shortcut", True, r"not supported: use_conv_shortcut True \(expected False\)"),
        ("num_key_value_heads", 2, r"num_key_value_heads 2 \(expected 8\)"),
        ("hidden_size", 500, r"upsample_groups 512 \(expected 500\)"),
        ("kernel_size", "seven", "kernel"),
    ],
)
def test_transformers_variants_are_refused(key, value, message):
    data = {**config_to_transformers(MimiConfig()), key: value}
    with pytest.raises(ConfigError, match=message):
        config_from_transformers(data, source="config.json")


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
