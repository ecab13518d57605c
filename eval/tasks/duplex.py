"""Turn-taking: pauses, long turns, interruptions, answers in time; measured as Full-Duplex-Bench defines them."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.manifest import Line
from eval.scoring import holds_answer, mean, normalise, percentile, stop_after
from eval.sights import Sights
from eval.spoken import duration_sec, question_lines, spoken_prompt, told_end_sec
from eval.task import Prompt, Reply, Settings, Task, spoken
from eval.turns import backchannels_in, longest_pause, overlap_share, takeover_in, utterances
from mmspeech.audio.waveform import read_audio
from mmspeech.frames import SAMPLE_RATE_HZ

if TYPE_CHECKING:
    from mmspeech.checkpoint import Bundle

SETS = {"turn taking": "known", "pause": "pause", "interruption": "barge", "long turn": "known"}
ANSWER_WITHIN_SEC = 3.0
STOP_WITHIN_SEC = 0.6
JOIN_SEC = 0.4  # between the two questions of a long turn


def build(settings: Settings, bundle: "Bundle | None") -> "Duplex":
    """The task over the sets of DATA/questions that are there."""
    return Duplex(*question_lines(settings, dict.fromkeys(SETS.values())))


@dataclass(frozen=True)
class Turn:
    """A line asked to see how turns are taken; `then`: the question that follows it in a long turn."""

    line: Line
    kind: str
    then: Line | None = None

    @property
    def id(self) -> str:
        return f"{self.kind}/{self.line.id}"

    @property
    def voice(self) -> str:
        return self.line.voice


class Duplex(Task):
    """Score 1 for the wanted behaviour:

    turn taking: no takeover before the question's end, and one within ANSWER_WITHIN_SEC of it.
    pause: the same; the question has a silence inside.
    long turn: no takeover before the end of the second of two questions asked in one breath. Short words are welcome.
    interruption: who spoke at the barge-in falls silent within STOP_WITHIN_SEC, and takes the turn within
    ANSWER_WITHIN_SEC of the interrupting question's end.
    Latency: from the user's end to the takeover.
    """

    name, version = "duplex", 1

    def __init__(self, lines: dict[str, list[Line]], files: list[Path]):
        self.files = files
        self._sights = {name: Sights(own, pictures="given", seed=0) for name, own in lines.items()}
        self.samples = []
        for kind, name in SETS.items():
            own = lines.get(name, [])
            followers = [*own[1:], *own[:1]] if kind == "long turn" else [None] * len(own)
            self.samples += [Turn(line, kind, then) for line, then in zip(own, followers, strict=True)]

    def prompt(self, sample: Turn) -> Prompt:
        prompt = spoken_prompt(sample.line, self._sights[SETS[sample.kind]])
        if sample.then is not None:
            silence = np.zeros(int(JOIN_SEC * SAMPLE_RATE_HZ), np.float32)
            prompt.wave = np.concatenate([prompt.wave, silence, read_audio(sample.then.audio)[0].numpy()])
        return prompt

    def score(self, sample: Turn, prompt: Prompt, reply: Reply) -> dict[str, Any]:
        said, end_sec = utterances(reply.words), user_end_sec(sample)
        begin_sec = sample.line.barge_start_sec or 0.0
        # What was being said when the user broke in is no takeover.
        early = takeover_in(said, begin_sec, end_sec)
        answer = takeover_in(said, end_sec, end_sec + ANSWER_WITHIN_SEC)
        stop_sec = None
        if sample.line.barge_start_sec is not None:
            stop_sec = stop_after(reply.wave, SAMPLE_RATE_HZ, sample.line.barge_start_sec)
        took = early is None and (answer is not None or sample.kind == "long turn")
        answers = (sample.then or sample.line).answers
        return {
            "score": float(took and (stop_sec is None or stop_sec <= STOP_WITHIN_SEC)),
            "question": sample.line.question,
            "answers": list(answers),
            "text": reply.text,
            "words": reply.told_words(),
            "user_end_sec": round(end_sec, 3),
            "barge_start_sec": sample.line.barge_start_sec,
            "pause_sec": longest_pause(prompt.wave, SAMPLE_RATE_HZ) if sample.kind == "pause" else None,
            "early_takeover": early is not None,
            "takeover": answer is not None,
            "answer_sec": None if answer is None else round(answer.start_sec - end_sec, 3),
            "backchannels": backchannels_in(said, begin_sec, end_sec),
            "user_sec": round(end_sec - begin_sec, 3),
            "overlap": round(overlap_share(prompt.wave, reply.wave, SAMPLE_RATE_HZ), 4),
            "stop_sec": None if stop_sec is None or np.isinf(stop_sec) else stop_sec,
            "spoke_at_barge": stop_sec is not None,
            "answered": holds_answer(normalise(reply.text_since(end_sec)), answers),
        }

    def right_reply(self, sample: Turn) -> Reply:
        return spoken(f"{sample.line.answers[0]} it is what i see", user_end_sec(sample) + 0.3)

    def length_sec(self, sample: Turn) -> float:
        return duration_sec(sample.line) + (0.0 if sample.then is None else duration_sec(sample.then))

    def summarise(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        """TOR: takeover rate, before the user's end (wanted low) and after it (wanted high, but of long turns)."""
        user_sec = sum(r["user_sec"] for r in records)
        answer_sec = [r["answer_sec"] for r in records if r["answer_sec"] is not None]
        stops = [r["stop_sec"] if r["stop_sec"] is not None else np.inf for r in records if r["spoke_at_barge"]]
        return {
            "tor_before_end": mean([r["early_takeover"] for r in records]),
            "tor_after_end": mean([r["takeover"] for r in records]),
            "latency_sec_p50": percentile(answer_sec, 50),
            "latency_sec_p90": percentile(answer_sec, 90),
            "backchannels_per_sec": sum(r["backchannels"] for r in records) / user_sec if user_sec else None,
            "overlap": mean([r["overlap"] for r in records]),
            "spoke_at_barge": mean([r["spoke_at_barge"] for r in records if r["barge_start_sec"] is not None]),
            "stopped": mean([stop <= STOP_WITHIN_SEC for stop in stops]),
            "stop_sec_p50": percentile(stops, 50),
            "answered": mean([r["answered"] for r in records]),
        }


def user_end_sec(sample: Turn) -> float:
    """When the user has said everything."""
    if sample.then is None:
        return told_end_sec(sample.line)
    return duration_sec(sample.line) + JOIN_SEC + told_end_sec(sample.then)
