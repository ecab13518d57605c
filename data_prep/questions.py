"""`questions`: spoken questions with known answers, as manifests that `python -m eval` reads."""

import json
from pathlib import Path

import numpy as np

from data_prep.clip_questions import CLIP_SETS, LEAD_SEC, make_clip_question, write_question
from data_prep.files import write_atomic
from data_prep.model_voice import model_says
from data_prep.render import render_png
from data_prep.scenes import item_rng
from data_prep.tts import random_voice, require_synthesisers
from data_prep.world import Scene, random_scene
from data_prep.world_dialogue import Turn, small_talk_turn, visual_turn
from data_prep.world_speak import Timing, Track, plain_text, say_question
from mmspeech.config import ConfigError, read_mapping

STILL_SETS = ("known", "unseen", "talk", "pause", "barge")
SETS = (*STILL_SETS, *CLIP_SETS)
INTERRUPT_AFTER_SEC = 1.3  # of the first question's end: the model is in the middle of its answer
LONG_ANSWER_SEC = 1.9


def make_questions(
    out: Path, *, name: str, count: int, seed: int, split: str, size_px: int, clean: bool = False
) -> Path:
    """Write `count` questions (wav and picture) to out/NAME/ and the manifest out/NAME.jsonl last; returns it.

    known: voices of training; unseen: held-out voices; talk: small talk, no picture; pause: a pause inside every
    question; barge: a second question that interrupts the answer to the first. About clips: motion, change, present
    (what is there now), past, commentary; swap: the picture changes before or within the question; each of these also
    as NAME_unseen. `clean`: no room, noise or telephone.
    A question that is there is kept, so this can be killed and run again.
    None is left out: raises ConfigError when one cannot be made, when the folder holds questions of other settings or
    for an unknown set or split, FileNotFoundError when a synthesiser is not installed.
    """
    from rich.progress import track

    if name not in SETS:
        raise ConfigError(f"question set {name!r}: expected one of {', '.join(SETS)}")
    require_synthesisers()
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    manifest = out / f"{name}.jsonl"
    settings = {"seed": seed, "split": split, "size_px": size_px, "clean": clean}
    lines = []
    for index in track(range(count), description=f"questions {name}"):
        stem, rng = f"{name}_{index:05d}", item_rng(seed, split, index, f"question {name}")
        try:
            line = _made_before(folder / f"{stem}.json", settings)
            if line is None:
                make = make_clip_question if name in CLIP_SETS else _make_one
                line = make(folder, stem, name=name, rng=rng, split=split, size_px=size_px, clean=clean)
                line = {"id": stem} | line
                write_atomic(folder / f"{stem}.json", json.dumps({"settings": settings, "line": line}).encode())
            lines.append(line)
        except ConfigError as error:
            raise ConfigError(f"{manifest}: not written, question {stem} cannot be made: {error}") from error
    write_atomic(manifest, "".join(json.dumps(line) + "\n" for line in lines).encode())
    return manifest


def _made_before(record: Path, settings: dict) -> dict | None:
    """The line of a question that is there already."""
    if not record.is_file():
        return None
    made = read_mapping(record)
    if made.get("settings") != settings:
        raise ConfigError(f"{record} was made with {made.get('settings')}, not {settings}; choose another --out folder")
    return made["line"]


def _make_one(
    folder: Path, stem: str, *, name: str, rng: np.random.Generator, split: str, size_px: int, clean: bool
) -> dict:
    scene = random_scene(rng, split=split)
    turns = _turns(scene, name, rng)
    voice = random_voice(rng, held_out=name == "unseen")
    timing = Timing(pause_share=1.0 if name == "pause" else 0.0)
    track, end_sec, starts = Track(), LEAD_SEC, []
    for number, turn in enumerate(turns):
        starts.append(end_sec + (INTERRUPT_AFTER_SEC if number else 0.0))
        end_sec = say_question(track, turn.question, voice, starts[-1], rng, timing)
    line = write_question(folder / f"{stem}.wav", track, turns[-1], voice, end_sec=end_sec, rng=rng, clean=clean)
    line["image"] = None if name == "talk" else f"{name}/{stem}.png"
    if name != "talk":
        write_atomic(folder / f"{stem}.png", render_png(scene, size_px=size_px))
    if len(turns) > 1:
        line |= {"barge_start_sec": round(starts[-1], 3), "first_question": plain_text(turns[0].question)}
    return line


def _turns(scene: Scene, name: str, rng: np.random.Generator) -> list[Turn]:
    """The questions of one line: one, or for `barge` one with a long answer and the one that interrupts it."""
    if name == "talk":
        return [small_talk_turn(rng)]
    turn = visual_turn(scene, rng)
    while name == "pause" and "|" not in turn.question.split():
        turn = visual_turn(scene, rng)
    if name != "barge":
        return [turn]
    for _ in range(1000):
        first = visual_turn(scene, rng) if rng.random() < 0.7 else small_talk_turn(rng)
        if model_says(first.answer).duration_sec >= LONG_ANSWER_SEC and first.question != turn.question:
            return [first, turn]
    raise ConfigError("no question with a long answer in 1000 tries; choose another --seed")
