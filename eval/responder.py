"""Who answers: a model through the streaming engine, frame by frame."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from eval.options import option_scores
from eval.task import Prompt, Reply
from mmspeech.audio.waveform import in_frames
from mmspeech.config import GenerationConfig
from mmspeech.frames import FRAME_RATE_HZ, FRAME_SAMPLES, frames_to_seconds, samples_to_seconds
from mmspeech.serve.engine import CallBatch, CallOut
from mmspeech.serve.session import ReplyWatch, TextReader, Transcript
from mmspeech.vision.memory import onset_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from mmspeech.checkpoint import Bundle


class ModelResponder:
    """A checkpoint, frame by frame, all prompts of a batch in lockstep; shorter calls go on in silence.

    `paced`: no faster than people talk.
    """

    version = 1

    def __init__(
        self,
        bundle: "Bundle",
        *,
        sampling: GenerationConfig | None = None,
        max_sec: float = 12.0,
        paced: bool = False,
    ):
        self.bundle = bundle
        self.sampling = sampling
        self.max_sec = max_sec
        self.paced = paced

    def answer(self, samples: Sequence[Any], prompts: Sequence[Prompt], *, seeds: Sequence[int]) -> list[Reply]:
        """Run until every reply has ended (`max_sec` after its question at the latest)."""
        replies: dict[int, Reply] = {}
        for number, prompt in enumerate(prompts):
            if prompt.options:
                replies[number] = Reply(option_scores=option_scores(self.bundle, prompt))
        calls = [number for number in range(len(prompts)) if number not in replies]
        if calls:
            spoken = self._call([prompts[number] for number in calls], [seeds[number] for number in calls])
            replies |= dict(zip(calls, spoken, strict=True))
        return [replies[number] for number in range(len(prompts))]

    def _call(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> list[Reply]:
        calls = CallBatch(self.bundle, batch_size=len(prompts), sampling=self.sampling, seed=seeds)
        rows = [_Row(prompt, self.bundle, max_sec=self.max_sec) for prompt in prompts]
        reader = TextReader(self.bundle)
        began = time.monotonic()
        steps = 0
        while not all(row.ended for row in rows):
            if self.paced:
                time.sleep(max(0.0, began + steps / FRAME_RATE_HZ - time.monotonic()))
            for index, row in enumerate(rows):
                for at_sec, picture in row.next_pictures():
                    calls.show(picture, index, at_sec=at_sec)
            forced = torch.tensor([row.next_text() for row in rows])
            result = calls.step(torch.stack([row.next_frame() for row in rows]), text_ids=forced)
            steps += 1
            for index, row in enumerate(rows):
                piece = None if result.out is None else reader.piece(int(result.out.text_ids[index]))
                gate = 0.0 if result.out is None else float(result.out.gate[index])
                row.take(result, index, piece=piece, gate=gate)
        return [row.reply() for row in rows]


class _Row:
    """One call of the batch. A text prompt comes before the call: its frames are not part of the reply."""

    def __init__(self, prompt: Prompt, bundle: "Bundle", *, max_sec: float):
        self._text = [] if not prompt.text else bundle.tokenizer.encode(prompt.text)
        lead = len(self._text)
        wave = torch.from_numpy(np.ascontiguousarray(prompt.wave, dtype=np.float32))
        self._frames = torch.cat([torch.zeros(lead, FRAME_SAMPLES), in_frames(wave)])
        self._lead, self._lead_sec = lead, frames_to_seconds(lead)
        self._taken = self._given = 0
        question_sec = samples_to_seconds(len(wave))
        self._watch = ReplyWatch(question_sec=question_sec, max_sec=max(max_sec, prompt.listen_sec - question_sec))
        self._listen_sec = prompt.listen_sec
        # What is seen from the start is seen while the text prompt is read, too.
        self._pictures = [(at_sec + self._lead_sec if at_sec > 0 else 0.0, seen) for at_sec, seen in prompt.pictures]
        self._transcript = Transcript()
        self._heard: list[torch.Tensor] = []
        self._gates: list[float] = []
        self.ended = False

    def next_pictures(self) -> "list[tuple[float, Image]]":
        """The pictures that enter with the next frame, with their times."""
        due = [entry for entry in self._pictures if onset_of(entry[0]) <= self._taken]
        self._pictures = self._pictures[len(due) :]
        return [] if self.ended else due

    def next_text(self) -> int:
        """The id that is forced upon the text stream in the next frame, -1 for none."""
        return self._text[self._taken] if self._taken < self._lead else -1

    def next_frame(self) -> torch.Tensor:
        index, self._taken = self._taken, self._taken + 1
        return self._frames[index] if index < len(self._frames) else torch.zeros(FRAME_SAMPLES)

    def take(self, result: CallOut, index: int, *, piece: str | None, gate: float) -> None:
        self._given += 1
        if self.ended or self._given <= self._lead:
            return
        wave = result.wave[index]
        self._heard.append(wave)
        self._gates.append(gate)
        if result.frames[index] < self._lead:  # the prompt itself comes back first
            piece = None
        if piece is not None:
            self._transcript.add(piece, start_sec=result.start_sec[index] - self._lead_sec, gate=gate)
        over = self._watch.add(wave, has_text=piece is not None)
        self.ended = over and frames_to_seconds(len(self._heard)) >= self._listen_sec

    def reply(self) -> Reply:
        # As 16-bit samples, as a file keeps them: a reply read back is the reply.
        wave = (torch.cat(self._heard).clamp(-1, 1) * 32767).round() / 32767
        return Reply(self._transcript.words, wave.numpy().astype(np.float32), self._gates)
