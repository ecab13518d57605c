"""Frame by frame generation: the user's codes in, text and the model's own codes out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmspeech.config import GenerationConfig
from mmspeech.lm.ring import VisualRing
from mmspeech.nn.streaming import State
from mmspeech.types import FrameOut, VisualContext
from mmspeech.vision.memory import Memory

if TYPE_CHECKING:
    from mmspeech.lm.model import DuplexLM


@dataclass
class StepTrace:
    """What the last step computed: hidden [B, D], text_logits [B, V], gate [B], layer_gates [B, L], depth_logits
    K x [B, card].

    The text token and the codes drawn from them are returned up to the largest delay later.
    """

    hidden: Tensor
    text_logits: Tensor
    gate: Tensor
    layer_gates: Tensor
    depth_logits: list[Tensor]


class FrameGenerator:
    """B calls in lockstep, one 80 ms frame per `step`. Each row has its own random numbers, so that a call sounds the
    same in any company; `seed` is one number (row b gets seed + b) or one per row. `agree`, when given, sees all ids
    [B] as they are drawn and returns those to go on with: how processes that share the work draw the same.

    A short window of columns holds what is still to be read or returned: codes that arrive or leave with a delay.
    As in the released generator, the user codes of a row's first step are not heard.
    """

    def __init__(
        self,
        lm: "DuplexLM",
        batch_size: int = 1,
        sampling: GenerationConfig | None = None,
        seed: int | Sequence[int] = 0,
        agree: Callable[[Tensor], Tensor] | None = None,
    ):
        self.lm = lm
        self.batch_size = batch_size
        self.agree = agree
        self.sampling = GenerationConfig() if sampling is None else sampling
        self.seeds = [seed + row for row in range(batch_size)] if isinstance(seed, int) else list(seed)
        if len(self.seeds) != batch_size:
            raise ValueError(f"{len(self.seeds)} seeds for {batch_size} rows: give one number, or one per row")
        layout, device = lm.layout, next(lm.parameters()).device
        self.state = lm.init_state(batch_size)
        self.depth_state = lm.depth.init_state(batch_size)
        self.visual: VisualContext | None = None
        self.ring: VisualRing | None = None
        self.trace: StepTrace | None = None
        # Window columns: `now` is read by the next step; the ones before it wait to be returned.
        self.now = max(layout.max_delay - 1, 0)
        self.delays = torch.tensor(layout.delays, device=device)
        self.initial = layout.initial_ids(device)
        self.window = self.initial[None, :, None].repeat(batch_size, 1, self.now + 1 + max(layout.max_delay, 1))
        # Of each column: the mean gate, then one for each gated layer.
        gates = 1 + len(lm.temporal.gated_layers)
        self.gates = torch.zeros(batch_size, self.window.shape[2], gates, device=device)
        own = range(layout.num_streams)[: layout.own.stop]
        self.own_rows = torch.tensor(own, device=device)
        self.user_rows = torch.arange(layout.user.start, layout.user.stop, device=device)
        self.returned = self.now + 1 - layout.max_delay + self.delays[self.own_rows]
        self.text_returned = int(self.returned[0])
        self.steps = [0] * batch_size
        text_noise = min(self.sampling.text_top_k or layout.text_card, layout.text_card)
        audio_noise = min(self.sampling.audio_top_k or layout.audio_card, layout.audio_card)
        self.noise = torch.ones(batch_size, text_noise + layout.num_codebooks * audio_noise, device=device)
        self.noise_parts = [text_noise] + [audio_noise] * layout.num_codebooks
        self.generators = [torch.Generator(device) for _ in range(batch_size)]
        self.reset()

    def see(self, visual: VisualContext | None) -> None:
        """Look at `visual` from the next step on, whatever was shown before; None: at nothing.

        It is all that a call will ever see, known beforehand; its onsets count the steps of each row.
        """
        self._empty_ring()
        self.visual = visual

    @torch.no_grad()
    def show(self, frame: VisualContext, rows: Sequence[int]) -> None:
        """A new picture for each of `rows`, seen from the next step on beside the last ones the model remembers.

        frame: what the model's `see` made of them, [R, S, D]; its onsets count only where they are NEVER.
        """
        if self.ring is None:
            self.ring = VisualRing(frame, batch_size=self.batch_size, memory=Memory.of(self.lm.config.fusion))
        self.ring.add(frame, rows, self.state.offset[torch.as_tensor(rows, device=self.state.offset.device)])
        self.visual = self.ring.context

    def forget(self, rows: Tensor | None = None) -> None:
        """Whatever was shown to all rows, or to those where `rows` [B] bool is true, is not seen any more."""
        self._empty_ring(rows)

    def _empty_ring(self, rows: Tensor | None = None) -> None:
        if self.ring is not None:
            self.ring.forget(rows)

    @property
    def states(self) -> list[State]:
        """What is remembered between steps, of both transformers and of what was shown."""
        return [self.state, self.depth_state, *([] if self.ring is None else [self.ring.state])]

    def reset(self, rows: Tensor | None = None, *, seeds: Sequence[int] | None = None) -> None:
        """Start over: all rows, or those where `rows` [B] bool is true; `seeds` (one per row of the batch) for them.

        What was shown to them is forgotten; what was given to `see` stays.
        """
        self.seeds = self.seeds if seeds is None else list(seeds)
        chosen = range(self.batch_size) if rows is None else rows.nonzero()[:, 0].tolist()
        for row in chosen:
            self.generators[row].manual_seed(self.seeds[row])
            self.steps[row] = 0
            self.window[row] = self.initial[:, None]
            self.gates[row] = 0
        self.state.reset(rows)
        self._empty_ring(rows)

    @torch.no_grad()
    def step(self, user_codes: Tensor, *, text_ids: Tensor | None = None) -> FrameOut | None:
        """Advance by one frame: user_codes [B, K] (-1: nothing) -> the next whole frame of the model.

        `text_ids` [B] forces the text token of this step where it is not negative (prompts). None is returned until a
        row has a whole frame, which takes the largest delay; rows that have none yet hold -1 in text_ids and codes.
        """
        layout = self.lm.layout
        if user_codes.shape != (self.batch_size, layout.num_codebooks):
            raise ValueError(
                f"user codes are {list(user_codes.shape)}, expected [{self.batch_size}, {layout.num_codebooks}]"
            )
        self._turn_page()
        self.window[:, self.user_rows, self.now + self.delays[self.user_rows]] = user_codes
        column = torch.where(self.state.offset[:, None] <= self.delays, self.initial, self.window[:, :, self.now])
        self._draw_noise()
        out = self.lm(column[:, :, None], visual=self.visual, state=self.state)
        text = self._choose(0, out.text_logits[:, 0])
        if text_ids is not None:
            text = torch.where(text_ids >= 0, text_ids, text)
        codes, depth_logits = self.lm.depth.sample(
            out.hidden[:, 0], text, lambda k, logits: self._choose(k + 1, logits), state=self.depth_state
        )
        gate, layer_gates = out.gate[:, 0], out.layer_gates[:, 0]
        self.trace = StepTrace(out.hidden[:, 0], out.text_logits[:, 0], gate, layer_gates, depth_logits)
        self.window[:, 0, self.now + 1] = text
        self.window[:, layout.own, self.now + 1] = codes
        self.gates[:, self.now + 1] = torch.cat([gate[:, None], layer_gates], dim=1)
        self.steps = [count + 1 for count in self.steps]
        return self._whole_frame()

    def _turn_page(self) -> None:
        self.window[:, :, :-1] = self.window[:, :, 1:].clone()
        self.gates[:, :-1] = self.gates[:, 1:].clone()

    def _whole_frame(self) -> FrameOut | None:
        frames = [count - 1 - self.lm.layout.max_delay for count in self.steps]
        if max(frames) < 0:
            return None
        ids = self.window[:, self.own_rows, self.returned]
        if min(frames) < 0:
            ids[[row for row, frame in enumerate(frames) if frame < 0]] = -1
        # Copies: the window moves on under what was returned.
        gates = self.gates[:, self.text_returned].clone()
        return FrameOut(max(frames), ids[:, 0], ids[:, 1:], gates[:, 0], gates[:, 1:])

    def _draw_noise(self) -> None:
        if self.sampling.text_temperature > 0 or self.sampling.audio_temperature > 0:
            for row, generator in zip(self.noise, self.generators, strict=True):
                row.exponential_(generator=generator)

    def _choose(self, part: int, logits: Tensor) -> Tensor:
        """One id per row from logits [B, V]: part 0 is text, part 1 + k codebook k."""
        ids = self._draw(part, logits)
        return ids if self.agree is None else self.agree(ids)

    def _draw(self, part: int, logits: Tensor) -> Tensor:
        text = part == 0
        temperature = self.sampling.text_temperature if text else self.sampling.audio_temperature
        if temperature == 0:
            return logits.argmax(dim=-1)
        start = sum(self.noise_parts[:part])
        noise = self.noise[:, start : start + self.noise_parts[part]]
        best, ids = logits.float().topk(noise.shape[1], dim=-1)
        # The largest of p / Exp(1) is a draw from p.
        pick = (torch.softmax(best / temperature, dim=-1) / noise).argmax(dim=-1, keepdim=True)
        return ids.gather(1, pick)[:, 0]
