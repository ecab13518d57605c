"""`scenes`: pictures, scene JSON and dialogues about them, as files."""

import json
from pathlib import Path
from typing import Literal

import numpy as np
from rich.progress import track

from data_prep.dialogue import blind_dialogue, visual_dialogue
from data_prep.render import render_png
from data_prep.world import SPLITS, random_scene
from mmspeech.config import ConfigError

Kind = Literal["visual", "blind"]


def item_rng(seed: int, split: str, index: int, purpose: str) -> np.random.Generator:
    """Randomness of one item, the same whatever else is made and in which order."""
    return np.random.default_rng([seed, SPLITS.index(split), index, *purpose.encode()])


def write_atomic(path: Path, data: bytes) -> None:
    """Write through a temporary file, so that a file that is there is whole."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(data)
    temporary.replace(path)


def make_scenes(
    out: Path, *, count: int, seed: int, split: str, size_px: int, blind_share: float, shard: tuple[int, int] = (0, 1)
) -> None:
    """Write NAME.png, NAME.json (the scene) and NAME.dialogue.json for `count` calls; what is there is kept.

    A share of `blind_share` of the calls has no picture in it; its scene only lends the words of the dialogue.
    Raises ConfigError for an unknown split.
    """
    if split not in SPLITS:
        raise ConfigError(f"split {split!r}: expected one of {', '.join(SPLITS)}")
    out.mkdir(parents=True, exist_ok=True)
    for index in track(range(shard[0], count, shard[1]), description=f"scenes {split}"):
        path = out / f"{index:06d}.dialogue.json"
        if path.is_file():
            continue
        rng = item_rng(seed, split, index, "scene")
        scene = random_scene(rng, split=split)
        kind: Kind = "blind" if rng.random() < blind_share else "visual"
        make = blind_dialogue if kind == "blind" else visual_dialogue
        turns = make(scene, rng, num_turns=int(rng.integers(4, 7)))
        write_atomic(out / f"{index:06d}.png", render_png(scene, size_px=size_px))
        write_atomic(out / f"{index:06d}.json", scene.model_dump_json(indent=1).encode())
        dialogue = {"kind": kind, "split": split, "seed": seed, "turns": [turn.record() for turn in turns]}
        write_atomic(path, json.dumps(dialogue).encode())
