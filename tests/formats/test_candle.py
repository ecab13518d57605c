"""candle's files, safetensors and GGUF: written here from a model of ours, read back; other models are named."""

from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quantize
from safetensors.torch import load_file

from mmspeech.checkpoint import CheckpointError, write_tensors
from mmspeech.formats.directory import convert_directory, read_any
from mmspeech.formats.groups import ConvertError, export_tensors
from mmspeech.formats.kyutai_keys import candle_groups
from mmspeech.formats.moshivis_config import config_from_kyutai
from mmspeech.lm.model import VisionSpeechModel

# Heads as wide as the released ones, since no settings lie beside these files.
SIZES = {
    "dim": 128, "num_heads": 1, "num_layers": 2, "hidden_scale": 1.5, "text_card": 40, "audio_card": 32,
    "n_q": 8, "dep_q": 4, "delays": [0, 0, 1, 1, 1, 0, 1, 1, 1], "depformer_dim": 64, "depformer_num_heads": 1,
    "depformer_dim_feedforward": 96, "depformer_num_layers": 2, "norm": "real_rms_norm_f32",
    "norm_xa": "real_rms_norm_f32", "xa_gating": "sigmoid", "xa_conditional_gating": True,
    "encoder_name": "siglip_gemma2_448", "depformer_context": 4,
}  # fmt: skip
EYES = {"num_crossattended_tokens": -1}


def candle_model(**changes) -> tuple[VisionSpeechModel, dict[str, torch.Tensor]]:
    """A random model, and its tensors as candle names them."""
    torch.manual_seed(0)
    model = VisionSpeechModel(config_from_kyutai(SIZES | changes, source="test")).eval()
    return model, export_tensors(model.state_dict(), candle_groups(model.config), copies=True)


def write_gguf(file: Path, tensors: dict[str, torch.Tensor], *, kind: str | None = None) -> None:
    """Matrices in Q8_0 where their rows allow it, all else as it is; `kind`: the architecture it says it is."""
    writer = GGUFWriter(str(file), kind or "")
    for name, value in tensors.items():
        if value.dim() == 2 and value.shape[1] % 32 == 0 and "emb" not in name:
            quantised = quantize(value.numpy(), GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, quantised, raw_dtype=GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(name, value.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("changes", [{}, EYES], ids=["blind", "eyes"])
def test_safetensors_are_read_bit_equal(changes, tmp_path):
    model, tensors = candle_model(**changes)
    write_tensors(tmp_path / "model.safetensors", tensors)
    found = read_any(tmp_path)
    state = model.state_dict()
    assert found.weights.keys() == state.keys() and all(torch.equal(found.weights[key], state[key]) for key in state)
    sizes = {"context", "max_period"}
    told, had = (one.lm.model_dump(exclude={"temporal": sizes, "depth": sizes}) for one in (found.config, model.config))
    assert told == had
    tensors["depformer.2.transformer.layers.0.norm1.alpha"] = torch.full((1, 1, 64), 3.0)
    write_tensors(tmp_path / "model.safetensors", tensors)
    with pytest.raises(ConvertError, match="differ, but they are one shared tensor"):
        read_any(tmp_path)


def test_gguf_is_read_as_near_as_eight_bits_are(tmp_path):
    """Quantised files hold queries apart from keys and values."""
    model, tensors = candle_model(**EYES)
    joined = "transformer.layers.0.cross_attention.in_proj_weight"
    query, rest = tensors.pop(joined).split([128, 256])
    write_gguf(tmp_path / "model.q8_0.gguf", tensors | {f"{joined}_q": query, f"{joined}_kv": rest})
    convert_directory(tmp_path, tmp_path / "ours")
    again = load_file(tmp_path / "ours" / "model.safetensors")
    for key, value in model.state_dict().items():
        assert (again[key] - value).abs().max() <= value.abs().max() / 127 + 1e-6, key
    assert not torch.equal(again["lm.temporal.text_linear.weight"], model.lm.temporal.text_linear.weight)


def test_gguf_of_another_model_is_named(tmp_path):
    write_gguf(tmp_path / "model.gguf", {"blk.0.attn_q.weight": torch.zeros(4, 32)}, kind="llama")
    with pytest.raises(ConvertError, match=r"a GGUF of llama \(1 tensors, such as blk.0.attn_q.weight\), not of Moshi"):
        convert_directory(tmp_path / "model.gguf", tmp_path / "out")
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(7))
    with pytest.raises(ConvertError, match="not a readable GGUF file"):
        convert_directory(tmp_path / "model.gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_missing_in_a_file_is_named(tmp_path):
    _, tensors = candle_model()
    del tensors["depformer.3.linear_in.weight"]
    write_tensors(tmp_path / "model.safetensors", tensors)
    with pytest.raises(CheckpointError, match="1 missing: depformer.3.linear_in.weight"):
        read_any(tmp_path)
