"""The moshi package's layout of text to speech (kyutai/tts-1.6b-en_fr, tts-0.75b-en-public) -> our Speaker."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmspeech.audio.codec import Codec
from mmspeech.checkpoint import build_empty, load_weights, read_tensors
from mmspeech.config import parse_config, read_mapping
from mmspeech.formats.groups import ConvertError, Group, import_tensors, same, weights_file
from mmspeech.formats.kyutai_keys import norm_groups, temporal_layer_groups
from mmspeech.formats.mimi import MIMI, load_mimi
from mmspeech.formats.moshi import CONFIG, WEIGHTS, join_projections
from mmspeech.formats.moshi_config import FIXED, IGNORED, NORMS, RELEASED
from mmspeech.formats.moshivis_config import inner_width
from mmspeech.frames import FRAME_RATE_HZ
from mmspeech.lm.speaker import Speaker, SpeakerConfig
from mmspeech.tokens.text import TextTokenizer

# Settings that a speaker may have otherwise than a duplex model.
_FREE = {
    "cross_attention", "conditioners", "fuser", "demux_second_stream", "demux_second_text_stream", "depformer_norm",
    "depformer_low_rank_embeddings", "depformer_weights_per_step_schedule",
}  # fmt: skip
_FUSER = {"cross_attention_pos_emb", "cross_attention_pos_emb_scale", "sum", "prepend", "cross"}


@dataclass
class SpeakerBundle:
    """Everything that speaking needs. voice_suffix: what the names of this model's voice files end with."""

    model: Speaker
    codec: Codec
    tokenizer: TextTokenizer
    voice_suffix: str


