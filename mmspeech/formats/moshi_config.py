"""Settings of the moshi package (config.json beside moshiko, moshika, PersonaPlex and fine-tuned ones) <-> ours."""

from typing import Any

from mmspeech.config import ModelConfig, parse_config
from mmspeech.formats.groups import ConvertError, Shape
from mmspeech.formats.moshivis_config import DELAYS, feedforward_for, inner_width, scale_for

# Their name of a norm -> (ours, eps): here every RMS norm divides by the mean square.
NORMS = {
    "layer_norm": ("layer", 1e-5),
    "layer_norm_f32": ("layer", 1e-8),
    "rms_norm": ("rms", 1e-5),
    "rms_norm_f32": ("rms", 1e-8),
    "real_rms_norm": ("rms", 1e-5),
    "real_rms_norm_f32": ("rms", 1e-8),
}
# What the released Moshi is, for repositories without a config.json.
RELEASED: dict[str, Any] = {
    "dim": 4096, "num_heads": 32, "num_layers": 32, "hidden_scale": 4.125, "context": 3000, "max_period": 10000,
    "text_card": 32000, "existing_text_padding_id": 3, "existing_text_end_padding_id": 0, "card": 2048,
    "n_q": 16, "dep_q": 8, "delays": DELAYS, "norm": "rms_norm_f32", "depformer_dim": 1024,
    "depformer_dim_feedforward": None, "depformer_num_heads": 16, "depformer_num_layers": 6, "text_card_out": None,
}  # fmt: skip
# Settings we know only these values of.
FIXED: dict[str, tuple[Any, ...]] = {
    "causal": (True,), "gating": ("silu", True), "positional_embedding": ("rope",), "layer_scale": (None,),
    "depformer_multi_linear": (True,), "depformer_weights_per_step": (True,), "depformer_pos_emb": ("none",),
    "depformer_gating": ("silu", True), "depformer_norm": (None,), "depformer_low_rank_embeddings": (None,),
    "depformer_layer_scale": (None,), "depformer_kv_repeat": (1,), "norm_emb": (False,), "bias_proj": (False,),
    "extra_heads_num_heads": (0,), "cross_attention": (False,), "kv_repeat": (1,), "quantize": (False,),
    "demux_second_stream": (False,), "demux_second_text_stream": (False,), "depformer": (True,),
    "conditioners": (None, {}), "fuser": (None, {}), "depformer_weights_per_step_schedule": (None,),
}  # fmt: skip
# Settings of their loader and generator; they change nothing here.
IGNORED = {
    "moshi_name", "mimi_name", "mimi_config_name", "tokenizer_name", "lora_name", "model_type", "lm_gen_config",
    "tts_config", "stt_config", "model_id", "lora", "lora_rank", "lora_scaling", "depformer_causal",
    "depformer_context", "depformer_max_period", "gradient_checkpointing", "extra_heads_dim", "version", "ft_embed",
}  # fmt: skip
# Widths of a head, by which sizes are told where no settings lie beside the weights.
HEAD_DIM, DEPTH_HEAD_DIM = 128, 64


