"""Spoken questions about clips and about pictures that are swapped, one at a time, for data_prep/questions.py."""

import itertools
import json
from pathlib import Path

import numpy as np

from data_prep.clips import COMMENTARY_APART_SEC
from data_prep.effects import user_channel
from data_prep.files import write_atomic, write_wav
from data_prep.film import film
from data_prep.happenings import random_clip
from data_prep.motion import SEEN_FPS, Clip
from data_prep.motion_dialogue import GROUPS, TimedTurn, clip_turns, commentary
from data_prep.render import render_png
from data_prep.tts import Voice, random_voice
from data_prep.world import Scene, random_scene
from data_prep.world_dialogue import Turn, visual_turn
from data_prep.world_speak import FIRST_ROOM_SEC, Timing, Track, plain_text, say_question
from mmspeech.config import ConfigError
from mmspeech.frames import SAMPLE_RATE_HZ

UNSEEN = "_unseen"  # after the name of a set: held-out voices
ABOUT = (*GROUPS, "swap", "commentary")
CLIP_SETS = tuple(name + voices for name in ABOUT for voices in ("", UNSEEN))
LEAD_SEC = 0.5
FIRST_SEC = 0.8  # the least time for which a picture is seen before it is swapped
_TURNS_PER_SCENE = 300  # enough to have thought of everything that can be said of it
_TRIES = 1000


def make_clip_question(
    folder: Path, stem: str, *, name: str, rng: np.random.Generator, split: str, size_px: int, clean: bool
) -> dict:
    """Write a question's files (STEM.wav, STEM.mp4 or pictures) and return its line of the manifest, without an id.

    name: one of CLIP_SETS. Raises ConfigError when no question fits.
    """
    about = name.removesuffix(UNSEEN)
    voice = random_voice(rng, held_out=name.endswith(UNSEEN))
    timed, shown = _swap(rng, split) if about == "swap" else _clip(rng, split, about)
    track = Track()
    length_sec = say_question(track, timed.turn.question, voice, 0.0, rng, Timing(pause_share=0.0))
    true_sec = timed.true_sec(rng, room_sec=FIRST_ROOM_SEC)
    begin_sec = max(LEAD_SEC, true_sec - length_sec + (FIRST_SEC if about == "swap" else 0.0))
    end_sec = begin_sec + length_sec
    start_sec = round(end_sec - true_sec, 3)
    whole = Track()
    whole.join(track, begin_sec)
    line = write_question(folder / f"{stem}.wav", whole, timed.turn, voice, end_sec=end_sec, rng=rng, clean=clean)
    line |= _write_shown(folder, stem, shown, start_sec=start_sec, size_px=size_px)
    if timed.comments:
        line["events"] = [
            {"at_sec": round(start_sec + comment.event_sec, 3), "answers": list(comment.answers)}
            for comment in timed.comments
        ]
    return line


def write_question(
    wav: Path, track: Track, turn: Turn, voice: Voice, *, end_sec: float, rng: np.random.Generator, clean: bool
) -> dict:
    """Write the caller's sound, in which the question of `turn` ends at `end_sec`; returns its part of the line."""
    write_wav(wav, user_channel(track.wave(int((end_sec + 0.2) * SAMPLE_RATE_HZ)), rng, clean=clean))
    return {
        "audio": f"{wav.parent.name}/{wav.name}",
        "question": plain_text(turn.question),
        "answers": list(turn.answers),
        "reply": turn.answer,
        "kind": turn.kind,
        "voice": voice.key,
        "question_end_sec": round(end_sec, 3),
    }


def _clip(rng: np.random.Generator, split: str, about: str) -> tuple[TimedTurn, Clip]:
    if about == "commentary":
        clip = random_clip(rng, split=split, apart_sec=COMMENTARY_APART_SEC)
        return commentary(clip, rng), clip
    for _ in range(_TRIES):
        clip = random_clip(rng, split=split)
        for timed in itertools.islice(clip_turns(clip, rng, groups=(about,), tries=20), 1):
            # What was true from the first frame on does not tell whether the newest ones were looked at.
            if about != "present" or not is_true_of(clip.start, timed.turn, rng):
                return timed, clip
    raise ConfigError(f"no question about {about} in {_TRIES} clips; choose another --seed")


def _swap(rng: np.random.Generator, split: str) -> tuple[TimedTurn, list[Scene]]:
    """A question about the second of two pictures, which ends half a second or more after it has come."""
    for _ in range(_TRIES):
        first, second = (random_scene(rng, split=split) for _ in range(2))
        turn = visual_turn(second, rng)
        if not is_true_of(first, turn, rng):
            return TimedTurn(turn, 0.5), [first, second]
    raise ConfigError(f"no question that tells two pictures apart in {_TRIES} tries; choose another --seed")


def is_true_of(scene: Scene, turn: Turn, rng: np.random.Generator) -> bool:
    """Whether the answer may be given to a question of that kind about another scene."""
    said = (visual_turn(scene, rng) for _ in range(_TURNS_PER_SCENE))
    return any(other.kind == turn.kind and other.answer == turn.answer for other in said)


def _write_shown(folder: Path, stem: str, shown: Clip | list[Scene], *, start_sec: float, size_px: int) -> dict:
    """The files of what is shown, and of what it means; returns the keys of the line."""
    if isinstance(shown, Clip):
        write_atomic(folder / f"{stem}.mp4", film(shown, size_px=size_px))
        write_atomic(folder / f"{stem}.clip.json", shown.model_dump_json().encode())
        return {"video": f"{folder.name}/{stem}.mp4", "fps": SEEN_FPS, "start_sec": start_sec}
    for number, scene in enumerate(shown):
        write_atomic(folder / f"{stem}-{number}.png", render_png(scene, size_px=size_px))
        write_atomic(folder / f"{stem}-{number}.scene.json", scene.model_dump_json().encode())
    pairs = [[0.0, f"{stem}-0.png"], [start_sec, f"{stem}-1.png"]]
    write_atomic(folder / f"{stem}.pairs.json", json.dumps(pairs).encode())
    return {"video": f"{folder.name}/{stem}.pairs.json"}
