"""Who answers: a model through the streaming engine, or anything else with the same one method."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from eval.manifest import Line
from mmspeech.config import GenerationConfig
from mmspeech.frames import FRAME_SAMPLES, frames_to_seconds, samples_to_seconds
from mmspeech.serve.engine import CallBatch
from mmspeech.serve.session import ReplyWatch, SpokenWord, TextReader, Transcript
from mmspeech.vision.memory import onset_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from mmspeech.checkpoint import Bundle


@dataclass
class Question:
    """One call to make: the line it comes from, the caller's wave [N] at 24 kHz, and the pictures to show, in order,
    each with its time in seconds of the call. The call lasts until `listen_sec` at least."""

    line: Line
    wave: np.ndarray
    frames: "list[tuple[float, Image]]"
    listen_sec: float = 0.0


@dataclass
class Reply:
    """What came back: words with their times on the clock of the call, and the wave [N] heard since its start."""

    words: list[SpokenWord]
    wave: np.ndarray
    gates: list[float] = field(default_factory=list)

    @property
    def text(self) -> str:
        return " ".join(word.text for word in self.words if word.text)


class Responder(Protocol):
    """Answers questions; `seeds` (one each) decide the sampling."""

    sample_rate_hz: int

    def answer(self, questions: Sequence[Question], *, seeds: Sequence[int]) -> list[Reply]:
        """One reply per question, in order."""
        ...


class ModelResponder:
    """A checkpoint, frame by frame, all questions of a batch in lockstep; shorter calls go on in silence."""

    sample_rate_hz = 24_000

    def __init__(self, bundle: "Bundle", *, sampling: GenerationConfig | None = None, max_sec: float = 12.0):
        self.bundle = bundle
        self.sampling = sampling
        self.max_sec = max_sec

    def answer(self, questions: Sequence[Question], *, seeds: Sequence[int]) -> list[Reply]:
        """Run until every reply has ended (`max_sec` after its question at the latest)."""
        calls = CallBatch(self.bundle, batch_size=len(questions), sampling=self.sampling, seed=seeds)
        rows = [_Row(question, max_sec=self.max_sec) for question in questions]
        reader = TextReader(self.bundle)
        while not all(row.ended for row in rows):
            for index, row in enumerate(rows):
                for at_sec, picture in row.next_pictures():
                    calls.show(picture, index, at_sec=at_sec)
            pcm = torch.stack([row.next_frame() for row in rows])
            result = calls.step(pcm)
            for index, row in enumerate(rows):
                piece = None if result.out is None else reader.piece(int(result.out.text_ids[index]))
                gate = 0.0 if result.out is None else float(result.out.gate[index])
                row.take(result.wave[index], piece=piece, gate=gate, start_sec=result.start_sec[index])
        return [row.reply() for row in rows]


class _Row:
    """One call of the batch."""

    def __init__(self, question: Question, *, max_sec: float):
        wave = torch.from_numpy(np.ascontiguousarray(question.wave, dtype=np.float32))
        self._frames = torch.nn.functional.pad(wave, (0, -len(wave) % FRAME_SAMPLES)).view(-1, FRAME_SAMPLES)
        self._taken = 0
        question_sec = samples_to_seconds(len(wave))
        self._watch = ReplyWatch(question_sec=question_sec, max_sec=max(max_sec, question.listen_sec - question_sec))
        self._listen_sec = question.listen_sec
        self._pictures = list(question.frames)
        self._transcript = Transcript()
        self._heard: list[torch.Tensor] = []
        self._gates: list[float] = []
        self.ended = False

    def next_pictures(self) -> "list[tuple[float, Image]]":
        """The pictures that enter with the next frame, with their times."""
        due = [entry for entry in self._pictures if onset_of(entry[0]) <= self._taken]
        self._pictures = self._pictures[len(due) :]
        return [] if self.ended else due

    def next_frame(self) -> torch.Tensor:
        index, self._taken = self._taken, self._taken + 1
        return self._frames[index] if index < len(self._frames) else torch.zeros(FRAME_SAMPLES)

    def take(self, wave: torch.Tensor, *, piece: str | None, gate: float, start_sec: float) -> None:
        if self.ended:
            return
        self._heard.append(wave)
        self._gates.append(gate)
        if piece is not None:
            self._transcript.add(piece, start_sec=start_sec, gate=gate)
        over = self._watch.add(wave, has_text=piece is not None)
        self.ended = over and frames_to_seconds(len(self._heard)) >= self._listen_sec

    def reply(self) -> Reply:
        return Reply(self._transcript.words, torch.cat(self._heard).numpy(), self._gates)
