"""Mimi weights in Kyutai's layout (tokenizer-*.safetensors) and in that of transformers' MimiModel <-> ours."""

import json
import re
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mmspeech.audio.codec import build_codec
from mmspeech.audio.mimi import MimiCodec
from mmspeech.checkpoint import (
    CODEC,
    build_empty,
    check_keys,
    load_codec,
    load_weights,
    read_tensors,
    replacing_directory,
    save_codec,
    write_tensors,
)
from mmspeech.config import CodecConfig, ConfigError, MimiConfig, parse_config, read_mapping

Layout = Literal["kyutai", "transformers"]

CONFIG, WEIGHTS = "config.json", "model.safetensors"
KYUTAI_FILES = "tokenizer-*.safetensors"
MIMI = "tokenizer-e351c8d8-checkpoint125.safetensors"  # as all of Kyutai's repositories call it

# (ours, theirs): every rule is applied to every key, in order.
KYUTAI_RULES = (
    (r"^(encoder|decoder)\.layers\.(\d+)\.block\.layers\.(\d+)\.conv\.", r"\1.model.\2.block.\3.conv.conv."),
    (r"^(encoder|decoder)\.layers\.(\d+)\.(conv|convtr)\.", r"\1.model.\2.\3.\3."),
    (r"^downsample\.conv\.", "downsample.conv.conv.conv."),
    (r"^upsample\.convtr\.", "upsample.convtr.convtr.convtr."),
    (r"_transformer\.layers\.", "_transformer.transformer.layers."),
    (r"\.self_attn\.in_proj\.weight$", ".self_attn.in_proj_weight"),
    (r"\.ffn\.linear_in\.", ".linear1."),
    (r"\.ffn\.linear_out\.", ".linear2."),
    (r"\.scale([12])\.scale$", r".layer_scale_\1.scale"),
    (r"\.codebooks\.(\d+)\.initialized$", r".vq.layers.\1._codebook._initialized"),
    (r"\.codebooks\.(\d+)\.", r".vq.layers.\1._codebook."),
    (r"^quantizer\.(first|rest)\.", r"quantizer.rvq_\1."),
)
TRANSFORMERS_RULES = (
    (r"^(encoder|decoder)\.layers\.(\d+)\.block\.layers\.(\d+)\.", r"\1.layers.\2.block.\3."),
    (r"\.convtr\.", ".conv."),
    (r"\.norm1\.", ".input_layernorm."),
    (r"\.norm2\.", ".post_attention_layernorm."),
    (r"\.self_attn\.out_proj\.", ".self_attn.o_proj."),
    (r"\.ffn\.linear_in\.", ".mlp.fc1."),
    (r"\.ffn\.linear_out\.", ".mlp.fc2."),
    (r"\.scale1\.scale$", ".self_attn_layer_scale.scale"),
    (r"\.scale2\.scale$", ".mlp_layer_scale.scale"),
    (r"\.codebooks\.(\d+)\.embedding_sum$", r".layers.\1.codebook.embed_sum"),
    (r"\.codebooks\.(\d+)\.", r".layers.\1.codebook."),
    (r"^quantizer\.first\.", "quantizer.semantic_residual_vector_quantizer."),
    (r"^quantizer\.rest\.", "quantizer.acoustic_residual_vector_quantizer."),
)
# Names that the libraries give the same tensors in memory: (there, in files).
ALIASES = (
    (r"\.self_attn\.in_projs\.0\.weight$", ".self_attn.in_proj_weight"),
    (r"\.self_attn\.out_projs\.0\.weight$", ".self_attn.out_proj.weight"),
    (r"^(encoder|decoder)\.\1_seanet\.", r"\1."),
    (r"^(encoder|decoder)\.\1_transformer\.", r"\1_transformer."),
    (r"^(?:encoder|decoder)\.((?:down|up)sample)\.", r"\1."),
)
# (ours, in the config.json of transformers)
CONFIG_FIELDS = {
    "sample_rate_hz": "sampling_rate",
    "total_codebooks": "num_quantizers",
    "codebook_size": "codebook_size",
    "codebook_dim": "vector_quantization_hidden_dimension",
    "dim": "hidden_size",
    "num_filters": "num_filters",
    "ratios": "upsampling_ratios",
    "kernel": "kernel_size",
    "residual_kernel": "residual_kernel_size",
    "last_kernel": "last_kernel_size",
    "compress": "compress",
    "num_residual_layers": "num_residual_layers",
    "dilation_base": "dilation_growth_rate",
}
TRANSFORMER_FIELDS = {
    "dim": "hidden_size",
    "num_heads": "num_attention_heads",
    "num_layers": "num_hidden_layers",
    "ffn_dim": "intermediate_size",
    "context": "sliding_window",
    "norm_eps": "norm_eps",
    "layer_scale": "layer_scale_initial_scale",
}
# What a config.json must not deviate from, because we build nothing else.
FIXED_FIELDS = {
    "audio_channels": 1,
    "use_causal_conv": True,
    "use_conv_shortcut": False,
    "pad_mode": "constant",
    "trim_right_ratio": 1.0,
    "num_semantic_quantizers": 1,
    "hidden_act": "gelu",
    "attention_bias": False,
}


