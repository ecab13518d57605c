"""`facts`: pictures and clips with written sentences that are true of them, and no sound: what there is to see, at
little cost.

A spoken question with its answer takes five seconds of a call; the sentence alone takes one when nobody speaks it. A
model whose answers say again what was asked learns from such sentences what to look for.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from pydantic import Field

from data_prep.clips import COMMENTARY_APART_SEC
from data_prep.encode import codec_stamp
from data_prep.film import film
from data_prep.happenings import EVEN, random_clip
from data_prep.motion import SEEN_FPS, Clip, seen_sec
from data_prep.motion_dialogue import TimedTurn, clip_turns, commentary, draw_turn
from data_prep.render import render_png
from data_prep.scenes import item_rng
from data_prep.world import random_scene
from data_prep.world_dialogue import LEARNT_KINDS, visual_turn
from data_prep.world_speak import Timing
from mmspeech.checkpoint import load_codec
from mmspeech.config import StrictModel
from mmspeech.data.shards import ShardSetInfo, write_shards
from mmspeech.frames import frames_to_seconds, seconds_to_frames
from mmspeech.types import Sample, Visual, Word

WORD_FRAMES = (1, 4)  # how long a word of a sentence lasts: in slow ones, as in speech, things happen meanwhile
GAP_FRAMES = (1, 2)  # between sentences
QUIET_FRAMES = (4, 16)  # after the last comment


class FactsSettings(StrictModel):
    """What decides on the calls. `num_facts`: different sentences about a picture or clip, at most; `clips`: their
    share of all calls, `commentary` that of the clips that are told as they happen, `hurried` of the other clips (see
    happenings.HURRIED_APART_SEC)."""

    seed: int = Field(0, ge=0)
    split: str = "train"
    size_px: int = 96
    num_facts: int = Field(4, ge=1)
    clips: float = Field(0.0, ge=0, le=1)
    commentary: float = Field(0.2, ge=0, le=1)
    hurried: float = Field(0.3, ge=0, le=1)


def make_facts(out: Path, settings: FactsSettings, *, codec_dir: Path, count: int) -> ShardSetInfo:
    """Write a set of `count` calls without sound, each a picture or a clip and sentences about it.

    Raises ConfigError for a codec that can not be loaded, whose stamp the set bears.
    """
    from rich.progress import track

    stamp = codec_stamp(load_codec(codec_dir))
    numbers = track(range(count), description="facts")
    return write_shards(out, _samples(numbers, stamp.num_codebooks, settings), codec=stamp)


def _samples(numbers: Iterable[int], num_codebooks: int, settings: FactsSettings) -> Iterator[Sample]:
    for number in numbers:
        rng = item_rng(settings.seed, settings.split, number, "facts")
        make = _of_clip if rng.random() < settings.clips else _of_scene
        (words, num_frames), visual = make(rng, settings)
        codes = torch.full((2 * num_codebooks, num_frames), -1, dtype=torch.int16)
        yield Sample(f"{number:06d}", codes, words, [visual], {"kind": "facts", "split": settings.split})


Made = tuple[tuple[list[Word], int], Visual]


def _of_scene(rng: np.random.Generator, settings: FactsSettings) -> Made:
    scene = random_scene(rng, split=settings.split)
    # As many draws as facts: what is often asked is often told.
    drawn = (visual_turn(scene, rng, kinds=LEARNT_KINDS) for _ in range(settings.num_facts))
    sentences = list(dict.fromkeys(turn.answer for turn in drawn))
    laid = _lay_out(lambda now_sec: sentences.pop(0) if sentences else None, rng)
    return laid, Visual(render_png(scene, size_px=settings.size_px))


def _of_clip(rng: np.random.Generator, settings: FactsSettings) -> Made:
    return _told(rng, settings) if rng.random() < settings.commentary else _known(rng, settings)


def _known(rng: np.random.Generator, settings: FactsSettings) -> Made:
    """What is true of a clip; the call begins in its middle, when something has become true."""
    turns: list[TimedTurn] = []
    while not turns:
        hurried = rng.random() < settings.hurried
        clip = random_clip(rng, split=settings.split, hurried=hurried, shares=EVEN)
        turns = list(clip_turns(clip, rng, tries=12 * settings.num_facts))
    begin_sec = draw_turn(turns, rng).earliest_sec
    told: list[str] = []

    def next_one(now_sec: float) -> str | None:
        clip_sec = begin_sec + now_sec
        true = [turn for turn in turns if turn.earliest_sec <= clip_sec <= turn.latest_sec]
        new = [turn for turn in true if turn.turn.answer not in told]
        if not new or len(told) == settings.num_facts:
            return None
        told.append(draw_turn(new, rng).turn.answer)
        return told[-1]

    return _lay_out(next_one, rng), _shown(clip, -begin_sec, settings)


def _told(rng: np.random.Generator, settings: FactsSettings) -> Made:
    """A clip with what is said of its events, each soon after it can be seen."""
    clip = random_clip(rng, split=settings.split, apart_sec=COMMENTARY_APART_SEC, shares=EVEN)
    turn = commentary(clip, rng)
    begin_sec = rng.uniform(0.0, max(0.0, turn.latest_sec))
    words, now_frames = _say(turn.turn.answer, 1 + int(rng.integers(*GAP_FRAMES, endpoint=True)), rng)
    for comment in turn.comments:
        react_sec = seen_sec(comment.event_sec) - begin_sec + rng.uniform(*Timing().reaction_sec)
        said, now_frames = _say(comment.text, max(now_frames + 1, seconds_to_frames(react_sec, round_up=True)), rng)
        words += said
    quiet_frames = int(rng.integers(*QUIET_FRAMES, endpoint=True))
    return (words, now_frames + quiet_frames), _shown(clip, -begin_sec, settings)


def _shown(clip: Clip, start_sec: float, settings: FactsSettings) -> Visual:
    return Visual(film(clip, size_px=settings.size_px), round(start_sec, 3), "clip", SEEN_FPS)


def _lay_out(next_one: Callable[[float], str | None], rng: np.random.Generator) -> tuple[list[Word], int]:
    """Sentences one after the other, each asked for when it begins (seconds of the call), until there is none: their
    words, and the frames they take."""
    words, now_frames = [], 1 + int(rng.integers(*GAP_FRAMES, endpoint=True))
    while (sentence := next_one(frames_to_seconds(now_frames))) is not None:
        said, now_frames = _say(sentence, now_frames, rng)
        words += said
        now_frames += int(rng.integers(*GAP_FRAMES, endpoint=True))
    return words, now_frames + 1


def _say(sentence: str, now_frames: int, rng: np.random.Generator) -> tuple[list[Word], int]:
    """Its words from a frame on, and the frame after them."""
    words, pace = [], int(rng.integers(*WORD_FRAMES, endpoint=True))
    for text in sentence.split():
        words.append(Word(text, frames_to_seconds(now_frames), frames_to_seconds(now_frames + pace)))
        now_frames += pace
    return words, now_frames
