"""The smallest model that has every part, and what makes it remember."""

SMALL_MODEL = {
    "name": "small-random",
    "lm": {
        "text_card": 64,
        "audio_card": 32,
        "num_codebooks": 3,
        "delays": [0, 0, 1, 1, 0, 1, 1],
        "temporal": {"dim": 32, "num_heads": 2, "num_layers": 2, "ffn_dim": 64, "context": 50},
        "depth": {"dim": 16, "num_heads": 2, "num_layers": 1, "ffn_dim": 32, "context": 3, "max_period": None},
        "fusion": {"shared": False, "gate": "sigmoid", "gate_hidden": 8},
    },
    "codec": {
        "kind": "spectral",
        "num_codebooks": 3,
        "codebook_size": 32,
        "codebook_dim": 8,
        "num_mels": 32,
        "dim": 32,
        "hidden": 24,
        "low_blocks": 1,
        "high_blocks": 1,
    },
    "vision": {
        "tower": "vit",
        "image_size_px": 32,
        "tower_dim": 16,
        "tower_args": {"num_layers": 1, "num_heads": 2, "ffn_dim": 32, "stem_strides": [4, 2], "stem_dims": [8]},
    },
}
MEMORY = {"memory_frames": 3, "age_buckets": 5, "summary_slots": 2, "summary_group": 2}

CLIP_TOWERS = {
    "vjepa2": {
        "model_type": "vjepa2", "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 16,
        "crop_size": 32, "frames_per_clip": 4, "tubelet_size": 2, "pred_hidden_size": 24,
        "pred_num_hidden_layers": 1, "pred_num_attention_heads": 2,
    },
    "videomae": {
        "model_type": "videomae", "hidden_size": 48, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "patch_size": 16, "image_size": 32, "num_frames": 4, "tubelet_size": 2,
    },
}  # fmt: skip


def clip_model(kind: str) -> dict:
    """The settings of a small model with memory, whose eyes are a clip encoder of transformers, or the small model's
    own with window blocks."""
    if kind == "vit":
        args = SMALL_MODEL["vision"]["tower_args"] | {"window_layers": 1, "window_dim": 4}
        windows = {"window_frames": 3, "window_fps": 2.0, "tower_args": args}
        return small_model(**MEMORY) | {"vision": SMALL_MODEL["vision"] | windows}
    vision = {"tower": f"hf:small-{kind}", "image_size_px": 32, "tower_dim": 48, "tower_args": CLIP_TOWERS[kind]}
    return small_model(**MEMORY) | {"vision": vision}


def small_model(**fusion: object) -> dict:
    """The settings of the small model, with changes to its cross-attention."""
    lm = SMALL_MODEL["lm"]
    return SMALL_MODEL | {"lm": lm | {"fusion": lm["fusion"] | fusion}}
