"""What was voiced in shard sets, by what it asks and says: pieces of calls that can be put together anew."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data_prep.dialogue import SIDES, Turn, pick, plural
from data_prep.world import COLOURS, SHAPES
from mmspeech.config import ConfigError
from mmspeech.data.shards import CodecStamp, ShardSet
from mmspeech.frames import frames_to_seconds, seconds_to_frames
from mmspeech.types import Sample, Word

BEFORE_SEC, AFTER_SEC = 1.2, 0.6  # the longest silence taken along before a question and after an answer
TOPICS = frozenset((*SHAPES, *(plural(shape) for shape in SHAPES), *COLOURS, *SIDES))
# "is it moving" and "did it move" are true at different times.
TENSED = {"which_way", "did_move"}
STILL_GOING = {"moving", "going", "does"}


@dataclass(frozen=True)
class Piece:
    """Frames `first` to `end` (excluded) of call number `call` of set number `voiced`, with half of the gap between."""

    call: int
    first: int
    end: int
    voiced: int = 0

    @property
    def num_frames(self) -> int:
        return self.end - self.first


@dataclass(frozen=True)
class _Spoken:
    """A turn that stands alone: nobody else's words in it, no interruption."""

    record: dict
    question: Piece
    answer: Piece
    comments: list[tuple[str, Piece]]


class Bank:
    """Questions by what they ask, answers and comments by their words, of sets of one codec. Raises ConfigError."""

    def __init__(self, paths: Sequence[Path]):
        from rich.progress import track

        self._sets = [ShardSet(path) for path in paths]
        if len({voiced.info.codec.hash for voiced in self._sets}) > 1:
            raise ConfigError(f"{', '.join(map(str, paths))}: encoded with different codecs; encode them with one")
        self._questions: dict[tuple, list[Piece]] = defaultdict(list)
        self._answers: dict[tuple[str, str], list[Piece]] = defaultdict(list)
        self._comments: dict[str, list[Piece]] = defaultdict(list)
        for number, voiced in enumerate(self._sets):
            for call in track(range(len(voiced)), description="listen"):
                for spoken in _turns_of(voiced[call], call, number):
                    record = spoken.record
                    self._questions[_topic(record["kind"], record["question"])].append(spoken.question)
                    self._answers[record["kind"], record["answer"]].append(spoken.answer)
                    for text, piece in spoken.comments:
                        self._comments[text].append(piece)
        if not self._questions:
            raise ConfigError(f"{paths[0]}: no turns in its calls; expected a set packed from `data_prep speak`")

    @property
    def codec(self) -> CodecStamp:
        """Which codec all of it was encoded with."""
        return self._sets[0].info.codec

    def find(self, turn: Turn, rng: np.random.Generator) -> tuple[Piece, Piece] | None:
        """A question that asks the same, by any voice in any words, and the answer; None where nobody said it."""
        questions = self._questions.get(_topic(turn.kind, turn.question))
        answers = self._answers.get((turn.kind, turn.answer))
        if not questions or not answers:
            return None
        return pick(rng, questions), pick(rng, answers)

    def comment(self, text: str, rng: np.random.Generator) -> Piece | None:
        """The model's comment in these words; it begins within the first frame. None where it was never said."""
        said = self._comments.get(text)
        return pick(rng, said) if said else None

    def words(self, piece: Piece) -> list[Word]:
        """The words of the piece, in seconds from its first frame."""
        first_sec, end_sec = frames_to_seconds(piece.first), frames_to_seconds(piece.end)
        words = self._sets[piece.voiced][piece.call].words
        return [_later(word, -first_sec) for word in words if first_sec <= word.start_sec < end_sec]

    def join(self, pieces: Sequence[tuple[Piece, int]]) -> tuple[Tensor, list[Word]]:
        """Pieces, each with the frame it begins in, one after the other: codes [2K, T], silence between them, and
        words."""
        silence = torch.tensor(self.codec.silence_codes * 2, dtype=torch.int16)[:, None]
        codes = silence.repeat(1, max(at + piece.num_frames for piece, at in pieces))
        words = []
        for piece, at in pieces:
            codes[:, at : at + piece.num_frames] = self._sets[piece.voiced][piece.call].codes[
                :, piece.first : piece.end
            ]
            words += [_later(word, frames_to_seconds(at)) for word in self.words(piece)]
        return codes, words


def _topic(kind: str, question: str) -> tuple:
    """What a question asks, whatever its words."""
    words = question.split()
    going = ("now",) if kind in TENSED and STILL_GOING & set(words) else ()
    return (kind, *going, *sorted(word for word in words if word in TOPICS))


def _turns_of(sample: Sample, call: int, voiced: int) -> Iterator[_Spoken]:
    records = sample.meta.get("turns", [])
    ends_sec = [0.0, *(_end_sec(turn) for turn in records)]
    starts_sec = [*(turn["question_start_sec"] for turn in records[1:]), frames_to_seconds(sample.codes.shape[1])]
    for record, before_sec, after_sec in zip(records, ends_sec, starts_sec, strict=False):
        begins_sec, ends = record["question_start_sec"], record["answer_end_sec"]
        if record["interrupted"] or begins_sec <= before_sec or _end_sec(record) >= after_sec:
            continue
        comments = list(_comments_of(record, after_sec, call, voiced))
        if comments:
            after_sec = record["comments"][0]["start_sec"]
        first = seconds_to_frames(max(before_sec, begins_sec - BEFORE_SEC), round_up=True)
        middle = seconds_to_frames((record["question_end_sec"] + record["answer_start_sec"]) / 2)
        end = seconds_to_frames(min(after_sec, ends + AFTER_SEC))
        yield _Spoken(record, Piece(call, first, middle, voiced), Piece(call, middle, end, voiced), comments)


def _end_sec(record: dict) -> float:
    return max([record["answer_end_sec"], *(comment["end_sec"] for comment in record.get("comments", []))])


def _comments_of(record: dict, after_sec: float, call: int, voiced: int) -> Iterator[tuple[str, Piece]]:
    comments = record.get("comments", [])
    nexts_sec = [*(comment["start_sec"] for comment in comments[1:]), after_sec]
    for comment, next_sec in zip(comments, nexts_sec, strict=False):
        first = seconds_to_frames(comment["start_sec"])
        end = seconds_to_frames(min(next_sec, comment["end_sec"] + AFTER_SEC))
        yield comment["text"], Piece(call, first, end, voiced)


def _later(word: Word, by_sec: float) -> Word:
    return replace(word, start_sec=word.start_sec + by_sec, end_sec=word.end_sec + by_sec)
