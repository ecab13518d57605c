"""The contract of a task, and what every task is built from.

A task is one file in eval/tasks with a `build`. It says what its samples are, how each is put to a model (`prompt`) and
what a reply is worth (`score`); it never meets the model. What answers is a Responder (eval/responder.py).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np

from mmspeech.config import ConfigError, GenerationConfig
from mmspeech.frames import FRAME_SAMPLES, SAMPLE_RATE_HZ, seconds_to_frames
from mmspeech.serve.session import SpokenWord

if TYPE_CHECKING:
    from PIL.Image import Image

    from mmspeech.checkpoint import Bundle

Pictures = Literal["given", "none", "swapped", "shuffled", "frozen"]


class MissingDataError(ConfigError):
    """Local data are not there. The message says which files, where they come from, and under which licence."""


@dataclass(frozen=True)
class Settings:
    """What the command line asks of every task.

    `data`: the folder with a folder for each task's data. `manifest`: for tasks that read one file of the user's.
    `limit`: so many samples of each kind the task has at most, the first ones. `greedy`: always the
    likeliest text and codes, else as the checkpoint has it.
    `pictures`: what the lines of a manifest are shown (eval.sights.Sights). `sentences`: what the model may say
    beside what the samples expect; the closed-world recogniser knows only these words. `recogniser`: "sphinx" (closed
    world), "none", or "whisper:NAME_OR_DIR".
    """

    data: Path = Path("data")
    manifest: Path | None = None
    limit: int | None = None
    seed: int = 0
    greedy: bool = False
    pictures: Pictures = "given"
    sentences: tuple[str, ...] | None = None
    recogniser: str = "sphinx"
    judge: str = "rules"

    def sampling(self, bundle: "Bundle") -> GenerationConfig:
        """How this checkpoint draws its replies."""
        own = bundle.config.generation
        return own.greedy() if self.greedy else own


@dataclass
class Prompt:
    """A sample as a model meets it.

    wave: the caller [N] float32 at 24 kHz; pictures: (seconds of the call, picture), in order. The call lasts until
    `listen_sec` at least. `text` is put into the model's own text stream, without sound, before the call begins.
    With `options` there is no call at all: the model is asked how likely each of them is after `text`.
    """

    wave: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    pictures: "list[tuple[float, Image]]" = field(default_factory=list)
    listen_sec: float = 0.0
    text: str = ""
    options: tuple[str, ...] = ()


@dataclass
class Reply:
    """What came back: words with their times on the clock of the call, the wave [N] float32 heard since its start, the
    gate of each frame; or, of a prompt with options, the log-probability (natural, summed over its tokens) of each."""

    words: list[SpokenWord] = field(default_factory=list)
    wave: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    gates: list[float] = field(default_factory=list)
    option_scores: list[float] = field(default_factory=list)

    @property
    def text(self) -> str:
        return self.text_since(0.0)

    def text_since(self, moment_sec: float) -> str:
        """What was said from that second of the call on."""
        return " ".join(word.text for word in self.words if word.text and word.start_sec >= moment_sec)

    def first_word_after(self, moment_sec: float) -> float | None:
        """Seconds from that moment to the first word since, None where there is none."""
        return next((word.start_sec - moment_sec for word in self.words if word.start_sec >= moment_sec), None)

    def told_words(self) -> list[dict[str, Any]]:
        """The words as records keep them."""
        return [{"text": w.text, "start_sec": round(w.start_sec, 3), "gate": w.gate} for w in self.words]


class Responder(Protocol):
    """Answers prompts. `seeds` (one each) decide the sampling; a reply never depends on the rest of the batch."""

    def answer(self, samples: Sequence["Sample"], prompts: Sequence[Prompt], *, seeds: Sequence[int]) -> list[Reply]:
        """One reply per prompt, in order. Only scripted responders look at `samples`."""
        ...


class Sample(Protocol):
    """Something to ask. Whatever else it holds is between the methods of its task."""

    id: str
    kind: str
    voice: str


class Task(ABC):
    """One kind of measurement. `version` rises whenever its numbers change their meaning.

    `samples`: in order, their ids differ. `files`: what they were read from; their hashes are the data's revision.
    `alone`: it measures time, so nothing else may run beside it.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    alone: ClassVar[bool] = False
    samples: list[Any]
    files: list[Path]

    @abstractmethod
    def prompt(self, sample: Any) -> Prompt:
        """Read the files of a sample; a ConfigError counts the sample as failed, with its message."""

    @abstractmethod
    def score(self, sample: Any, prompt: Prompt, reply: Reply) -> dict[str, Any]:
        """What a reply is worth: JSON values only. `score` is a number from 0 to 1 (it may be more where the measure
        has no upper end, such as CIDEr), or None when this sample cannot tell; harness-wide names: `question`,
        `answers`, `text`, `words`, `heard`, `seen` (files shown)."""

    @abstractmethod
    def right_reply(self, sample: Any) -> Reply:
        """A reply that deserves the full score: what the scripted oracle says (`spoken` makes one of words)."""

    def question_of(self, sample: Any) -> str:
        """Samples of one name have the same answers to guess among."""
        return sample.kind

    def length_sec(self, sample: Any) -> float:
        """About how long its call is: those alike are asked together."""
        return 0.0

    def summarise(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        """Numbers of a group of records beside their mean score (of all, of one kind, of one voice)."""
        return {}

    def run(
        self, samples: list[Any], prompts: list[Prompt], responder: Responder, *, seeds: list[int]
    ) -> list[dict[str, Any]]:
        """Measure a batch: one record each. For tasks that ask nobody, or ask twice, to do otherwise."""
        replies = responder.answer(samples, prompts, seeds=seeds)
        return [self.score(*whole) for whole in zip(samples, prompts, replies, strict=True)]


class TaskBuilder(Protocol):
    """Every module in eval/tasks has such a `build`. MissingDataError when its data are not there. `bundle` None: a
    scripted responder answers."""

    def __call__(self, settings: Settings, bundle: "Bundle | None") -> Task: ...


def later(reply: Reply, by_sec: float) -> Reply:
    """The same reply, with silence before it."""
    words = [replace(word, start_sec=word.start_sec + by_sec) for word in reply.words]
    silence = np.zeros(int(by_sec * SAMPLE_RATE_HZ), np.float32)
    gates = [0.0] * seconds_to_frames(by_sec) + reply.gates
    return Reply(words, np.concatenate([silence, reply.wave]), gates, reply.option_scores)


def spoken(text: str, start_sec: float, *, word_sec: float = 0.3, until_sec: float = 0.0) -> Reply:
    """A reply of words from `start_sec` on, a tone each; its wave ends a second later, or at `until_sec`."""
    said = text.split()
    words = [SpokenWord(word, start_sec + number * word_sec, 0.5) for number, word in enumerate(said)]
    end_sec = start_sec + len(said) * word_sec
    wave = np.zeros(int(max(end_sec + 1.0, until_sec) * SAMPLE_RATE_HZ), np.float32)
    sounding = slice(int(start_sec * SAMPLE_RATE_HZ), int(end_sec * SAMPLE_RATE_HZ))
    times_sec = np.arange(len(wave[sounding])) / SAMPLE_RATE_HZ
    wave[sounding] = 0.1 * np.sin(2 * np.pi * 220.0 * times_sec)
    return Reply(words, wave, [0.5] * (len(wave) // FRAME_SAMPLES))
