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


def small_model(**fusion: object) -> dict:
    """The settings of the small model, with changes to its cross-attention."""
    lm = SMALL_MODEL["lm"]
    return SMALL_MODEL | {"lm": lm | {"fusion": lm["fusion"] | fusion}}
