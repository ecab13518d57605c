"""Spoken questions of a manifest of your own (--manifest), with or without something to see."""

from typing import TYPE_CHECKING, Any

from eval.manifest import Line, read_lines
from eval.recognise import Ears, open_ears
from eval.sights import Sights
from eval.spoken import (
    duration_sec,
    expected_sentences,
    right_spoken,
    score_spoken,
    spoken_prompt,
    summarise_spoken,
)
from eval.task import MissingDataError, Prompt, Reply, Settings, Task

if TYPE_CHECKING:
    from mmspeech.checkpoint import Bundle


def build(settings: Settings, bundle: "Bundle | None") -> "SpokenVqa":
    """The task over the manifest of `settings`."""
    if settings.manifest is None:
        raise MissingDataError("give a file of recorded questions as --manifest (eval/manifest.py says what is in it)")
    lines = read_lines(settings.manifest, Line, limit=settings.limit)
    return SpokenVqa(lines, settings, open_ears(settings, expected_sentences(lines)))


class SpokenVqa(Task):
    """Score: the answer is right (see eval.spoken.score_spoken)."""

    name, version = "spoken_vqa", 2

    def __init__(self, lines: list[Line], settings: Settings, ears: Ears):
        self.samples = lines
        self.files = [settings.manifest]
        self._ears = ears
        self._sights = Sights(lines, pictures=settings.pictures, seed=settings.seed)

    def prompt(self, sample: Line) -> Prompt:
        return spoken_prompt(sample, self._sights)

    def score(self, sample: Line, prompt: Prompt, reply: Reply) -> dict[str, Any]:
        seen = [path.name for path in self._sights.paths(sample)]
        return score_spoken(sample, prompt, reply, self._ears) | {"seen": seen}

    def right_reply(self, sample: Line) -> Reply:
        return right_spoken(sample)

    def length_sec(self, sample: Line) -> float:
        return duration_sec(sample)

    def summarise(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        return summarise_spoken(records)
