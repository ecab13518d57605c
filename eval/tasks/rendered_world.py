"""The rendered world: pictures, clips, swaps, commentary, small talk, interruptions, each sighted and misled."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.manifest import Line
from eval.recognise import Ears, open_ears
from eval.sights import Sights
from eval.spoken import (
    duration_sec,
    expected_sentences,
    question_lines,
    right_spoken,
    score_spoken,
    spoken_prompt,
    summarise_spoken,
)
from eval.task import Pictures, Prompt, Reply, Settings, Task

if TYPE_CHECKING:
    from mmspeech.checkpoint import Bundle

# The sets that `data_prep questions` makes, and what else they are shown. Clips apart from pictures.
STILLS: dict[str, tuple[Pictures, ...]] = {
    "known": ("given", "none", "swapped"),
    "unseen": ("given",),
    "talk": ("given",),
    "pause": ("given",),
    "barge": ("given",),
}
CLIPS: dict[str, tuple[Pictures, ...]] = {
    "motion": ("given", "none", "swapped", "shuffled", "frozen"),
    "change": ("given", "none", "shuffled"),
    "present": ("given", "frozen"),
    "past": ("given", "none"),
    "swap": ("given",),
    "commentary": ("given", "none"),
}
SETS = STILLS | CLIPS | {f"{name}_unseen": ("given",) for name in CLIPS}


def build(settings: Settings, bundle: "Bundle | None") -> "RenderedWorld":
    """The task over all sets that are in DATA/questions."""
    lines, files = question_lines(settings, SETS)
    every = [line for own in lines.values() for line in own]
    return RenderedWorld(lines, files, settings.seed, open_ears(settings, expected_sentences(every)))


@dataclass(frozen=True)
class Shown:
    """A line, and what it is shown."""

    line: Line
    set: str
    pictures: Pictures

    @property
    def id(self) -> str:
        return f"{self.kind}/{self.line.id}"

    @property
    def kind(self) -> str:
        return self.set if self.pictures == "given" else f"{self.set}, {self.pictures}"

    @property
    def voice(self) -> str:
        return self.line.voice


class RenderedWorld(Task):
    """Kinds are the sets; those shown something else than they ask about tell what answers come from. The mean over
    all kinds means nothing."""

    name, version = "rendered_world", 1

    def __init__(self, lines: dict[str, list[Line]], files: list[Path], seed: int, ears: Ears):
        self.files = files
        self._ears = ears
        self._sights: dict[tuple[str, Pictures], Sights] = {}
        self.samples = []
        for name, own in lines.items():
            for pictures in SETS[name]:
                self._sights[name, pictures] = Sights(own, pictures=pictures, seed=seed)
                self.samples += [Shown(line, name, pictures) for line in own]

    def prompt(self, sample: Shown) -> Prompt:
        return spoken_prompt(sample.line, self._sights[sample.set, sample.pictures])

    def score(self, sample: Shown, prompt: Prompt, reply: Reply) -> dict[str, Any]:
        paths = self._sights[sample.set, sample.pictures].paths(sample.line)
        record = score_spoken(sample.line, prompt, reply, self._ears)
        about = sample.line.kind if sample.pictures == "given" else f"{sample.line.kind}, {sample.pictures}"
        return record | {"about": about, "seen": [path.name for path in paths]}

    def right_reply(self, sample: Shown) -> Reply:
        return right_spoken(sample.line)

    def question_of(self, sample: Shown) -> str:
        return sample.line.kind

    def length_sec(self, sample: Shown) -> float:
        return duration_sec(sample.line)

    def summarise(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        return summarise_spoken(records)
