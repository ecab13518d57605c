"""Long calls: many questions in one call, or one after a long silence. Does a model still listen and answer?

A model remembers a stretch of its call and was trained on calls of some length. One that never met what comes then may
fall silent or ramble, and calls of a single question do not tell.
"""

from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.manifest import Line
from eval.scoring import mean, normalise
from eval.sights import Sights
from eval.spoken import is_right, question_lines, right_spoken, spoken_prompt, together, told_end_sec
from eval.task import Prompt, Reply, Settings, Task, later
from mmspeech.frames import SAMPLE_RATE_HZ

if TYPE_CHECKING:
    from PIL.Image import Image

    from mmspeech.checkpoint import Bundle

SETS = ("known", "motion", "change")
QUESTIONS = 24  # of a call; with their answers four to five minutes
ANSWER_SEC = 5.0  # from a question's end to the next recording
QUIET_SEC = 60.0


def build(settings: Settings, bundle: "Bundle | None") -> "LongCall":
    """The task over the sets of DATA/questions that are there."""
    return LongCall(*question_lines(settings, SETS))


@dataclass(frozen=True)
class LongTalk:
    """A call with those questions in it; the first is asked after `quiet_sec`."""

    id: str
    kind: str
    lines: tuple[Line, ...]
    quiet_sec: float = 0.0
    voice: str = "all"


@dataclass(frozen=True)
class Turn:
    """A question: its recording begins at `start_sec`, the next one's at `until_sec`."""

    line: Line
    start_sec: float
    until_sec: float


class LongCall(Task):
    """Score: the share of a call's questions that are answered rightly before the next one begins.

    many questions: QUESTIONS of them, from all sets in turn, each with what it is about. after silence: a single one
    that is asked QUIET_SEC after the call began. Pictures and clips enter with the recordings of their questions.
    """

    name, version = "long_call", 1

    def __init__(self, lines: dict[str, list[Line]], files: list[Path]):
        self.files = files
        sets = [[_own(line, name) for line in own] for name, own in lines.items()]
        self._sights = Sights(list(chain(*sets)), pictures="given", seed=0)
        mixed = [line for group in zip_longest(*sets) for line in group if line is not None]
        self.samples = [
            LongTalk(f"many/{first // QUESTIONS:03d}", "many questions", tuple(mixed[first : first + QUESTIONS]))
            for first in range(0, len(mixed), QUESTIONS)
        ]
        self.samples += [LongTalk(f"silence/{line.id}", "after silence", (line,), QUIET_SEC) for line in mixed]

    def prompt(self, sample: LongTalk) -> Prompt:
        waves = [np.zeros(int(sample.quiet_sec * SAMPLE_RATE_HZ), np.float32)]
        pictures: list[tuple[float, Image]] = []
        for turn in _turns(sample):
            asked = spoken_prompt(turn.line, self._sights)
            size = int((turn.until_sec - turn.start_sec) * SAMPLE_RATE_HZ)
            waves.append(np.pad(asked.wave[:size], (0, max(0, size - len(asked.wave)))))
            shown = ((turn.start_sec + at_sec, picture) for at_sec, picture in asked.pictures)
            pictures += [(at_sec, picture) for at_sec, picture in shown if at_sec < turn.until_sec]
        return Prompt(np.concatenate(waves), pictures)

    def score(self, sample: LongTalk, prompt: Prompt, reply: Reply) -> dict[str, Any]:
        turns = [_record(turn, reply) for turn in _turns(sample)]
        return {
            "score": mean([turn["right"] for turn in turns]),
            "question": sample.lines[0].question,
            "answers": list(sample.lines[0].answers),
            "text": reply.text,
            "words": reply.told_words(),
            "turns": turns,
            "unasked": any(word.start_sec < sample.quiet_sec for word in reply.words) if sample.quiet_sec else None,
        }

    def right_reply(self, sample: LongTalk) -> Reply:
        return together([later(right_spoken(turn.line), turn.start_sec) for turn in _turns(sample)])

    def question_of(self, sample: LongTalk) -> str:
        return f"{sample.kind}, {len(sample.lines)} of {sample.lines[0].kind}"

    def length_sec(self, sample: LongTalk) -> float:
        return _turns(sample)[-1].until_sec

    def summarise(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        """Shares of questions, not of calls: all, those that began in the first minute, and those after it. unasked: of
        the calls that began with a silence, in how many the model spoke in it."""
        turns = [turn for record in records for turn in record["turns"]]
        return {
            "questions": len(turns),
            "right": mean([turn["right"] for turn in turns]),
            "right_in_minute_1": mean([turn["right"] for turn in turns if turn["start_sec"] < 60.0]),
            "right_later": mean([turn["right"] for turn in turns if turn["start_sec"] >= 60.0]),
            "said_nothing": mean([not turn["text"] for turn in turns]),
            "unasked": mean([record["unasked"] for record in records if record["unasked"] is not None]),
        }


def _own(line: Line, name: str) -> Line:
    """The line with an id that no other set has."""
    return line.model_copy(update={"id": f"{name}/{line.id}"})


def _turns(sample: LongTalk) -> list[Turn]:
    """When each question is asked."""
    turns, start_sec = [], sample.quiet_sec
    for line in sample.lines:
        until_sec = start_sec + told_end_sec(line) + ANSWER_SEC
        turns.append(Turn(line, start_sec, until_sec))
        start_sec = until_sec
    return turns


def _record(turn: Turn, reply: Reply) -> dict[str, Any]:
    said = [word.text for word in reply.words if word.text and turn.start_sec <= word.start_sec < turn.until_sec]
    return {
        "start_sec": round(turn.start_sec, 2),
        "question": turn.line.question,
        "answers": list(turn.line.answers),
        "text": " ".join(said),
        "right": is_right(normalise(" ".join(said)), turn.line),
    }
