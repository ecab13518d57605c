"""`clips`: calls about clips, about pictures that change in the middle, and about still pictures, as files."""

import json
from pathlib import Path

import numpy as np
from pydantic import Field, model_validator

from data_prep.files import write_atomic
from data_prep.film import film
from data_prep.happenings import APART_SEC, random_clip
from data_prep.motion import Clip
from data_prep.motion_dialogue import TimedTurn, clip_turns, commentary
from data_prep.render import render_png
from data_prep.scenes import Kind, item_rng
from data_prep.world import Scene, check_split, random_scene
from data_prep.world_dialogue import small_talk_turn, visual_dialogue
from mmspeech.config import ConfigError, StrictModel, load_config

# Of a commentary the model must have said one sentence before the next event is over.
COMMENTARY_APART_SEC = (2.6, 3.2)
SETTINGS = "clips.json"


class ClipSettings(StrictModel):
    """What decides on the calls of a folder. `swap` and `still` are shares of all calls, `commentary` of the others."""

    seed: int = Field(0, ge=0)
    split: str = "train"
    size_px: int = 96
    commentary: float = Field(0.25, ge=0, le=1)
    swap: float = Field(0.15, ge=0, le=1)
    still: float = Field(0.1, ge=0, le=1)

    @model_validator(mode="after")
    def _shares_fit(self):
        if self.swap + self.still > 1:
            raise ValueError(f"shares of swaps {self.swap} and stills {self.still} are more than 1 together")
        return self


def make_clips(out: Path, settings: ClipSettings, *, count: int, shard: tuple[int, int] = (0, 1)) -> None:
    """Write `count` dialogues and what they are about; what is there is kept.

    NAME.dialogue.json; for a clip NAME.json and NAME.mp4; for pictures that are swapped NAME.json and NAME.png,
    NAME-1.json and NAME-1.png ...; for a still picture what `scenes` writes. `shard` (i, n): only every n-th, beginning
    with i. Raises ConfigError for an unknown split or size, and for a folder made with other settings.
    """
    from rich.progress import track

    check_split(settings.split)
    out.mkdir(parents=True, exist_ok=True)
    _claim(out, settings)
    for index in track(range(shard[0], count, shard[1]), description=f"clips {settings.split}"):
        path = out / f"{index:06d}.dialogue.json"
        if not path.is_file():  # written last: where it is, what it is about is too
            _make_one(path, settings, item_rng(settings.seed, settings.split, index, "clip"))


def _make_one(path: Path, settings: ClipSettings, rng: np.random.Generator) -> None:
    drawn, split, size_px = rng.random(), settings.split, settings.size_px
    if drawn < settings.swap:
        kind, turns, seen = _swap(rng, split, size_px)
    elif drawn < settings.swap + settings.still:
        kind, turns, seen = _still(rng, split, size_px)
    else:
        kind, turns, seen = _clip(rng, split, size_px, telling=rng.random() < settings.commentary)
    sights = _write_sights(path, seen)
    dialogue = {"kind": kind, "split": split, "seed": settings.seed, "turns": turns}
    write_atomic(path, json.dumps(dialogue if kind == "visual" else dialogue | {"sights": sights}).encode())


Seen = list[tuple[Clip | Scene, bytes]]  # what is shown, and the file of it


def clip_dialogue(clip: Clip, rng: np.random.Generator, *, telling: bool) -> list[TimedTurn]:
    """Questions about a clip, those that must be asked soon first; with `telling`, after the request to tell."""
    wanted, found = int(rng.integers(1, 4)) + (not telling), []
    for timed in clip_turns(clip, rng, tries=30):
        if len(found) < wanted and all(timed.turn.answer != other.turn.answer for other in found):
            found.append(timed)
    found.sort(key=lambda timed: (timed.latest_sec, timed.earliest_sec))
    return [commentary(clip, rng), *found] if telling else found


def _clip(rng: np.random.Generator, split: str, size_px: int, *, telling: bool) -> tuple[Kind, list[dict], Seen]:
    turns: list[dict] = []
    while not turns:  # now and then nothing can be asked without doubt
        clip = random_clip(rng, split=split, apart_sec=COMMENTARY_APART_SEC if telling else APART_SEC)
        turns = [timed.record(0) for timed in clip_dialogue(clip, rng, telling=telling)]
    if rng.random() < 0.15:
        turns.insert(int(rng.integers(2)) * len(turns), small_talk_turn(rng).record())
    return "clip", turns, [(clip, film(clip, size_px=size_px))]


def swap_dialogue(scenes: list[Scene], rng: np.random.Generator) -> list[dict]:
    """One to three turns about each picture in turn; what is asked of the later ones was often asked before."""
    turns: list[dict] = []
    for sight, scene in enumerate(scenes):
        turns += [
            turn.record() | {"sight": sight} for turn in visual_dialogue(scene, rng, num_turns=int(rng.integers(1, 4)))
        ]
    return turns


def _swap(rng: np.random.Generator, split: str, size_px: int) -> tuple[Kind, list[dict], Seen]:
    scenes = [random_scene(rng, split=split) for _ in range(2 + (rng.random() < 0.25))]
    return "swap", swap_dialogue(scenes, rng), [(scene, render_png(scene, size_px=size_px)) for scene in scenes]


def _still(rng: np.random.Generator, split: str, size_px: int) -> tuple[Kind, list[dict], Seen]:
    scene = random_scene(rng, split=split)
    turns = visual_dialogue(scene, rng, num_turns=int(rng.integers(4, 7)))
    return "visual", [turn.record() for turn in turns], [(scene, render_png(scene, size_px=size_px))]


def _write_sights(path: Path, seen: Seen) -> list[dict]:
    sights, name = [], path.name.partition(".")[0]
    for number, (thing, data) in enumerate(seen):
        kind, suffix = ("clip", "mp4") if isinstance(thing, Clip) else ("image", "png")
        stem = f"{name}-{number}" if number else name
        write_atomic(path.with_name(f"{stem}.{suffix}"), data)
        write_atomic(path.with_name(f"{stem}.json"), thing.model_dump_json(indent=1).encode())
        sights.append({"kind": kind, "path": f"{stem}.{suffix}"})
    return sights


def _claim(out: Path, settings: ClipSettings) -> None:
    note = out / SETTINGS
    if note.is_file() and (there := load_config(ClipSettings, note)) != settings:
        raise ConfigError(f"{out}: holds calls of {there}, not {settings}; choose another --out folder")
    write_atomic(note, settings.model_dump_json().encode())
