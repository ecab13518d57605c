"""Responders that are no model: they know the answers, and show that the harness can tell good from bad."""

import random
from collections.abc import Sequence
from typing import Any

from eval.task import Prompt, Reply, Task, later, spoken
from mmspeech.frames import SAMPLE_RATE_HZ

LATE_SEC = 4.0
NAMES = ("oracle", "blind", "late", "silent")


class Scripted:
    """`oracle` says what is right; `blind` what is right of any sample with the same question, drawn at random;
    `late` what is right, LATE_SEC later; `silent` nothing. For one task, whose samples it knows."""

    def __init__(self, name: str, task: Task):
        if name not in NAMES:
            raise ValueError(f"scripted responder {name!r}: expected one of {', '.join(NAMES)}")
        self._name = name
        self._task = task

    def answer(self, samples: Sequence[Any], prompts: Sequence[Prompt], *, seeds: Sequence[int]) -> list[Reply]:
        return [self._reply(sample, prompt, seed) for sample, prompt, seed in zip(samples, prompts, seeds, strict=True)]

    def _reply(self, sample: Any, prompt: Prompt, seed: int) -> Reply:
        if self._name == "silent":
            empty = spoken("", 0.0, until_sec=len(prompt.wave) / SAMPLE_RATE_HZ)
            return Reply(wave=empty.wave, gates=empty.gates, option_scores=[0.0] * len(prompt.options))
        if self._name == "blind":
            return self._task.right_reply(self._other(sample, seed))
        right = self._task.right_reply(sample)
        return right if self._name == "oracle" else later(right, LATE_SEC)

    def _other(self, sample: Any, seed: int) -> Any:
        """The sample itself is among them: to guess is to be right now and then."""
        question = self._task.question_of(sample)
        alike = [other for other in self._task.samples if self._task.question_of(other) == question]
        return random.Random(seed).choice(alike)
