"""Speaking scripts: a batch of them at once, frame by frame, with guidance."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmspeech.config import GenerationConfig
from mmspeech.lm.conditions import Conditions
from mmspeech.lm.sampling import Sampler
from mmspeech.lm.speaker import Speaker
from mmspeech.tokens.script import NOTHING, ScriptReader

FINAL_FRAMES = 4  # spoken behind the last word
MAX_FRAMES = 30_000  # 40 minutes
_UNGIVEN = -2


@dataclass
class SpeakJob:
    """What a batch of B scripts needs. conditions: of B rows, or of 2 B with guidance (the second half says nothing).

    prefixes: of each row the codes [K, T] of a voice that speaks first, as if it had been this one.
    guidance: how far from what the model would say without the text and the conditions, 1: not at all.
    num_codebooks: how many it makes; the others stay silent.
    """

    readers: Sequence[ScriptReader]
    conditions: Conditions
    sampling: GenerationConfig
    seeds: Sequence[int]
    prefixes: Sequence[Tensor] | None = None
    guidance: float = 1.0
    num_codebooks: int | None = None


def speak(model: Speaker, job: SpeakJob) -> Iterator[Tensor]:
    """Codes [B, K] of one frame after the other, until all scripts have been spoken. K: `job.num_codebooks`.

    Frame n is what sounds while the text of frame n is read; a row that has come to its end (its reader's `end_frame`)
    goes on with whatever the model makes of silence. Raises ValueError when rows and scripts differ in number.
    """
    run = _Run(model, job)
    for step in range(MAX_FRAMES):
        ends = [reader.end_frame for reader in job.readers]
        if None not in ends and step >= max(ends) + run.lead_frames + FINAL_FRAMES:
            return
        run.step(step)
        if step - run.max_delay >= run.lead_frames:
            yield run.whole_frame()


class _Run:
    """The streams of a batch. made: the text and codes [B, 1 + K] that each of the last steps made."""

    def __init__(self, model: Speaker, job: SpeakJob):
        config, self.model, self.job = model.config, model, job
        self.batch_size, self.is_guided = len(job.readers), job.guidance != 1.0
        rows = self.batch_size * (1 + self.is_guided)
        for part in (job.conditions.added, job.conditions.source):
            if part is not None and len(part) != rows:
                raise ValueError(f"conditions have {len(part)} rows, expected {rows} for {self.batch_size} scripts")
        self.count = config.num_codebooks if job.num_codebooks is None else job.num_codebooks
        self.lead_frames, self.max_delay = config.audio_delay_frames, max(config.delays)
        self.delays = torch.tensor((0, *config.delays), device=model.device)
        self.state, self.seen = model.init_state(rows), model.look(job.conditions)
        self.sampler = Sampler(
            [job.sampling] * self.batch_size, job.seeds, text_card=config.text_out_card, audio_card=config.audio_card,
            num_codebooks=self.count, device=model.device,
        )  # fmt: skip
        self.prefixes = [self._delayed(prefix) for prefix in job.prefixes or ()]
        self.made: deque[Tensor] = deque(maxlen=self.max_delay + 1)

    @torch.no_grad()
    def step(self, step: int) -> None:
        """Read the column of this step, decide the text of the next, and make its codes."""
        column = self._column(step)
        hidden, logits = self.model(column[:, :, None], self.job.conditions, seen=self.seen, state=self.state.temporal)
        self.sampler.renew(self.batch_size)
        wishes = self.sampler.choose(0, logits[: self.batch_size, 0]).tolist()
        text = torch.tensor([self._text(row, step, wish) for row, wish in enumerate(wishes)], device=self.model.device)
        codes = column.new_full((self.batch_size, self.model.config.num_codebooks), NOTHING)
        if step >= self.lead_frames:
            codes[:, : self.count] = self._codes(hidden[:, 0], text)
            codes[:, step < self.delays[1:] + self.lead_frames] = NOTHING
        for row, prefix in enumerate(self.prefixes):
            if step < prefix.shape[1]:
                codes[row] = torch.where(prefix[:, step] == _UNGIVEN, codes[row], prefix[:, step])
        self.made.append(torch.cat([text[:, None], codes], dim=1))

    def whole_frame(self) -> Tensor:
        """Codes [B, count] of the frame whose last codebook the last step made."""
        delays = self.model.config.delays[: self.count]
        made = [self.made[delay - self.max_delay - 1][:, 1 + k] for k, delay in enumerate(delays)]
        return torch.stack(made, dim=1)

    def _column(self, step: int) -> Tensor:
        """[B, 1 + K], and with guidance the same again without text and prefix."""
        initial = self.model.initial_ids().expand(self.batch_size, -1)
        column = torch.where(step <= self.delays, initial, self.made[-1]) if step else initial
        if not self.is_guided:
            return column
        return torch.cat([column, self._unguided(column, step)])

    def _unguided(self, column: Tensor, step: int) -> Tensor:
        blank = column.clone()
        given = step > self.delays
        blank[:, 0] = torch.where(given[0], NOTHING, blank[:, 0])
        for row, prefix in enumerate(self.job.prefixes or ()):
            is_prefix = step <= self.delays + prefix.shape[1] + self.lead_frames
            blank[row] = torch.where(is_prefix & given, NOTHING, blank[row])
        return blank

    def _text(self, row: int, step: int, wish: int) -> int:
        """While a prefix lasts nothing is read."""
        if self.job.prefixes and step < self.job.prefixes[row].shape[1]:
            return NOTHING
        return self.job.readers[row].next_id(wish, step)

    def _codes(self, hidden: Tensor, text: Tensor) -> Tensor:
        """[B, count]"""
        return self.model.depth.sample(
            hidden, self._doubled(text), self._chooser(), state=self.state.depth, count=self.count
        )[: self.batch_size]

    def _chooser(self) -> Callable[[int, Tensor], Tensor]:
        def choose(k: int, logits: Tensor) -> Tensor:
            if self.is_guided:
                told, untold = logits.chunk(2)
                logits = untold + self.job.guidance * (told - untold)
            return self._doubled(self.sampler.choose(k + 1, logits))

        return choose

    def _doubled(self, ids: Tensor) -> Tensor:
        return ids.repeat(2) if self.is_guided else ids

    def _delayed(self, prefix: Tensor) -> Tensor:
        """[K, T] -> [K, T + its largest delay], each codebook as late as it is spoken; _UNGIVEN where it is not."""
        delays = [delay + self.lead_frames for delay in self.model.config.delays]
        out = prefix.new_full((len(prefix), prefix.shape[1] + max(delays)), _UNGIVEN)
        for codes, late, delay in zip(prefix, out, delays, strict=True):
            late[delay : delay + len(codes)] = codes
        return out.to(self.model.device)
