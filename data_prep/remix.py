"""`remix`: voiced questions and answers put together anew, under pictures of which they are true.

A question goes with many answers and an answer with many scenes: "on the left is a red star". So a set of voiced calls
lends its questions and its answers (codes and words, cut in the silence around them) to new scenes, and the eyes learn
from many more pictures than were spoken about; no voice gives the answer away. Only turns of the rendered world can be
lent: what they are about is known from their words.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data_prep.dialogue import SIDES, Turn, plural, visual_turn
from data_prep.render import render_png
from data_prep.scenes import item_rng
from data_prep.world import COLOURS, SHAPES, Scene, random_scene
from mmspeech.config import ConfigError
from mmspeech.data.shards import ShardSet, ShardSetInfo, write_shards
from mmspeech.frames import frames_to_seconds, seconds_to_frames
from mmspeech.types import Sample, Visual, Word

BEFORE_SEC, AFTER_SEC = 1.2, 0.6  # the longest silence taken along before a question and after an answer
TRIES = 60  # turns that are thought up for a call; one that nobody voiced is passed over
TOPICS = frozenset((*SHAPES, *(plural(shape) for shape in SHAPES), *COLOURS, *SIDES))


@dataclass(frozen=True)
class Piece:
    """Frames `first` to `end` (excluded) of a voiced call: a question or an answer, with half of the gap between."""

    call: int
    first: int
    end: int


class Bank:
    """What was voiced in a shard set: questions by what they ask, answers by their words."""

    def __init__(self, voiced: ShardSet):
        from rich.progress import track

        self.voiced = voiced
        self._questions: dict[tuple, list[Piece]] = defaultdict(list)
        self._answers: dict[tuple[str, str], list[Piece]] = defaultdict(list)
        for call in track(range(len(voiced)), description="listen"):
            for record, question, answer in _turns_of(voiced[call], call):
                self._questions[_topic(record["kind"], record["question"])].append(question)
                self._answers[record["kind"], record["answer"]].append(answer)
        if not self._questions:
            raise ConfigError(f"{voiced.path}: no turns in its calls; expected a set packed from `data_prep speak`")

    def find(self, turn: Turn, rng: np.random.Generator) -> tuple[Piece, Piece] | None:
        """A question that asks the same, by any voice in any words, and the answer; None where nobody said it."""
        questions = self._questions.get(_topic(turn.kind, turn.question))
        answers = self._answers.get((turn.kind, turn.answer))
        if not questions or not answers:
            return None
        return questions[int(rng.integers(len(questions)))], answers[int(rng.integers(len(answers)))]

    def sound(self, piece: Piece) -> tuple[Tensor, list[Word]]:
        """Codes [2K, T] of the piece, and its words in seconds from its first frame."""
        sample = self.voiced[piece.call]
        first_sec, end_sec = frames_to_seconds(piece.first), frames_to_seconds(piece.end)
        words = [word for word in sample.words if first_sec <= word.start_sec < end_sec]
        return sample.codes[:, piece.first : piece.end], [_later(word, -first_sec) for word in words]


def make_remix(
    out: Path, *, like: Path, count: int, seed: int, split: str = "train", size_px: int = 96, num_turns: int = 3
) -> ShardSetInfo:
    """Write a set of `count` calls of up to `num_turns` turns voiced in the set `like`, each about a scene of its own.

    Its codec stamp is that of `like`. Raises ConfigError for a set without turns.
    """
    from rich.progress import track

    bank = Bank(ShardSet(like))
    samples = _samples(bank, track(range(count), description="remix"), seed, split, size_px, num_turns)
    return write_shards(out, samples, codec=bank.voiced.info.codec)


def _samples(bank: Bank, numbers, seed: int, split: str, size_px: int, num_turns: int) -> Iterator[Sample]:
    for number in numbers:
        rng = item_rng(seed, split, number, "remix")
        scene = random_scene(rng, split=split)
        pieces = _true_pieces(bank, scene, rng, num_turns)
        if pieces:
            picture = Visual(render_png(scene, size_px=size_px), start_sec=0.0)
            yield _join(bank, pieces, f"{number:06d}", picture, split)


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


def _join(bank: Bank, pieces: list[Piece], name: str, picture: Visual, split: str) -> Sample:
    codes, words, now_frames = [], [], 0
    for piece in pieces:
        sound, spoken = bank.sound(piece)
        codes.append(sound)
        words += [_later(word, frames_to_seconds(now_frames)) for word in spoken]
        now_frames += sound.shape[1]
    return Sample(name, torch.cat(codes, dim=1), words, [picture], {"kind": "visual", "split": split})


def _topic(kind: str, question: str) -> tuple:
    """What a question asks, whatever its words."""
    return (kind, *sorted(word for word in question.split() if word in TOPICS))


def _turns_of(sample: Sample, call: int) -> Iterator[tuple[dict, Piece, Piece]]:
    """Record, question and answer of the turns that stand alone: nobody else's words in them, no interruption."""
    records = sample.meta.get("turns", [])
    ends_sec = [0.0, *(turn["answer_end_sec"] for turn in records)]
    starts_sec = [*(turn["question_start_sec"] for turn in records[1:]), frames_to_seconds(sample.codes.shape[1])]
    for record, before_sec, after_sec in zip(records, ends_sec, starts_sec, strict=False):
        begins_sec, ends = record["question_start_sec"], record["answer_end_sec"]
        if record["interrupted"] or begins_sec <= before_sec or ends >= after_sec:
            continue
        first = seconds_to_frames(max(before_sec, begins_sec - BEFORE_SEC), round_up=True)
        middle = seconds_to_frames((record["question_end_sec"] + record["answer_start_sec"]) / 2)
        end = seconds_to_frames(min(after_sec, ends + AFTER_SEC))
        yield record, Piece(call, first, middle), Piece(call, middle, end)


def _later(word: Word, by_sec: float) -> Word:
    return replace(word, start_sec=word.start_sec + by_sec, end_sec=word.end_sec + by_sec)
