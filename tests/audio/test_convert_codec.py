"""Mimi's files in both layouts, and what comes out of them: equal to transformers' MimiModel."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_mimi import small_codec, small_config
from typer.testing import CliRunner

from mmspeech.audio.codec import build_codec
from mmspeech.checkpoint import load_codec
from mmspeech.cli import app
from mmspeech.config import ConfigError, MimiConfig, load_config
from mmspeech.formats.mimi import (
    config_from_transformers,
    config_to_transformers,
    export_mimi,
    import_mimi,
    load_mimi,
    save_mimi,
)
from mmspeech.frames import FRAME_SAMPLES, SAMPLE_RATE_HZ

MIMI_YAML = Path(__file__).parents[2] / "configs" / "codec" / "mimi.yaml"


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


def test_the_command_makes_codec_directories_of_both_layouts_and_writes_them_back(tmp_path):
    """`mmspeech convert` of Mimi alone: the codes of the codec that `load_codec` reads are those of the source."""
    codec, config = small_codec(), small_config()
    wave = torch.randn(1, 1, 9 * codec.frame_samples)
    save_mimi(tmp_path / "hf", codec, config, layout="transformers")
    save_mimi(tmp_path / "kyutai" / "tokenizer-abc.safetensors", codec, config, layout="kyutai")
    (tmp_path / "kyutai" / "config.json").write_text(config.model_dump_json())
    for source in ("hf", "kyutai"):
        result = CliRunner().invoke(app, ["convert", str(tmp_path / source), str(tmp_path / f"from_{source}")])
        assert result.exit_code == 0, result.output
        assert torch.equal(load_codec(tmp_path / f"from_{source}").encode(wave)[:, :4], codec.encode(wave))
    result = CliRunner().invoke(app, ["convert", str(tmp_path / "from_hf"), str(tmp_path / "again")])
    assert result.exit_code == 0, result.output
    first, again = (load_file(tmp_path / name / "model.safetensors") for name in ("hf", "again"))
    assert first.keys() == again.keys() and all(torch.equal(first[key], again[key]) for key in first)


def test_what_is_no_mimi_is_refused_by_the_command(tmp_path):
    (tmp_path / "note.safetensors").write_text("hello")
    for name in ("tokenizer-a", "tokenizer-b"):
        (tmp_path / "two").mkdir(exist_ok=True)
        (tmp_path / "two" / f"{name}.safetensors").write_text("x")
    for source, message in (("note.safetensors", "not a readable safetensors file"), ("two", "give the file itself")):
        result = CliRunner().invoke(app, ["convert", str(tmp_path / source), str(tmp_path / "out")])
        assert result.exit_code == 2 and message in result.stderr and result.stderr.count("\n") == 1
        assert not (tmp_path / "out").exists()


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
