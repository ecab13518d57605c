"""Spoken questions, with or without something to see: is the answer in the reply's text, and in its sound?"""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.commentary import LISTEN_SEC, in_time, summarise_events, told
from eval.manifest import Line, read_lines
from eval.recognise import Recogniser, word_error
from eval.responder import ModelResponder, Question, Reply, Responder
from eval.scoring import holds_answer, is_active, mean, normalise, percentile, stop_after, wilson
from eval.sights import Sights
from eval.task import Settings
from mmspeech.audio.waveform import read_audio, write_wav
from mmspeech.config import ConfigError
from mmspeech.frames import SAMPLE_RATE_HZ

if TYPE_CHECKING:
    from mmspeech.checkpoint import Bundle

STOP_LIMIT_SEC = 0.6
SIGHT_SEC = 15.0  # after the question's end, no reply goes on for longer


def build(settings: Settings, bundle: "Bundle | None", responder: Responder | None) -> "SpokenVqa":
    """The task over the manifest of `settings`."""
    lines = read_lines(settings.manifest, Line, limit=settings.limit)
    expected = [text for line in lines for text in (line.reply or "", line.question, *line.answers)]
    expected += [answer for line in lines for event in line.events for answer in event.answers]
    return SpokenVqa(
        lines=lines,
        settings=settings,
        responder=responder or ModelResponder(bundle, sampling=settings.sampling),
        recogniser=Recogniser([*expected, *(settings.sentences or ())]),
    )


class SpokenVqa:
    """Right: an accepted answer stands in the words said (after the barge-in, where there is one), and no rejected one.

    False start: a word before the question's end. Answer time: from there to the first word after it, as heard.
    Stopping: from the barge-in to the model's silence. A line with events is right when all of them were told in time.
    """

    name, version = "spoken_vqa", 1

    def __init__(self, *, lines: list[Line], settings: Settings, responder: Responder, recogniser: Recogniser):
        self.lines = lines
        self.settings = settings
        self.responder = responder
        self.recogniser = recogniser
        self._sights = Sights(lines, settings)

    def load(self, line: Line) -> Question:
        for path in (line.audio, *self._sights.paths(line)):
            if not path.is_file():
                raise ConfigError(f"{path}: no such file")
        wave = read_audio(line.audio)[0].numpy()
        frames = self._sights.frames(line, until_sec=len(wave) / SAMPLE_RATE_HZ + SIGHT_SEC)
        return Question(line, wave, frames, max((event.at_sec + LISTEN_SEC for event in line.events), default=0.0))

    def run(self, items: list[Question], *, seeds: list[int]) -> list[dict[str, Any]]:
        replies = self.responder.answer(items, seeds=seeds)
        return [self._record(question, reply) for question, reply in zip(items, replies, strict=True)]

    def _record(self, question: Question, reply: Reply) -> dict[str, Any]:
        line, rate_hz = question.line, self.responder.sample_rate_hz
        if self.settings.audio_dir is not None:
            write_wav(self.settings.audio_dir / f"{line.id}.wav", reply.wave, rate_hz)
        end_sec = question_end_sec(question)
        begin_sec = line.barge_start_sec or 0.0
        said = normalise(" ".join(w.text for w in reply.words if w.start_sec >= begin_sec))
        all_said = normalise(reply.text)
        heard = self.recogniser.words(reply.wave, rate_hz)
        heard_since = heard
        if begin_sec:
            heard_since = self.recogniser.words(reply.wave[int(begin_sec * rate_hz) :], rate_hz)
        errors, count = word_error(all_said, heard)
        starts_sec = [word.start_sec for word in reply.words]
        barge = line.barge_start_sec
        stop_sec = None if barge is None else stop_after(reply.wave, rate_hz, barge)
        events = told(reply.words, line.events)
        return {
            "kind": line.kind,
            "voice": line.voice,
            "question": line.question,
            "answers": list(line.answers),
            "seen": [path.name for path in self._sights.paths(line)],
            "text": reply.text,
            "words": [{"text": w.text, "start_sec": round(w.start_sec, 3), "gate": w.gate} for w in reply.words],
            "right": is_right(said, line) and all(map(in_time, events)),
            "events": events,
            "heard": " ".join(heard),
            "heard_right": is_right(heard_since, line) and all(holds_answer(heard, e.answers) for e in line.events),
            "word_errors": errors,
            "words_said": count,
            "words_unknown": sorted(set(all_said) & set(self.recogniser.unknown)),
            "false_start": None if barge is not None else any(start < end_sec for start in starts_sec),
            "answer_sec": next((start - end_sec for start in starts_sec if start >= end_sec), None),
            "barged": barge is not None,
            "barged_while_speaking": stop_sec is not None,
            "stop_sec": None if stop_sec is None or math.isinf(stop_sec) else stop_sec,
        }

    def summarise(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        """Shares are of the records given; `stopped` is of those where the model was speaking at the barge-in."""
        right = sum(r["right"] for r in records)
        said = sum(r["words_said"] for r in records)
        stops = [math.inf if r["stop_sec"] is None else r["stop_sec"] for r in records if r["barged_while_speaking"]]
        answer_sec = [r["answer_sec"] for r in records if r["answer_sec"] is not None]
        return {
            "count": len(records),
            "right": mean([r["right"] for r in records]),
            "right_95": wilson(right, len(records)),
            "heard_right": mean([r["heard_right"] for r in records]),
            "word_error": sum(r["word_errors"] for r in records) / said if said else None,
            "false_starts": mean([r["false_start"] for r in records if r["false_start"] is not None]),
            "words_said": said,
            "words_unknown": sorted({word for r in records for word in r["words_unknown"]}),
            "said_nothing": mean([not r["text"] for r in records]),
            "answer_sec_p50": percentile(answer_sec, 50),
            "answer_sec_p90": percentile(answer_sec, 90),
            "gate": mean([w["gate"] for r in records for w in r["words"]]),
            "barge_ins": sum(r["barged"] for r in records),
            "barge_ins_while_speaking": len(stops),
            "stopped": mean([stop <= STOP_LIMIT_SEC for stop in stops]),
            "stop_sec_p50": percentile(stops, 50),
            **summarise_events([event for r in records for event in r["events"]]),
        }


def is_right(words: list[str], line: Line) -> bool:
    """Whether the words hold an accepted answer and no rejected one."""
    return holds_answer(words, line.answers) and not holds_answer(words, line.rejected)


def question_end_sec(question: Question) -> float:
    """From the manifest, or else where the caller's sound ends."""
    if question.line.question_end_sec is not None:
        return question.line.question_end_sec
    active = np.flatnonzero(is_active(question.wave, SAMPLE_RATE_HZ))
    return (active[-1] + 1) * 0.02 if active.size else len(question.wave) / SAMPLE_RATE_HZ