def load_mimi(path: str | Path, config: MimiConfig | None = None) -> MimiCodec:
    """A codec from a safetensors file in either layout, or from a directory as transformers saves it.

    `config` None: that of the directory's config.json, or the released Mimi's for a lone file. Float32, eval mode,
    without gradients. Raises ConfigError naming every missing, unexpected and misshaped key as the file calls it.
    """
    path = Path(path)
    file = path / WEIGHTS if path.is_dir() else path
    if config is None and path.is_dir():
        config = config_from_transformers(read_mapping(path / CONFIG), source=str(path / CONFIG))
    config = MimiConfig() if config is None else config
    tensors = import_mimi(read_tensors(file, dtype=torch.float32), config, source=file)
    codec = build_empty(lambda: build_codec(config))
    load_weights(codec, tensors, source=file)
    return codec.eval().requires_grad_(False)


def read_mimi_beside(file: Path, config: CodecConfig) -> dict[str, Tensor]:
    """The state dict of the Mimi that lies beside a language model; empty when it does not."""
    return dict(load_mimi(file, config).state_dict()) if file.is_file() else {}


def holds_mimi(path: Path) -> bool:
    """Whether `path` is a safetensors file, a directory with Mimi in either layout, or a codec directory of ours."""
    if path.is_file():
        return path.suffix == ".safetensors"
    if (path / CONFIG).is_file():
        data = read_mapping(path / CONFIG)
        return "mimi" in (data.get("model_type"), data.get("kind"))
    return any(path.glob(KYUTAI_FILES))


def convert_mimi(src: Path, dst: Path) -> list[str]:
    """Mimi as `holds_mimi` finds it -> a codec directory; a codec directory -> one that transformers loads.

    In Kyutai's layout sizes are those of a config.json of ours (`kind: mimi`) beside the file, else the released ones.
    Returns notes; the result appears whole or not at all. Raises ConfigError naming the file.
    """
    data = read_mapping(src / CONFIG) if (src / CONFIG).is_file() else {}
    if data.get("model_type") == "mimi":
        config = config_from_transformers(data, source=str(src / CONFIG))
        save_codec(dst, load_mimi(src, config), config)
        return []
    config = parse_config(MimiConfig, data, source=str(src / CONFIG)) if data else MimiConfig()
    if (src / CODEC).is_file():
        with replacing_directory(dst) as folder:
            save_mimi(folder, load_codec(src), config, layout="transformers")
        return []
    files = [src] if src.is_file() else sorted(src.glob(KYUTAI_FILES))
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "nothing"
        raise ConfigError(f"{src}: expected one file like {KYUTAI_FILES}, found {found}; give the file itself")
    save_codec(dst, load_mimi(files[0], config), config)
    return [] if src.is_file() else [f"the codec of {files[0].name} only; other files there were not read"]


def save_mimi(path: str | Path, codec: MimiCodec, config: MimiConfig, *, layout: Layout) -> None:
    """Write `codec`: for "kyutai" a safetensors file, for "transformers" a directory its MimiModel can load."""
    path = Path(path)
    tensors = export_mimi(codec.state_dict(), layout=layout, num_heads=config.transformer.num_heads)
    if layout == "kyutai":
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, tensors)
        return
    path.mkdir(parents=True, exist_ok=True)
    write_tensors(path / WEIGHTS, tensors)
    (path / CONFIG).write_text(json.dumps(config_to_transformers(config), indent=2) + "\n", encoding="utf-8")


def export_mimi(state: dict[str, Tensor], *, layout: Layout, num_heads: int) -> dict[str, Tensor]:
    """The state dict of a MimiCodec under the names and in the packing of `layout`."""
    tensors = {}
    for key, value in state.items():
        theirs = _their_keys(key, layout)
        if len(theirs) == 1:
            tensors[theirs[0]] = value
        else:
            query, key_rows, values = value.chunk(3)
            parts = (to_halves(query, num_heads), to_halves(key_rows, num_heads), values)
            tensors.update(zip(theirs, parts, strict=True))
    return tensors


