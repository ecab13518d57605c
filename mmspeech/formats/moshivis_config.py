"""Settings of Kyutai's MoshiVis layout (config.yaml) <-> ours."""

from typing import Any

from mmspeech.config import ModelConfig, VisionConfig, parse_config
from mmspeech.formats.groups import ConvertError
from mmspeech.lm.model import source_dim

# Their name of a norm -> (ours, eps). Only those called "real" divide by the mean square.
NORMS = {
    "layer_norm": ("layer", 1e-5),
    "layer_norm_f32": ("layer", 1e-8),
    "rms_norm": ("rms_variance", 1e-5),
    "rms_norm_f32": ("rms_variance", 1e-8),
    "real_rms_norm": ("rms", 1e-5),
    "real_rms_norm_f32": ("rms", 1e-8),
}
TEMPORAL_NORM = NORMS["real_rms_norm_f32"]  # fixed in their temporal transformer, whatever `norm` says
# Their encoder -> (tower, width, picture size).
ENCODERS = {
    "siglip_gemma2_448": ("hf:google/paligemma2-3b-pt-448", 1152, 448),
    "siglip_gemma2_224": ("hf:google/paligemma2-3b-pt-224", 1152, 224),
    "siglip_gemma2_896": ("hf:google/paligemma2-3b-pt-896", 1152, 896),
    "siglip_gemma1_224": ("hf:google/paligemma-3b-pt-224", 1152, 224),
    "siglip": ("hf:google/siglip-so400m-patch14-384", 1152, 384),
    "pixtral": ("hf:mistral-community/pixtral-12b", 1024, 1024),
}
# The SigLIP towers differ in picture size only; stated whole, they need nothing but their weights.
SIGLIP_SO400M = {
    "model_type": "siglip_vision_model", "hidden_size": 1152, "num_hidden_layers": 27, "num_attention_heads": 16,
    "intermediate_size": 4304, "patch_size": 14,
}  # fmt: skip
DELAYS = (0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1)
# Settings that decide the computation, with their values where a file leaves them out.
DEFAULTS: dict[str, Any] = {
    "dim": 4096, "num_heads": 32, "num_layers": 32, "hidden_scale": 4.125, "context": 3000, "max_period": 10000,
    "text_card": 32000, "padding_token_id": 3, "audio_card": 2048, "n_q": 16, "dep_q": 8, "delays": DELAYS,
    "norm": "rms_norm_f32", "depformer_dim": 1024, "depformer_dim_feedforward": 4224, "depformer_num_heads": 16,
    "depformer_num_layers": 6, "depformer_context": 8,
    "encoder_name": "pixtral", "norm_xa": "rms_norm", "num_crossattended_tokens": 0,
    "align_img_and_speech_tokens_dim": True, "xa_dim": None, "xa_layers": (), "xa_shared": True,
    "xa_gate_shared": False, "xa_gating": "tanh", "xa_conditional_gating": False,
}  # fmt: skip
# Settings we know only one value of; a file may state it.
FIXED: dict[str, tuple[Any, ...]] = {
    "causal": (True,), "gating": (True,), "activation": ("silu",), "positional_embedding": ("rope",),
    "depformer": (True,), "depformer_multi_linear": (True,), "depformer_gating": (True,),
    "depformer_activation": ("silu",), "depformer_pos_emb": ("none",), "depformer_weights_per_step": (True,),
    "num_extra_tokens": (0,), "xa_start": ("start", None), "xa_end": ("end", None), "xa_step": (1,),
    "xa_extended_layer_dims": (None,),
}  # fmt: skip
# Settings of their server and loader; they change nothing here.
IGNORED = {
    "add_boi_eoi", "token_insertion", "hf_repo", "image_size", "interpolation", "mimi_codec", "model", "norm_extra",
    "text_tokenizer", "xa_delay", "xa_extended_layer_embed_dims", "xa_extended_layer_p_norm",
}  # fmt: skip