def config_from_moshi(data: dict[str, Any], *, source: str, name: str = "moshi") -> ModelConfig:
    """Their settings -> ours; raises ConvertError naming what we cannot compute."""
    problems = [f"unknown key '{key}'" for key in data if key not in RELEASED | FIXED and key not in IGNORED]
    for key, allowed in FIXED.items():
        if data.get(key, allowed[0]) not in allowed:
            problems.append(f"{key} {data[key]!r} is not supported (only {allowed[0]!r})")
    theirs = RELEASED | {key: value for key, value in data.items() if key in RELEASED}
    if theirs["norm"] not in NORMS:
        problems.append(f"norm {theirs['norm']!r}: expected one of {', '.join(NORMS)}")
    if theirs["n_q"] % 2 or theirs["dep_q"] not in (theirs["n_q"] // 2, theirs["n_q"]):
        problems.append(
            f"n_q {theirs['n_q']} with dep_q {theirs['dep_q']}: not a duplex model (expected n_q = 2 x dep_q, or the "
            "same); speech to text (dep_q 0) is for `mmspeech transcribe`"
        )
    if theirs["text_card_out"] not in (None, theirs["text_card"]):
        problems.append(f"text_card_out {theirs['text_card_out']}: expected text_card {theirs['text_card']}")
    if problems:
        raise ConvertError(f"{source}: " + "; ".join(problems))
    codec = {"kind": "mimi", "num_codebooks": theirs["n_q"] // 2}
    return parse_config(ModelConfig, {"name": name, "lm": _lm_settings(theirs), "codec": codec}, source=source)


def _lm_settings(theirs: dict[str, Any]) -> dict[str, Any]:
    dim, depth_dim = theirs["dim"], theirs["depformer_dim"]
    norm, norm_eps = NORMS[theirs["norm"]]
    feedforward = theirs["depformer_dim_feedforward"] or int(theirs["hidden_scale"] * depth_dim)
    common = {"norm": norm, "norm_eps": norm_eps}
    return {
        "text_card": theirs["text_card"],
        "audio_card": theirs["card"],
        "num_codebooks": theirs["n_q"] // 2,
        "depth_codebooks": None if theirs["n_q"] == 2 * theirs["dep_q"] else theirs["dep_q"],
        "delays": tuple(theirs["delays"]),
        "text_pad_id": theirs["existing_text_padding_id"],
        "text_epad_id": theirs["existing_text_end_padding_id"],
        "temporal": {
            "dim": dim,
            "num_heads": theirs["num_heads"],
            "num_layers": theirs["num_layers"],
            "ffn_dim": inner_width(int(theirs["hidden_scale"] * dim), dim),
            "context": theirs["context"],
            "max_period": float(theirs["max_period"]),
            **common,
        },
        "depth": {
            "dim": depth_dim,
            "num_heads": theirs["depformer_num_heads"],
            "num_layers": theirs["depformer_num_layers"],
            "ffn_dim": inner_width(feedforward, depth_dim),
            "context": theirs["dep_q"],
            "max_period": None,
            **common,
        },
    }


def config_to_moshi(config: ModelConfig) -> dict[str, Any]:
    """Our settings -> theirs; raises ConvertError for what their package cannot build."""
    lm = config.lm
    norms = {value: name for name, value in reversed(NORMS.items()) if not name.startswith("real_")}
    kinds = {(part.norm, part.norm_eps) for part in (lm.temporal, lm.depth)}
    problems = []
    if lm.fusion is not None:
        problems.append("lm.fusion (the moshi package has no eyes; write MoshiVis's layout)")
    if len(kinds) > 1 or not kinds <= norms.keys():
        problems.append(f"norms {sorted(kinds)}: expected one of {sorted(norms)} in both transformers")
    if lm.temporal.max_period is None or not lm.temporal.gated_ffn or lm.temporal.layer_scale is not None:
        problems.append("lm.temporal without rotary positions or gated_ffn, or with layer_scale")
    if problems:
        raise ConvertError("the moshi package's layout cannot hold " + "; ".join(problems))
    return {
        "model_type": "moshi",
        "dim": lm.temporal.dim,
        "num_heads": lm.temporal.num_heads,
        "num_layers": lm.temporal.num_layers,
        "hidden_scale": scale_for(lm.temporal.ffn_dim, lm.temporal.dim),
        "context": lm.temporal.context,
        "max_period": lm.temporal.max_period,
        "text_card": lm.text_card,
        "existing_text_padding_id": lm.text_pad_id,
        "existing_text_end_padding_id": lm.text_epad_id,
        "card": lm.audio_card,
        "n_q": 2 * lm.num_codebooks,
        "dep_q": lm.depth_steps,
        "delays": list(lm.delays),
        "norm": norms[kinds.pop()],
        "depformer_dim": lm.depth.dim,
        "depformer_dim_feedforward": feedforward_for(lm.depth.ffn_dim, lm.depth.dim),
        "depformer_num_heads": lm.depth.num_heads,
        "depformer_num_layers": lm.depth.num_layers,
        "causal": True,
        "gating": "silu",
        "layer_scale": None,
        "positional_embedding": "rope",
        "depformer_multi_linear": True,
        "depformer_weights_per_step": True,
        "depformer_pos_emb": "none",
        "depformer_gating": "silu",
    }


def settings_of_shapes(shapes: dict[str, Shape]) -> dict[str, Any]:
    """Their settings, as far as the shapes of their tensors tell them; heads are as wide as the released model's."""

    def count(pattern: str) -> int:
        return next(n for n in range(len(shapes) + 1) if pattern.format(n) not in shapes)

    text_rows, dim = shapes["text_emb.weight"]
    depth_dim = shapes["depformer_text_emb.weight"][1]
    num_streams, steps = count("emb.{}.weight"), count("linears.{}.weight")
    inner, depth_inner = (shapes[f"{part}.linear_out.weight"][1] for part in _FEED_FORWARDS)
    delays = tuple(1 if n % (num_streams // 2) else 0 for n in range(num_streams))
    return {
        "dim": dim,
        "num_heads": max(dim // HEAD_DIM, 1),
        "num_layers": count("transformer.layers.{}.norm1.alpha"),
        "hidden_scale": scale_for(inner, dim),
        "text_card": text_rows - 1,
        "card": shapes["emb.0.weight"][0] - 1,
        "n_q": num_streams,
        "dep_q": steps,
        "delays": (0, *delays),
        "depformer_dim": depth_dim,
        "depformer_num_heads": max(depth_dim // DEPTH_HEAD_DIM, 1),
        "depformer_num_layers": count("depformer.layers.{}.norm1.alpha"),
        "depformer_dim_feedforward": feedforward_for(depth_inner, depth_dim),
    }


_FEED_FORWARDS = ("transformer.layers.0.gating", "depformer.layers.0.gating.0")