def import_mimi(tensors: dict[str, Tensor], config: MimiConfig, *, source: str | Path) -> dict[str, Tensor]:
    """Tensors of either layout as the state dict of a MimiCodec; raises ConfigError naming every key that is off."""
    tensors = {_in_files(key): value for key, value in tensors.items()}
    layout = detect_layout(tensors, source=source)
    num_heads = config.transformer.num_heads
    with torch.device("meta"):
        own = build_codec(config).state_dict()
    for key, value in own.items():
        if key.endswith(".initialized"):  # newer than some files; codebooks in a file are trained
            tensors.setdefault(_their_keys(key, layout)[0], torch.ones(value.shape))
    check_keys(export_mimi(own, layout=layout, num_heads=num_heads), tensors, source=source)
    state = {}
    for key in own:
        parts = [tensors[name] for name in _their_keys(key, layout)]
        if len(parts) == 3:
            parts = [from_halves(parts[0], num_heads), from_halves(parts[1], num_heads), parts[2]]
        state[key] = torch.cat(parts) if len(parts) > 1 else parts[0]
    return state


def detect_layout(tensors: dict[str, Tensor], *, source: str | Path) -> Layout:
    """Which of the two layouts the keys are in."""
    if any(key.startswith("quantizer.rvq_") for key in tensors):
        return "kyutai"
    if any("residual_vector_quantizer." in key for key in tensors):
        return "transformers"
    shown = ", ".join(sorted(tensors)[:3]) or "no tensors"
    raise ConfigError(
        f"{source}: not a Mimi checkpoint ({shown}); expected quantizer.rvq_* (Kyutai) or "
        "quantizer.*_residual_vector_quantizer.* (transformers)"
    )


def config_from_transformers(data: dict[str, Any], *, source: str) -> MimiConfig:
    """Our configuration for the config.json of a MimiModel; raises ConfigError for variants we do not build."""
    if data.get("model_type") != "mimi":
        raise ConfigError(f"{source}: model_type {data.get('model_type')!r}, expected 'mimi'")
    fixed = dict(FIXED_FIELDS)
    for theirs, alike in (("upsample_groups", "hidden_size"), ("num_key_value_heads", "num_attention_heads")):
        if alike in data:
            fixed[theirs] = data[alike]
    other = [
        f"{key} {data[key]!r} (expected {value!r})" for key, value in fixed.items() if data.get(key, value) != value
    ]
    if other:
        raise ConfigError(f"{source}: a variant of Mimi that is not supported: {', '.join(other)}")
    ours = {key: data[theirs] for key, theirs in CONFIG_FIELDS.items() if theirs in data}
    transformer = MimiConfig().transformer.model_dump()
    transformer |= {key: data[theirs] for key, theirs in TRANSFORMER_FIELDS.items() if theirs in data}
    transformer["max_period"] = (data.get("rope_parameters") or data).get("rope_theta", transformer["max_period"])
    used = min(MimiConfig().num_codebooks, ours.get("total_codebooks", MimiConfig().total_codebooks))
    return parse_config(MimiConfig, {**ours, "num_codebooks": used, "transformer": transformer}, source=source)


def config_to_transformers(config: MimiConfig) -> dict[str, Any]:
    """The config.json with which transformers' MimiModel builds the same codec."""
    data: dict[str, Any] = {"model_type": "mimi", "architectures": ["MimiModel"], **FIXED_FIELDS}
    data |= {theirs: getattr(config, key) for key, theirs in CONFIG_FIELDS.items()}
    data |= {theirs: getattr(config.transformer, key) for key, theirs in TRANSFORMER_FIELDS.items()}
    data |= {
        "codebook_dim": config.codebook_dim,
        "upsample_groups": config.dim,
        "num_key_value_heads": config.transformer.num_heads,
        "head_dim": config.dim // config.transformer.num_heads,
        "rope_theta": config.transformer.max_period,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.transformer.max_period},
    }
    return data


def _their_keys(key: str, layout: Layout) -> list[str]:
    """What `layout` calls our `key`; three names where it stores queries, keys and values apart."""
    for ours, theirs in KYUTAI_RULES if layout == "kyutai" else TRANSFORMERS_RULES:
        key = re.sub(ours, theirs, key)
    if layout == "transformers" and ".self_attn.in_proj." in key:
        return [key.replace("in_proj", f"{part}_proj") for part in "qkv"]
    return [key]


def _in_files(key: str) -> str:
    for alias, name in ALIASES:
        key = re.sub(alias, name, key)
    return key


def to_halves(rows: Tensor, num_heads: int) -> Tensor:
    """Rotary pairs of each head from neighbours to halves: [D, D] with rows (head, pair, 2) -> (head, 2, pair)."""
    return rows.unflatten(0, (num_heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def from_halves(rows: Tensor, num_heads: int) -> Tensor:
    """The inverse of `to_halves`."""
    return rows.unflatten(0, (num_heads, 2, -1)).transpose(1, 2).flatten(0, 2)
