"""The questions that were voiced in shard sets, by what they ask: pieces of calls that can be asked again."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from data_prep.world import COLOURS, SHAPES
from data_prep.world_dialogue import SIDES, Turn, pick, plural
from mmspeech.config import ConfigError
from mmspeech.data.shards import CodecStamp, ShardSet, speaker_rows
from mmspeech.frames import frames_to_seconds, seconds_to_frames
from mmspeech.types import Sample, Word

BEFORE_SEC = 1.2  # the longest silence taken along before a question
TOPICS = frozenset((*SHAPES, *(plural(shape) for shape in SHAPES), *COLOURS, *SIDES))
# "is it moving" and "did it move" are true at different times.
TENSED = {"which_way", "did_move"}
STILL_GOING = {"moving", "going", "does"}


@dataclass(frozen=True)
class Piece:
    """Frames `first` to `end` (excluded) of call number `call` of set number `voiced`: a question, with half of the gap
    after it. Up to `quiet_end` the user says nothing. `answer`: what it was answered there."""

    voiced: int
    call: int
    first: int
    end: int
    quiet_end: int
    answer: str


@dataclass(frozen=True)
class Question:
    """A piece as it sounds. codes [2K, T]; `words` in seconds from its first frame; `quiet` [K, Q]: the user's codes of
    the silence after it."""

    codes: Tensor
    words: list[Word]
    quiet: Tensor


class Bank:
    """Questions of sets of one codec, found by what they ask. Raises ConfigError for sets without turns, or made with
    another codec than that of `codec_hash`."""

    def __init__(self, paths: Sequence[Path], *, codec_hash: str):
        from rich.progress import track

        self._sets = [ShardSet(path, codec_hash=codec_hash) for path in paths]
        self._questions: dict[tuple, list[Piece]] = defaultdict(list)
        for number, voiced in enumerate(self._sets):
            for call in track(range(len(voiced)), description="listen"):
                for record, question in _turns_of(voiced[call], call, number):
                    self._questions[_topic(record["kind"], record["question"])].append(question)
        if not self._questions:
            raise ConfigError(f"{paths[0]}: no turns in its calls; expected a set packed from `data_prep speak`")

    @property
    def codec(self) -> CodecStamp:
        """Which codec all of it was encoded with."""
        return self._sets[0].info.codec

    def find(self, turn: Turn, rng: np.random.Generator) -> Piece | None:
        """A question that asks the same, by any voice in any words; None where nobody asked it."""
        questions = self._questions.get(_topic(turn.kind, turn.question))
        return pick(rng, questions) if questions else None

    def hear(self, piece: Piece) -> Question:
        """The sound and the words of a piece."""
        sample = self._sets[piece.voiced][piece.call]
        first_sec, end_sec = frames_to_seconds(piece.first), frames_to_seconds(piece.end)
        words = [word.later(-first_sec) for word in sample.words if first_sec <= word.start_sec < end_sec]
        _, quiet = speaker_rows(sample.codes[:, piece.end : piece.quiet_end])
        return Question(sample.codes[:, piece.first : piece.end], words, quiet)


def _topic(kind: str, question: str) -> tuple:
    """What a question asks, whatever its words; of those that ask to repeat something, that they do."""
    if kind == "repeat":
        return (kind,)
    words = question.split()
    going = ("now",) if kind in TENSED and STILL_GOING & set(words) else ()
    return (kind, *going, *sorted(word for word in words if word in TOPICS))


def _turns_of(sample: Sample, call: int, voiced: int) -> Iterator[tuple[dict, Piece]]:
    """Record and question of the turns that stand alone: nobody else's words in them, no interruption."""
    records = sample.meta.get("turns", [])
    ends_sec = [0.0, *(_end_sec(turn) for turn in records)]
    starts_sec = [*(turn["question_start_sec"] for turn in records[1:]), frames_to_seconds(sample.codes.shape[1])]
    for record, before_sec, after_sec in zip(records, ends_sec, starts_sec, strict=False):
        begins_sec = record["question_start_sec"]
        if record["interrupted"] or begins_sec <= before_sec or _end_sec(record) >= after_sec:
            continue
        first = seconds_to_frames(max(before_sec, begins_sec - BEFORE_SEC), round_up=True)
        middle = seconds_to_frames((record["question_end_sec"] + record["answer_start_sec"]) / 2)
        quiet_end = max(middle + 1, seconds_to_frames(after_sec))
        yield record, Piece(voiced, call, first, middle, quiet_end, record["answer"])


def _end_sec(record: dict) -> float:
    return max([record["answer_end_sec"], *(comment["end_sec"] for comment in record.get("comments", []))])