def config_from_kyutai(data: dict[str, Any], *, source: str) -> ModelConfig:
    """Their settings (one level of nesting allowed) -> ours; raises ConvertError for what we cannot compute."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        flat.update(value if isinstance(value, dict) else {key: value})
    problems = [f"unknown key '{key}'" for key in flat if key not in DEFAULTS | FIXED and key not in IGNORED]
    for key, allowed in FIXED.items():
        if flat.get(key, allowed[0]) not in allowed:
            problems.append(f"{key} {flat[key]!r} is not supported (only {allowed[0]!r})")
    theirs = DEFAULTS | {key: value for key, value in flat.items() if key in DEFAULTS}
    if theirs["n_q"] % 2 or theirs["dep_q"] not in (theirs["n_q"] // 2, theirs["n_q"]):
        problems.append(f"n_q {theirs['n_q']} with dep_q {theirs['dep_q']}: expected n_q = 2 x dep_q, or the same")
    for key, known in (("norm", NORMS), ("norm_xa", {None: 0} | NORMS), ("encoder_name", ENCODERS)):
        if theirs[key] not in known:
            problems.append(f"{key} {theirs[key]!r}: expected one of {', '.join(map(str, known))}")
    if theirs["num_crossattended_tokens"] not in (0, -1):
        problems.append(f"num_crossattended_tokens {theirs['num_crossattended_tokens']}: expected -1 (all) or 0 (none)")
    if problems:
        raise ConvertError(f"{source}: " + "; ".join(problems))
    ours: dict[str, Any] = {"name": "moshivis", "lm": _lm_settings(theirs), "codec": {"kind": "mimi"}}
    ours["codec"]["num_codebooks"] = theirs["n_q"] // 2
    if theirs["num_crossattended_tokens"]:
        ours["lm"]["fusion"], ours["vision"] = _vision_settings(theirs)
    return parse_config(ModelConfig, ours, source=source)


def _lm_settings(theirs: dict[str, Any]) -> dict[str, Any]:
    delays = tuple(theirs["delays"])
    delays += (delays[-1],) * (1 + theirs["n_q"] - len(delays))
    dim, depth_dim = theirs["dim"], theirs["depformer_dim"]
    depth_norm, depth_eps = NORMS[theirs["norm"]]
    return {
        "text_card": theirs["text_card"],
        "audio_card": theirs["audio_card"],
        "num_codebooks": theirs["n_q"] // 2,
        "depth_codebooks": None if theirs["n_q"] == 2 * theirs["dep_q"] else theirs["dep_q"],
        "delays": delays,
        "text_pad_id": theirs["padding_token_id"],
        "temporal": {
            "dim": dim,
            "num_heads": theirs["num_heads"],
            "num_layers": theirs["num_layers"],
            "ffn_dim": inner_width(int(theirs["hidden_scale"] * dim), dim),
            "context": theirs["context"],
            "max_period": float(theirs["max_period"]),
            "norm": TEMPORAL_NORM[0],
            "norm_eps": TEMPORAL_NORM[1],
        },
        "depth": {
            "dim": depth_dim,
            "num_heads": theirs["depformer_num_heads"],
            "num_layers": theirs["depformer_num_layers"],
            "ffn_dim": inner_width(theirs["depformer_dim_feedforward"], depth_dim),
            "context": theirs["depformer_context"],
            "max_period": None,
            "norm": depth_norm,
            "norm_eps": depth_eps,
        },
    }


def _vision_settings(theirs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    tower, tower_dim, size_px = ENCODERS[theirs["encoder_name"]]
    width = theirs["xa_dim"]
    if width is None and not theirs["align_img_and_speech_tokens_dim"]:
        width = tower_dim
    gate = theirs["xa_gating"]
    if gate != "none" and not theirs["xa_conditional_gating"]:
        gate = f"scalar_{gate}"
    norm, eps = (None, 1e-5) if theirs["norm_xa"] is None else NORMS[theirs["norm_xa"]]
    fusion = {
        "layers": tuple(theirs["xa_layers"]) or None,
        "shared": theirs["xa_shared"],
        "gate": gate,
        "shared_gate": theirs["xa_gate_shared"],
        "source_dim": width,
    }
    vision = {
        "tower": tower,
        "tower_args": SIGLIP_SO400M | {"image_size": size_px} if tower_dim == SIGLIP_SO400M["hidden_size"] else {},
        "image_size_px": size_px,
        "tower_dim": tower_dim,
        "project": tower_dim != (theirs["dim"] if width is None else width),
        "projector_norm": norm,
        "projector_norm_eps": eps,
    }
    return fusion, vision


def config_to_kyutai(config: ModelConfig) -> dict[str, Any]:
    """Our settings -> theirs; raises ConvertError for what their layout cannot say."""
    lm, fusion = config.lm, config.lm.fusion
    _check_expressible(config)
    theirs: dict[str, Any] = {
        "dim": lm.temporal.dim,
        "num_heads": lm.temporal.num_heads,
        "num_layers": lm.temporal.num_layers,
        "hidden_scale": scale_for(lm.temporal.ffn_dim, lm.temporal.dim),
        "context": lm.temporal.context,
        "max_period": lm.temporal.max_period,
        "text_card": lm.text_card,
        "padding_token_id": lm.text_pad_id,
        "audio_card": lm.audio_card,
        "n_q": 2 * lm.num_codebooks,
        "dep_q": lm.depth_steps,
        "delays": list(lm.delays),
        "norm": norm_name(lm.depth.norm, lm.depth.norm_eps),
        "depformer_dim": lm.depth.dim,
        "depformer_dim_feedforward": feedforward_for(lm.depth.ffn_dim, lm.depth.dim),
        "depformer_num_heads": lm.depth.num_heads,
        "depformer_num_layers": lm.depth.num_layers,
        "depformer_context": lm.depth.context,
        "num_extra_tokens": 0,
        "norm_extra": None,
        "num_crossattended_tokens": 0 if fusion is None else -1,
    }
    if fusion is not None:
        vision = config.vision
        theirs |= {
            "encoder_name": _encoder_name(vision),
            "norm_xa": vision.projector_norm and norm_name(vision.projector_norm, vision.projector_norm_eps),
            "align_img_and_speech_tokens_dim": True,
            "xa_dim": fusion.source_dim,
            "xa_layers": list(fusion.layers or ()),
            "xa_shared": fusion.shared,
            "xa_gate_shared": fusion.shared_gate,
            "xa_gating": fusion.gate.removeprefix("scalar_"),
            "xa_conditional_gating": not fusion.gate.startswith("scalar_") and fusion.gate != "none",
            "xa_start": "start",
            "xa_end": "end",
        }
    return theirs


def _check_expressible(config: ModelConfig) -> None:
    lm, fusion, vision = config.lm, config.lm.fusion, config.vision
    problems = []
    if (lm.temporal.norm, lm.temporal.norm_eps) != TEMPORAL_NORM:
        problems.append(f"lm.temporal.norm {lm.temporal.norm} with eps {lm.temporal.norm_eps}")
    if lm.temporal.max_period is None or not lm.temporal.gated_ffn or lm.temporal.layer_scale is not None:
        problems.append("lm.temporal without rotary positions or gated_ffn, or with layer_scale")
    if fusion is not None:
        if fusion.gate_hidden not in (None, lm.temporal.dim // 8):
            problems.append(f"lm.fusion.gate_hidden {fusion.gate_hidden} (theirs is always dim / 8)")
        if fusion.gate_shift != -4.0:
            problems.append(f"lm.fusion.gate_shift {fusion.gate_shift} (theirs is always -4)")
        if fusion.memory_frames != 1 or fusion.summary_slots:
            problems.append(f"lm.fusion.memory_frames {fusion.memory_frames} (theirs see a single picture)")
        if fusion.age_buckets:
            problems.append(f"lm.fusion.age_buckets {fusion.age_buckets} (theirs know no time)")
        if vision.pool is not None:
            problems.append(f"vision.pool {vision.pool}")
        if vision.projector_hidden is not None:
            problems.append("vision.projector_hidden")
        if vision.project != (vision.tower_dim != source_dim(fusion, lm.temporal)):
            problems.append(f"vision.project {vision.project} with these widths")
    if problems:
        raise ConvertError("Kyutai's layout cannot hold " + "; ".join(problems))


def _encoder_name(vision: VisionConfig) -> str:
    """The encoder with this tower, else one as wide: their loader only needs the width."""
    for matches in (lambda tower, _: tower == vision.tower, lambda _, dim: dim == vision.tower_dim):
        for name, (tower, dim, _) in ENCODERS.items():
            if matches(tower, dim):
                return name
    raise ConvertError(f"Kyutai's layout cannot hold vision.tower_dim {vision.tower_dim}")


def norm_name(kind: str, eps: float) -> str:
    for name, value in NORMS.items():
        if value == (kind, eps):
            return name
    raise ConvertError(f"Kyutai's layout cannot hold norm {kind} with eps {eps}")


def inner_width(feedforward: int, dim: int) -> int:
    """Inner width of their gated feed-forward layer."""
    return 21 * dim // 8 if feedforward == 4 * dim else 2 * feedforward // 3


def feedforward_for(inner: int, dim: int) -> int:
    for feedforward in (-(-3 * inner // 2), -(-3 * inner // 2) + 1, 4 * dim):
        if inner_width(feedforward, dim) == inner:
            return feedforward
    raise ConvertError(f"Kyutai's layout cannot hold a feed-forward layer {inner} wide in a model {dim} wide")


def scale_for(inner: int, dim: int) -> float:
    feedforward = feedforward_for(inner, dim)
    exact = feedforward / dim
    return exact if int(exact * dim) == feedforward else (feedforward + 0.5) / dim
