"""transformers' MoshiForConditionalGeneration (kmhf/hf-moshiko, hf-moshika) <-> ours: the duplex model and its Mimi."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmspeech.audio.codec import build_codec
from mmspeech.checkpoint import build_empty, load_weights, read_tensors, write_tensors
from mmspeech.config import LMConfig, ModelConfig, parse_config, read_mapping
from mmspeech.formats.groups import (
    Converted,
    ConvertError,
    Group,
    export_tensors,
    import_tensors,
    same,
    shapes_of,
    weights_file,
)
from mmspeech.formats.mimi import (
    config_from_transformers,
    config_to_transformers,
    export_mimi,
    from_halves,
    import_mimi,
    to_halves,
)

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
CODEC_PREFIX = "audio_encoder."
TOKENIZERS = ("tokenizer.model", "tokenizer_spm_32k_3.model")
# Settings of theirs that we know only one value of.
FIXED = {"hidden_act": "silu", "attention_dropout": 0.0, "tie_word_embeddings": False}
PAD_ID = 3
_QUERY = ".self_attn.q_proj.linear.weight"
_PACKED = ".self_attn.qkv"  # what `_pack` calls a layer's three matrices in one


def holds_transformers_moshi(path: Path) -> bool:
    """Whether `path` is a directory with a config.json of their model."""
    return (path / CONFIG).is_file() and "depth_decoder_config" in read_mapping(path / CONFIG)


def read_transformers_moshi(path: str | Path) -> Converted:
    """Read a directory as `save_pretrained` leaves it, whole or in parts. Raises ConvertError."""
    path = Path(path)
    source = str(path / CONFIG)
    data = read_mapping(path / CONFIG)
    config = _config_from(data, source=source)
    tensors = _read_parts(path)
    tensors.pop("decoder.model.rotary_emb.inv_freq", None)
    codec = {key.removeprefix(CODEC_PREFIX): tensors.pop(key) for key in list(tensors) if key.startswith(CODEC_PREFIX)}
    weights = import_tensors(_pack(tensors, config.lm), _groups(config), shapes_of(config), source=path)
    state = {}
    if codec:
        mimi = build_empty(lambda: build_codec(config.codec))
        codec = {key: value.float() if value.is_floating_point() else value for key, value in codec.items()}
        load_weights(mimi, import_mimi(codec, config.codec, source=path), source=path)
        state = dict(mimi.state_dict())
    tokenizer = next((path / name for name in TOKENIZERS if (path / name).is_file()), None)
    return Converted(config, weights, {}, state, tokenizer)


def write_transformers_moshi(
    path: str | Path, state: dict[str, Tensor], config: ModelConfig, *, codec: dict[str, Tensor]
) -> None:
    """Write config.json and model.safetensors as their `from_pretrained` reads them. Raises ConvertError."""
    path = Path(path)
    told = _config_to(config)
    tensors = _unpack(export_tensors(state, _groups(config)), config.lm)
    mimi = export_mimi(codec, layout="transformers", num_heads=config.codec.transformer.num_heads)
    path.mkdir(parents=True, exist_ok=True)
    write_tensors(path / WEIGHTS, tensors | {f"{CODEC_PREFIX}{key}": value for key, value in mimi.items()})
    (path / CONFIG).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def _read_parts(path: Path) -> dict[str, Tensor]:
    if not (path / INDEX).is_file():
        return read_tensors(weights_file(path, WEIGHTS))
    names = sorted(set(read_mapping(path / INDEX)["weight_map"].values()))
    tensors: dict[str, Tensor] = {}
    for name in names:
        tensors |= read_tensors(weights_file(path, name))
    return tensors


def _groups(config: ModelConfig) -> Iterator[Group]:
    lm = config.lm
    dim, depth, inner = lm.temporal.dim, lm.depth.dim, lm.temporal.ffn_dim
    count, rows = lm.num_codebooks, lm.audio_card + 1
    yield same("lm.temporal.text_emb.weight", "decoder.model.embed_tokens.weight", (lm.text_card + 1, dim))
    streams = {f"embed_tokens.{k}.weight": (rows, dim) for k in range(2 * count)}
    yield Group(("lm.temporal.audio_emb.weight",), streams)
    yield same("lm.temporal.out_norm.alpha", "decoder.model.norm.weight", (dim,))
    yield same("lm.temporal.text_linear.weight", "decoder.lm_head.weight", (lm.text_card, dim))
    for n in range(lm.temporal.num_layers):
        ours, theirs = f"lm.temporal.transformer.layers.{n}", f"decoder.model.layers.{n}"
        yield from _norms(ours, theirs, dim)
        yield same(f"{ours}.self_attn.in_proj.weight", theirs + _PACKED, (3 * dim, dim))
        yield same(f"{ours}.self_attn.out_proj.weight", f"{theirs}.self_attn.o_proj.linear.weight", (dim, dim))
        yield same(f"{ours}.ffn.linear_in.weight", f"{theirs}.mlp.fc1.weight", (2 * inner, dim))
        yield same(f"{ours}.ffn.linear_out.weight", f"{theirs}.mlp.fc2.weight", (dim, inner))
    yield same("lm.depth.hidden_in.weight", "depth_decoder.input_projections.weight", (count, depth, dim))
    yield same("lm.depth.text_emb", "depth_decoder.text_embed_tokens.weight", (lm.text_card + 1, depth))
    tokens = {f"depth_decoder.embed_tokens.{k}.weight": (rows, depth) for k in range(count - 1)}
    yield Group(("lm.depth.audio_emb",), tokens)
    inner = lm.depth.ffn_dim
    for n in range(lm.depth.num_layers):
        ours, theirs = f"lm.depth.layers.{n}", f"depth_decoder.layers.{n}"
        yield from _norms(ours, theirs, depth)
        yield same(f"{ours}.in_proj.weight", theirs + _PACKED, (count, 3 * depth, depth))
        yield same(f"{ours}.out_proj.weight", f"{theirs}.self_attn.o_proj.linear.weight", (count, depth, depth))
        yield same(f"{ours}.ffn_in.weight", f"{theirs}.mlp.fc1.weight", (count, 2 * inner, depth))
        yield same(f"{ours}.ffn_out.weight", f"{theirs}.mlp.fc2.weight", (count, depth, inner))
    yield same("lm.depth.audio_linear.weight", "depth_decoder.lm_heads.weight", (count, lm.audio_card, depth))


def _norms(ours: str, theirs: str, dim: int) -> Iterator[Group]:
    yield same(f"{ours}.norm1.alpha", f"{theirs}.input_layernorm.weight", (dim,))
    yield same(f"{ours}.norm2.alpha", f"{theirs}.post_attention_layernorm.weight", (dim,))


def _pack(tensors: dict[str, Tensor], lm: LMConfig) -> dict[str, Tensor]:
    """Queries, keys and values in one matrix; rotary pairs, which theirs hold in halves, side by side. A layer that is
    not whole stays as it is, for the check of keys to name."""
    tensors = dict(tensors)
    for query in [key for key in tensors if key.endswith(_QUERY)]:
        names = [query.replace(".q_proj.", f".{part}_proj.") for part in "qkv"]
        if not all(name in tensors for name in names):
            continue
        parts = [tensors.pop(name) for name in names]
        if not query.startswith("depth_decoder."):
            parts = [from_halves(part, lm.temporal.num_heads) for part in parts[:2]] + parts[2:]
        tensors[query.removesuffix(_QUERY) + _PACKED] = torch.cat(parts, dim=-2)
    return tensors


def _unpack(tensors: dict[str, Tensor], lm: LMConfig) -> dict[str, Tensor]:
    """The inverse of `_pack`."""
    apart: dict[str, Tensor] = {}
    for key, value in tensors.items():
        if not key.endswith(_PACKED):
            apart[key] = value
            continue
        parts = list(value.chunk(3, dim=-2))
        if not key.startswith("depth_decoder."):
            parts[:2] = [to_halves(part, lm.temporal.num_heads) for part in parts[:2]]
        query = key.removesuffix(_PACKED) + _QUERY
        names = [query.replace(".q_proj.", f".{part}_proj.") for part in "qkv"]
        apart |= dict(zip(names, parts, strict=True))
    return apart


def _config_from(data: dict[str, Any], *, source: str) -> ModelConfig:
    depth, mimi = data["depth_decoder_config"], data.get("audio_encoder_config") or {"model_type": "mimi"}
    wrong = [f"{key} {data[key]!r}" for key, value in FIXED.items() if data.get(key, value) != value]
    for part, what in ((data, "model"), (depth, "depth_decoder_config")):
        if part.get("num_key_value_heads") not in (None, part.get("num_attention_heads")):
            wrong.append(f"{what}.num_key_value_heads {part['num_key_value_heads']}")
    if wrong:
        raise ConvertError(f"{source}: a variant of Moshi that is not supported: {', '.join(wrong)}")
    count = data.get("num_codebooks", 8)
    rope = (data.get("rope_parameters") or data).get("rope_theta", 10000.0)
    one_side = (0, *[1] * (count - 1))
    lm = {
        "text_card": data.get("vocab_size", 32000),
        "audio_card": data.get("audio_vocab_size") or mimi.get("codebook_size", 2048),
        "num_codebooks": count,
        "delays": (0, *one_side, *one_side),
        "text_pad_id": PAD_ID,
        "temporal": _transformer(data, dim=4096, heads=32, layers=32, ffn=22528, context=3000) | {"max_period": rope},
        "depth": _transformer(depth, dim=1024, heads=16, layers=6, ffn=5632, context=count) | {"max_period": None},
    }
    codec = config_from_transformers(mimi, source=f"{source}: audio_encoder_config").model_dump()
    codec["num_codebooks"] = count
    return parse_config(ModelConfig, {"name": "moshi", "lm": lm, "codec": codec}, source=source)


def _transformer(data: dict[str, Any], *, dim: int, heads: int, layers: int, ffn: int, context: int) -> dict[str, Any]:
    """Ours of a transformer of theirs; sizes that are not told are the released ones."""
    return {
        "dim": data.get("hidden_size", dim),
        "num_heads": data.get("num_attention_heads", heads),
        "num_layers": data.get("num_hidden_layers", layers),
        "ffn_dim": data.get("ffn_dim", ffn) // 2,
        "context": max(data.get("sliding_window", context), context if context < 100 else 1),
        "norm": "rms",
        "norm_eps": data.get("rms_norm_eps", 1e-8),
    }


def _config_to(config: ModelConfig) -> dict[str, Any]:
    lm, codec = config.lm, config.codec
    one_side = (0, *[1] * (lm.num_codebooks - 1))
    problems = []
    if lm.fusion is not None:
        problems.append("lm.fusion (theirs has no eyes)")
    if lm.depth_steps != lm.num_codebooks:
        problems.append(f"lm.depth_codebooks {lm.depth_steps}")
    if lm.delays != (0, *one_side, *one_side):
        problems.append(f"lm.delays {list(lm.delays)}")
    if {lm.temporal.norm, lm.depth.norm} != {"rms"} or not lm.temporal.gated_ffn or lm.temporal.layer_scale is not None:
        problems.append("lm.temporal or lm.depth with other norms than rms, without gated_ffn, or with layer_scale")
    if codec.kind != "mimi":
        problems.append(f"codec.kind {codec.kind}")
    if problems:
        raise ConvertError("transformers' Moshi cannot hold " + "; ".join(problems))
    depth = _their_transformer(lm.depth) | {
        "model_type": "moshi_depth", "num_codebooks": lm.num_codebooks, "vocab_size": lm.text_card,
        "audio_vocab_size": lm.audio_card, "input_size": lm.temporal.dim,
        "max_position_embeddings": lm.num_codebooks + 1,
    }  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": lm.temporal.max_period}
    return _their_transformer(lm.temporal) | {
        "model_type": "moshi", "architectures": ["MoshiForConditionalGeneration"], "num_codebooks": lm.num_codebooks,
        "vocab_size": lm.text_card, "audio_vocab_size": lm.audio_card, "rope_parameters": rope,
        "max_position_embeddings": lm.temporal.context, "depth_decoder_config": depth,
        "audio_encoder_config": config_to_transformers(codec),
    }  # fmt: skip


def _their_transformer(options) -> dict[str, Any]:
    return {
        "hidden_size": options.dim,
        "num_attention_heads": options.num_heads,
        "num_key_value_heads": options.num_heads,
        "num_hidden_layers": options.num_layers,
        "ffn_dim": 2 * options.ffn_dim,
        "sliding_window": options.context,
        "rms_norm_eps": options.norm_eps,
    }
