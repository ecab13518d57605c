"""`scenes`: pictures, scene JSON and dialogues about them, as files."""

import json
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError
from pydantic import Field
from rich.progress import track

from data_prep.files import write_atomic
from data_prep.render import render_png
from data_prep.world import SPLITS, random_scene
from data_prep.world_dialogue import blind_dialogue, visual_dialogue
from mmspeech.config import ConfigError, StrictModel, parse_config

Kind = Literal["visual", "blind", "clip", "swap"]


class CommentRecord(StrictModel):
    """What the model says of its own accord; see data_prep.motion_dialogue.Comment."""

    text: str = Field(min_length=1)
    answers: tuple[str, ...] = Field(min_length=1)
    event_sec: float


class TurnRecord(StrictModel):
    """One exchange; in `question` a "|" marks where a speaker may pause. See data_prep.world_dialogue.Turn.

    `sight`: which of the dialogue's `sights` it is about (None: it does not matter). `when`: between which times of
    that clip (None: ever after) its question may end; see data_prep.motion_dialogue.TimedTurn.
    """

    kind: str
    question: str = Field(min_length=1)
    answer: str = Field(min_length=1)
    answers: tuple[str, ...] = Field(min_length=1)
    sight: int | None = Field(None, ge=0)
    when: tuple[float, float | None] | None = None
    comments: tuple[CommentRecord, ...] = ()


class SightRecord(StrictModel):
    """What is shown in a call: a file beside the dialogue."""

    kind: Literal["image", "clip"]
    path: str = Field(min_length=1)


class DialogueRecord(StrictModel):
    """What NAME.dialogue.json holds: the turns of a call, and what is shown in it.

    kind: visual (the picture NAME.png from the start), blind (nothing), clip (a clip is among the `sights`) or swap
    (several pictures, one after the other).
    """

    kind: Kind
    split: Literal["train", "valid", "test"]
    seed: int
    turns: tuple[TurnRecord, ...] = Field(min_length=1)
    sights: tuple[SightRecord, ...] = ()


def load_dialogue(path: Path) -> DialogueRecord:
    """Read a NAME.dialogue.json. Raises ConfigError with one line naming the file and its faults."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(
            f"{path}: not JSON ({error}); delete it and run `python -m data_prep scenes` again"
        ) from error
    return parse_config(DialogueRecord, data, source=str(path))


def item_rng(seed: int, split: str, index: int, purpose: str) -> np.random.Generator:
    """Randomness of one item, the same whatever else is made and in which order."""
    return np.random.default_rng([seed, SPLITS.index(split), index, *purpose.encode()])


def make_scenes(
    out: Path, *, count: int, seed: int, split: str, size_px: int, blind_share: float, shard: tuple[int, int] = (0, 1)
) -> None:
    """Write NAME.png, NAME.json (the scene) and NAME.dialogue.json for `count` calls; what is there is kept.

    A share of `blind_share` of the calls has no picture in it; its scene only lends the words of the dialogue.
    `shard` (i, n): only every n-th call, beginning with i. Raises ConfigError for an unknown split, and for a folder
    with scenes of another seed, split or size.
    """
    if split not in SPLITS:
        raise ConfigError(f"split {split!r}: expected one of {', '.join(SPLITS)}")
    out.mkdir(parents=True, exist_ok=True)
    for index in track(range(shard[0], count, shard[1]), description=f"scenes {split}"):
        path, scene_path, picture_path = (out / f"{index:06d}{end}" for end in (".dialogue.json", ".json", ".png"))
        if path.is_file() and scene_path.is_file() and picture_path.is_file():
            _refuse_others(path, picture_path, seed=seed, split=split, size_px=size_px)
            continue
        rng = item_rng(seed, split, index, "scene")
        scene = random_scene(rng, split=split)
        kind: Kind = "blind" if rng.random() < blind_share else "visual"
        make = blind_dialogue if kind == "blind" else visual_dialogue
        turns = make(scene, rng, num_turns=int(rng.integers(4, 7)))
        write_atomic(picture_path, render_png(scene, size_px=size_px))
        write_atomic(scene_path, scene.model_dump_json(indent=1).encode())
        dialogue = {"kind": kind, "split": split, "seed": seed, "turns": [turn.record() for turn in turns]}
        write_atomic(path, json.dumps(dialogue).encode())


def _refuse_others(dialogue: Path, picture: Path, *, seed: int, split: str, size_px: int) -> None:
    """What is there must be what this call would make."""
    there = load_dialogue(dialogue)
    try:
        with Image.open(picture) as opened:
            width_px = opened.width
    except UnidentifiedImageError as error:
        raise ConfigError(f"{picture}: not a picture; delete it and run this again") from error
    if (there.seed, there.split, width_px) != (seed, split, size_px):
        got = f"seed {there.seed}, split {there.split}, {width_px} px"
        wanted = f"seed {seed}, split {split}, {size_px} px"
        raise ConfigError(f"{dialogue.parent}: holds scenes of {got}, not {wanted}; choose another --out folder")
