"""`remix`: voiced questions and answers put together anew, under pictures and clips of which they are true.

A question goes with many answers and an answer with many scenes: "on the left is a red star". So sets of voiced calls
lend their questions and their answers (codes and words, cut in the silence around them) to new scenes, and the eyes
learn from many more pictures than were spoken about; no voice gives the answer away. Clips begin such that what is said
is true when it is said. Only turns of the rendered world can be lent: what they are about is known from their words.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from pydantic import Field, model_validator

from data_prep.bank import Bank, Piece
from data_prep.clips import COMMENTARY_APART_SEC
from data_prep.dialogue import visual_turn
from data_prep.film import film
from data_prep.happenings import random_clip
from data_prep.motion import SEEN_FPS, Clip, seen_sec
from data_prep.motion_dialogue import TimedTurn, clip_turns, commentary
from data_prep.render import render_png
from data_prep.scenes import item_rng
from data_prep.speak import COMMENT_WITHIN_SEC, FIRST_ROOM_SEC, Timing
from data_prep.world import Scene, random_scene
from mmspeech.config import StrictModel
from mmspeech.data.shards import ShardSetInfo, write_shards
from mmspeech.frames import frames_to_seconds, seconds_to_frames
from mmspeech.types import Sample, Visual

TRIES = 60  # turns that are thought up for a call; one that nobody voiced is passed over
CLIP_TRIES = 8  # clips that are thought up for a call
EARLY_SHARE = 0.5  # of the calls about clips: the call begins after its clip, as when training takes a part of a call


class RemixSettings(StrictModel):
    """What decides on the calls of a remix.

    `num_turns`: of a call about a still picture, at most. `clips` and `swaps` are shares of all calls (a swap: one turn
    each about two pictures), `commentary` of those about clips.
    """

    seed: int = Field(0, ge=0)
    split: str = "train"
    size_px: int = 96
    num_turns: int = Field(3, ge=1)
    clips: float = Field(0.0, ge=0, le=1)
    swaps: float = Field(0.0, ge=0, le=1)
    commentary: float = Field(0.2, ge=0, le=1)

    @model_validator(mode="after")
    def _shares_fit(self):
        if self.clips + self.swaps > 1:
            raise ValueError(f"shares of clips {self.clips} and swaps {self.swaps} are more than 1 together")
        return self


def make_remix(out: Path, settings: RemixSettings, *, like: Sequence[Path], count: int) -> ShardSetInfo:
    """Write a set of `count` calls of turns voiced in the sets `like`, each about scenes or a clip of its own.

    Its codec stamp is that of `like`. A call for which nothing was voiced is left out. Raises ConfigError for sets
    without turns or of different codecs.
    """
    from rich.progress import track

    bank = Bank(like)
    return write_shards(out, _samples(bank, track(range(count), description="remix"), settings), codec=bank.codec)


def _samples(bank: Bank, numbers, settings: RemixSettings) -> Iterator[Sample]:
    for number in numbers:
        rng = item_rng(settings.seed, settings.split, number, "remix")
        made = _maker(settings, number)(bank, rng, settings)
        if made is not None:
            placed, visuals, kind = made
            codes, words = bank.join(placed)
            yield Sample(f"{number:06d}", codes, words, visuals, {"kind": kind, "split": settings.split})


Made = tuple[list[tuple[Piece, int]], list[Visual], str]


def _maker(settings: RemixSettings, number: int) -> Callable[[Bank, np.random.Generator, RemixSettings], Made | None]:
    drawn = item_rng(settings.seed, settings.split, number, "remix kind").random()
    return _of_clip if drawn < settings.clips else _of_swap if drawn < settings.clips + settings.swaps else _of_scene


def _of_scene(bank: Bank, rng: np.random.Generator, settings: RemixSettings) -> Made | None:
    scene = random_scene(rng, split=settings.split)
    pieces = _true_pieces(bank, scene, rng, settings.num_turns)
    if not pieces:
        return None
    return _in_turn(pieces), [Visual(render_png(scene, size_px=settings.size_px))], "visual"


def _of_swap(bank: Bank, rng: np.random.Generator, settings: RemixSettings) -> Made | None:
    """The second picture comes when the first answer and half of the silence after it are over, or a little later."""
    scenes = [random_scene(rng, split=settings.split) for _ in range(2)]
    pieces = [_true_pieces(bank, scene, rng, 1) for scene in scenes]
    if not all(pieces):
        return None
    placed = _in_turn([piece for pair in pieces for piece in pair])
    second_sec = frames_to_seconds(placed[2][1]) + rng.uniform(0.0, 0.4)
    pictures = [render_png(scene, size_px=settings.size_px) for scene in scenes]
    return placed, [Visual(pictures[0]), Visual(pictures[1], round(second_sec, 3))], "swap"


def _of_clip(bank: Bank, rng: np.random.Generator, settings: RemixSettings) -> Made | None:
    """One turn, or one request to tell and what is told."""
    telling = rng.random() < settings.commentary
    for _ in range(CLIP_TRIES):
        if telling:
            clip = random_clip(rng, split=settings.split, apart_sec=COMMENTARY_APART_SEC)
            made = _told(bank, commentary(clip, rng), rng)
        else:
            clip = random_clip(rng, split=settings.split)
            made = _asked(bank, clip, rng)
        if made is not None:
            placed, start_sec = made
            return placed, [_visual(clip, start_sec, settings)], "clip"
    return None


def _true_pieces(bank: Bank, scene: Scene, rng: np.random.Generator, num_turns: int) -> list[Piece]:
    """Questions with the answers that are true of the scene, in turn; no answer twice."""
    found: dict[str, tuple[Piece, Piece]] = {}
    for _ in range(TRIES):
        thought = visual_turn(scene, rng)
        voiced = bank.find(thought, rng)
        if voiced is not None:
            found.setdefault(thought.answer, voiced)
        if len(found) == num_turns:
            break
    return [piece for pair in found.values() for piece in pair]


def _in_turn(pieces: Sequence[Piece]) -> list[tuple[Piece, int]]:
    starts = itertools.accumulate((piece.num_frames for piece in pieces), initial=0)
    return list(zip(pieces, starts, strict=False))


def _asked(bank: Bank, clip: Clip, rng: np.random.Generator) -> tuple[list[tuple[Piece, int]], float] | None:
    """A question about the clip with its answer, and when the clip begins."""
    for timed in clip_turns(clip, rng, tries=TRIES // CLIP_TRIES):
        voiced = bank.find(timed.turn, rng)
        if voiced is not None:
            return _placed(bank, voiced, timed, rng, early=rng.random() < EARLY_SHARE)
    return None


def _placed(
    bank: Bank, voiced: tuple[Piece, Piece], timed: TimedTurn, rng: np.random.Generator, *, early: bool
) -> tuple[list[tuple[Piece, int]], float]:
    """The turn such that its question ends when it is true; not `early`: after silence while the clip begins."""
    true_sec = timed.earliest_sec + rng.uniform(0.0, min(FIRST_ROOM_SEC, timed.latest_sec - timed.earliest_sec))
    asked_sec = bank.words(voiced[0])[-1].end_sec
    wait = 0 if early else seconds_to_frames(max(0.0, true_sec - asked_sec), round_up=True)
    placed = [(piece, at + wait) for piece, at in _in_turn(voiced)]
    return placed, round(frames_to_seconds(wait) + asked_sec - true_sec, 3)


def _told(bank: Bank, timed: TimedTurn, rng: np.random.Generator) -> tuple[list[tuple[Piece, int]], float] | None:
    """The request, and each comment soon after its event."""
    voiced = bank.find(timed.turn, rng)
    comments = [bank.comment(comment.text, rng) for comment in timed.comments]
    if voiced is None or not all(comments):
        return None
    placed, start_sec = _placed(bank, voiced, timed, rng, early=False)
    for comment, piece in zip(timed.comments, comments, strict=True):
        react_sec = seen_sec(comment.event_sec) + rng.uniform(*Timing().reaction_sec)
        free = placed[-1][1] + placed[-1][0].num_frames
        at = max(free, seconds_to_frames(start_sec + react_sec, round_up=True))
        if frames_to_seconds(at) > start_sec + comment.event_sec + COMMENT_WITHIN_SEC:
            return None
        placed.append((piece, at))
    return placed, start_sec


def _visual(clip: Clip, start_sec: float, settings: RemixSettings) -> Visual:
    return Visual(film(clip, size_px=settings.size_px), start_sec, "clip", SEEN_FPS)