def load_speaker(
    path: Path, *, num_codebooks: int | None = None, device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> SpeakerBundle:  # fmt: skip
    """Load a directory of theirs; the codec for `num_codebooks` (None: all). Raises ConvertError or CheckpointError."""
    if not (path / CONFIG).is_file():
        raise ConvertError(f"{path}: no {CONFIG}; expected a text to speech model as the moshi package loads it")
    data = read_mapping(path / CONFIG)
    model = read_speaker(path, data, device=device, dtype=dtype)
    count = model.config.num_codebooks if num_codebooks is None else num_codebooks
    if not 1 < count <= model.config.num_codebooks:
        raise ConvertError(f"{count} codebooks: expected 2 to {model.config.num_codebooks}, which {path} makes")
    told, found = data.get("tokenizer_name"), sorted(path.glob("*.model"))
    tokenizer = path / told if told else (found or [path / "tokenizer.model"])[0]
    codec_config = model.config.codec.model_copy(update={"num_codebooks": count})
    codec = load_mimi(path / (data.get("mimi_name") or MIMI), codec_config).to(device)
    sign = data.get("model_id") or {}
    suffix = f".{sign['sig']}@{sign['epoch']}.safetensors" if sign.keys() >= {"sig", "epoch"} else ".safetensors"
    return SpeakerBundle(model, codec, TextTokenizer(tokenizer), suffix)


def read_speaker(
    path: Path, data: dict[str, Any], *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> Speaker:
    """The language model alone; data: what config.json holds."""
    config = speaker_config(data, source=str(path / CONFIG))
    file = weights_file(path, data.get("moshi_name") or WEIGHTS)
    model = build_empty(lambda: Speaker(config))
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    tensors = join_projections(read_tensors(file, dtype=dtype, device=device))
    if config.two_text_streams:  # their class makes it though nothing reads it
        tensors.pop("depformer_text_emb.low_rank.weight", None)
    load_weights(model, import_tensors(tensors, speaker_groups(config), shapes, source=file), source=file)
    model.conditions.float()
    return model.to(device).eval()


def speaker_config(data: dict[str, Any], *, source: str) -> SpeakerConfig:
    """Their settings -> ours; raises ConvertError for what we cannot compute, and for models that listen."""
    theirs = RELEASED | {key: value for key, value in data.items() if key in RELEASED}
    if "tts_config" not in data or theirs["dep_q"] != theirs["n_q"]:
        raise ConvertError(
            f"{source}: not text to speech (no tts_config, or dep_q {theirs['dep_q']} of n_q {theirs['n_q']}); "
            "`mmspeech transcribe` is for speech to text, `convert` and `talk` for duplex models"
        )
    if problems := _problems(data, theirs):
        raise ConvertError(f"{source}: " + "; ".join(problems))
    return parse_config(SpeakerConfig, _settings(data, theirs), source=source)


def _problems(data: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    problems = [
        f"{key} {data[key]!r} is not supported (only {allowed[0]!r})"
        for key, allowed in FIXED.items()
        if key not in _FREE and data.get(key, allowed[0]) not in allowed
    ]
    known = RELEASED.keys() | FIXED.keys() | IGNORED | {"conditioners", "fuser"}
    problems += [f"unknown key '{key}'" for key in data if key not in known]
    fuser = data.get("fuser") or {}
    problems += [f"unknown key 'fuser.{key}'" for key in fuser if key not in _FUSER]
    if fuser.get("prepend"):
        problems.append(f"fuser.prepend {fuser['prepend']}: conditions can be summed or looked at")
    if data["tts_config"].get("multistream"):
        problems.append("tts_config.multistream: a model of two voices in separate streams")
    if theirs["norm"] not in NORMS or data.get("depformer_norm") not in (None, *NORMS):
        problems.append(
            f"norms {theirs['norm']!r}, {data.get('depformer_norm')!r}: expected some of {', '.join(NORMS)}"
        )
    if theirs["delays"][0]:
        problems.append(f"delays {theirs['delays']}: expected none of the text")
    if isinstance(theirs["depformer_dim_feedforward"], list):
        problems.append("depformer_dim_feedforward of different sizes")
    for name, part in (data.get("conditioners") or {}).items():
        settings = part.get(part.get("type"), {})
        if part.get("type") not in ("lut", "tensor") or (part["type"] == "lut" and not settings.get("possible_values")):
            problems.append(f"conditioners.{name}: expected a tensor, or a lut with possible_values")
    return problems


def _settings(data: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    dim, depth_dim, told = theirs["dim"], theirs["depformer_dim"], data["tts_config"]
    norm, norm_eps = NORMS[theirs["norm"]]
    common = {"norm": norm, "norm_eps": norm_eps}
    inner = theirs["depformer_dim_feedforward"] or int(theirs["hidden_scale"] * depth_dim)
    out_norm = data.get("depformer_norm")
    return {
        "text_card": theirs["text_card"],
        "text_out_card": theirs["text_card_out"] or theirs["text_card"],
        "audio_card": theirs["card"],
        "num_codebooks": theirs["n_q"],
        "delays": theirs["delays"][1:],
        "audio_delay_frames": int(told["audio_delay"] * FRAME_RATE_HZ),
        "lookahead_words": told.get("second_stream_ahead", 0),
        "two_text_streams": bool(data.get("demux_second_stream") or data.get("demux_second_text_stream")),
        "temporal": {
            "dim": dim, "num_heads": theirs["num_heads"], "num_layers": theirs["num_layers"],
            "ffn_dim": inner_width(int(theirs["hidden_scale"] * dim), dim), "context": theirs["context"],
            "max_period": float(theirs["max_period"]), **common,
        },
        "depth": {
            "dim": depth_dim, "num_heads": theirs["depformer_num_heads"], "num_layers": theirs["depformer_num_layers"],
            "ffn_dim": inner_width(inner, depth_dim), "context": theirs["dep_q"], "max_period": None, **common,
        },
        "depth_schedule": data.get("depformer_weights_per_step_schedule"),
        "depth_rank": data.get("depformer_low_rank_embeddings"),
        "depth_out_norm": None if out_norm is None else NORMS[out_norm],
        "conditions": _conditions(data.get("conditioners") or {}, data.get("fuser") or {}),
        "codec": {"kind": "mimi", "num_codebooks": theirs["n_q"], "codebook_size": theirs["card"]},
    }  # fmt: skip


def _conditions(conditioners: dict[str, Any], fuser: dict[str, Any]) -> dict[str, Any]:
    parts = {}
    for name, part in conditioners.items():
        settings = part[part["type"]]
        labels = (
            {"num_rows": settings["n_bins"], "values": settings["possible_values"]} if part["type"] == "lut" else {}
        )
        parts[name] = {"dim": settings["dim"], **labels}
    scale = fuser.get("cross_attention_pos_emb_scale", 1.0) if fuser.get("cross_attention_pos_emb") else 0.0
    return {
        "parts": parts, "summed": fuser.get("sum", ()), "looked_at": fuser.get("cross", ()), "position_scale": scale,
    }  # fmt: skip


def speaker_groups(config: SpeakerConfig) -> Iterator[Group]:
    """Every tensor of a speaker and its names in the moshi package's files."""
    options, dim, count = config.temporal, config.temporal.dim, config.num_codebooks
    yield from _embedding("text_emb", "text_emb", config.text_card + 1, dim, pairs=config.two_text_streams)
    yield Group(("audio_emb.weight",), {f"emb.{k}.weight": (config.audio_card + 1, dim) for k in range(count)})
    yield from norm_groups("out_norm", "out_norm", dim, options.norm)
    yield same("text_linear.weight", "text_linear.weight", (config.text_out_card, dim))
    yield from temporal_layer_groups(options, ours="transformer.layers", theirs="transformer.layers")
    if config.conditions.looked_at:
        for n in range(options.num_layers):
            yield from _look(f"looks.{n}", f"transformer.layers.{n}", dim)
    yield from _depth(config)
    for name, part in config.conditions.parts.items():
        ours, theirs = f"conditions.parts.{name}", f"condition_provider.conditioners.{name}"
        yield same(f"{ours}.padding", f"{theirs}.learnt_padding", (1, 1, dim))
        yield same(f"{ours}.proj.weight", f"{theirs}.output_proj.weight", (dim, part.dim))
        if part.values:
            yield same(f"{ours}.table.weight", f"{theirs}.embed.weight", (part.num_rows + 1, part.dim))


def _embedding(
    ours: str, theirs: str, card: int, dim: int, *, rank: int | None = None, pairs: bool = False
) -> Iterator[Group]:
    yield same(f"{ours}.weight", f"{theirs}.weight", (card, rank or dim))
    if pairs:
        yield same(f"{ours}.first.weight", f"{theirs}.out1.weight", (dim, rank or dim))
        yield same(f"{ours}.second.weight", f"{theirs}.out2.weight", (dim, rank or dim))
    elif rank:
        yield same(f"{ours}.first.weight", f"{theirs}.low_rank.weight", (dim, rank))


def _look(ours: str, theirs: str, dim: int) -> Iterator[Group]:
    yield from norm_groups(f"{ours}.norm", f"{theirs}.norm_cross", dim, "layer")
    both = (f"{ours}.attn.q_proj.weight", f"{ours}.attn.kv_proj.weight")
    yield Group(both, {f"{theirs}.cross_attention.in_proj_weight": (3 * dim, dim)})
    yield same(f"{ours}.attn.out_proj.weight", f"{theirs}.cross_attention.out_proj.weight", (dim, dim))


def _depth(config: SpeakerConfig) -> Iterator[Group]:
    depth, steps = config.depth, config.num_codebooks
    dim, inner, norm = depth.dim, depth.ffn_dim, depth.norm
    count = steps if config.depth_schedule is None else max(config.depth_schedule) + 1
    yield Group(
        ("depth.hidden_in.weight",), {f"depformer_in.{k}.weight": (dim, config.temporal.dim) for k in range(count)}
    )
    yield from _embedding(
        "depth.text_emb", "depformer_text_emb", config.text_card + 1, dim, rank=config.depth_rank,
        pairs=config.two_text_streams,
    )  # fmt: skip
    for k in range(steps - 1):
        table = (f"depth.audio_emb.{k}", f"depformer_emb.{k}")
        yield from _embedding(*table, config.audio_card + 1, dim, rank=config.depth_rank)
    for n in range(depth.num_layers):
        ours, theirs = f"depth.layers.{n}", f"depformer.layers.{n}"
        yield from norm_groups(f"{ours}.norm1", f"{theirs}.norm1", dim, norm)
        yield from norm_groups(f"{ours}.norm2", f"{theirs}.norm2", dim, norm)
        yield same(f"{ours}.in_proj.weight", f"{theirs}.self_attn.in_proj_weight", (count * 3 * dim, dim))
        yield same(f"{ours}.out_proj.weight", f"{theirs}.self_attn.out_proj.weight", (count * dim, dim))
        gating = f"{theirs}.gating"
        ins = {f"{gating}.{k}.linear_in.weight": (2 * inner, dim) for k in range(count)}
        outs = {f"{gating}.{k}.linear_out.weight": (dim, inner) for k in range(count)}
        yield Group((f"{ours}.ffn_in.weight",), ins)
        yield Group((f"{ours}.ffn_out.weight",), outs)
    if config.depth_out_norm is not None:
        for k in range(steps):
            yield from norm_groups(f"depth.out_norms.{k}", f"depformer_norms.{k}", dim, config.depth_out_norm[0])
    heads = {f"linears.{k}.weight": (config.audio_card, dim) for k in range(steps)}
    yield Group(("depth.audio_linear.weight",), heads)
