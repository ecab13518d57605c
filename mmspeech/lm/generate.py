"""Frame by frame generation: the user's codes in, text and the model's own codes out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmspeech.config import GenerationConfig
from mmspeech.lm.depth import DepthState
from mmspeech.lm.ring import VisualRing
from mmspeech.lm.sampling import Sampler
from mmspeech.nn.cuda_graph import Record, Recordings
from mmspeech.nn.streaming import State
from mmspeech.nn.transformer import TransformerState
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


@dataclass
class Rows(State):
    """What B calls are in the middle of: the transformers' states, and a short window of columns [B, 1 + 2K, C] that
    holds what is still to be read or returned. gates [B, C, 1 + L]: of each column the mean gate and each layer's."""

    temporal: TransformerState
    depth: DepthState
    window: Tensor
    gates: Tensor


class FrameGenerator:
    """B calls in lockstep, one 80 ms frame per `step`. Each row has its own random numbers, so that a call sounds the
    same in any company; `seed` and `sampling` are one for all (row b gets seed + b) or one per row. `agree`, when
    given, sees all ids [B] as they are drawn and returns those to go on with: how processes that share the work draw
    the same. `record`, when given, lets a step be launched as a whole (see mmspeech.nn.cuda_graph).

    As in the released generator, the user codes of a row's first step are not heard.
    """

    def __init__(
        self,
        lm: "DuplexLM",
        batch_size: int = 1,
        sampling: GenerationConfig | Sequence[GenerationConfig] | None = None,
        seed: int | Sequence[int] = 0,
        agree: Callable[[Tensor], Tensor] | None = None,
        record: Record | None = None,
    ):
        if agree is not None and record is not None:
            raise ValueError(
                "processes that agree on what they draw can not launch a step as a whole; leave record out"
            )
        self.lm = lm
        self.batch_size = batch_size
        self.agree = agree
        sampling = GenerationConfig() if sampling is None else sampling
        samplings = [sampling] * batch_size if isinstance(sampling, GenerationConfig) else list(sampling)
        seeds = [seed + row for row in range(batch_size)] if isinstance(seed, int) else list(seed)
        for what, found in (("seeds", seeds), ("sampling settings", samplings)):
            if len(found) != batch_size:
                raise ValueError(f"{len(found)} {what} for {batch_size} rows: give one, or one per row")
        layout, device = lm.layout, next(lm.parameters()).device
        self.sampler = Sampler(
            samplings, seeds, text_card=layout.text_card, audio_card=layout.audio_card,
            num_codebooks=layout.num_codebooks, text_pad_id=lm.config.text_pad_id, device=device,
        )  # fmt: skip
        self._recordings = Recordings(record)
        self.visual: VisualContext | None = None
        self.ring: VisualRing | None = None
        self.trace: StepTrace | None = None
        # Window columns: `now` is read by the next step; the ones before it wait to be returned.
        self.now = max(layout.max_delay - 1, 0)
        self.delays = torch.tensor(layout.delays, device=device)
        self.initial = layout.initial_ids(device)
        window = self.initial[None, :, None].repeat(batch_size, 1, self.now + 1 + max(layout.max_delay, 1))
        gates = torch.zeros(batch_size, window.shape[2], 1 + len(lm.temporal.gated_layers), device=device)
        self.rows = Rows(lm.init_state(batch_size), lm.depth.init_state(batch_size), window, gates)
        self._first_rows = {batch_size: self.rows}
        own = range(layout.num_streams)[: layout.own.stop]
        self.own_rows = torch.tensor(own, device=device)
        self.user_rows = torch.arange(layout.user.start, layout.user.stop, device=device)
        self.returned = self.now + 1 - layout.max_delay + self.delays[self.own_rows]
        self.text_returned = self.now + 1 - layout.max_delay + layout.delays[0]
        self.steps = [0] * batch_size
        self.reset()

    def see(self, visual: VisualContext | None) -> None:
        """Look at `visual` from the next step on, whatever was shown before; None: at nothing.

        It is all that a call will ever see, known beforehand; its onsets count the steps of each row.
        """
        self._empty_ring()
        self._recordings.clear()
        self.visual = visual

    @torch.no_grad()
    def show(self, frame: VisualContext, rows: Sequence[int]) -> None:
        """A new picture for each of `rows`, seen from the next step on beside the last ones the model remembers.

        frame: what the model's `see` made of them, [R, S, D]; its onsets count only where they are NEVER.
        """
        if self.ring is None:
            self.ring = VisualRing(frame, batch_size=self.batch_size, memory=Memory.of(self.lm.config.fusion))
        offset = self.rows.temporal.offset
        self.ring.add(frame, rows, offset[torch.as_tensor(rows, device=offset.device)])
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
        return [self.rows, *([] if self.ring is None else [self.ring.state])]

    def reset(
        self,
        rows: Tensor | None = None,
        *,
        seeds: Sequence[int] | None = None,
        samplings: Sequence[GenerationConfig] | None = None,
    ) -> None:
        """Start over: all rows, or those where `rows` [B] bool is true; `seeds` and `samplings` (one per row of the
        batch) for them.

        What was shown to them is forgotten; what was given to `see` stays.
        """
        chosen = range(self.batch_size) if rows is None else rows.nonzero()[:, 0].tolist()
        self.rows.reset(rows)
        for row in chosen:
            self.sampler.reset(
                row, seed=None if seeds is None else seeds[row], settings=None if samplings is None else samplings[row]
            )
            self.steps[row] = 0
            self.rows.window[row] = self.initial[:, None]
        self._empty_ring(rows)

    @torch.inference_mode()
    def step(
        self, user_codes: Tensor, *, text_ids: Tensor | None = None, own_codes: Tensor | None = None
    ) -> FrameOut | None:
        """Advance by one frame: user_codes [n, K] (-1: nothing) -> the next whole frame of the model, of n rows.

        The first n rows go on, those behind them stay as they are. `text_ids` [n] and `own_codes` [n, K] are taken in
        place of what this step would draw where they are not negative (prompts); a step draws what of a frame is not
        delayed, and the delayed codes of earlier ones. ValueError for other shapes. None is returned until a row has a
        whole frame, which takes the largest delay; rows that have none yet hold -1 in text_ids and codes.
        """
        layout, count = self.lm.layout, len(user_codes)
        if not 0 < count <= self.batch_size or user_codes.shape[1:] != (layout.num_codebooks,):
            raise ValueError(
                f"user codes are {list(user_codes.shape)}, expected [{self.batch_size}, {layout.num_codebooks}] "
                f"or fewer rows"
            )
        if own_codes is not None and own_codes.shape != user_codes.shape:
            raise ValueError(f"own codes are {list(own_codes.shape)}, expected {list(user_codes.shape)}")
        rows = self._first(count)
        self.sampler.renew(count)
        visual = self.visual if self.visual is None or count == self.batch_size else self.visual.first(count)
        forced = (text_ids is not None, own_codes is not None)
        self.trace = self._recordings.run(
            (count, self.sampler.kind, forced),
            lambda *given: self._advance(rows, visual, *given),
            user_codes, text_ids, own_codes,
            states=[rows], kept=self.visual,
        )  # fmt: skip
        self.steps[:count] = [steps + 1 for steps in self.steps[:count]]
        return self._whole_frame(rows, count)

    def _advance(
        self,
        rows: Rows,
        visual: VisualContext | None,
        user_codes: Tensor,
        text_ids: Tensor | None,
        own_codes: Tensor | None,
    ) -> StepTrace:
        """All of a step that the device does: the window moves on, one column is read, and the next one is drawn."""
        layout, window = self.lm.layout, rows.window
        for pages in (window, rows.gates.transpose(1, 2)):
            pages[:, :, :-1] = pages[:, :, 1:].clone()
        window[:, self.user_rows, self.now + self.delays[self.user_rows]] = user_codes
        column = torch.where(rows.temporal.offset[:, None] <= self.delays, self.initial, window[:, :, self.now])
        out = self.lm(column[:, :, None], visual=visual, state=rows.temporal)
        text = self._choose(0, out.text_logits[:, 0])
        if text_ids is not None:
            text = torch.where(text_ids >= 0, text_ids, text)

        def choose(k: int, logits: Tensor) -> Tensor:
            ids = self._choose(k + 1, logits)
            return ids if own_codes is None else torch.where(own_codes[:, k] >= 0, own_codes[:, k], ids)

        codes, depth_logits = self.lm.depth.sample(
            out.hidden[:, 0], text, choose, state=rows.depth, count=layout.num_codebooks
        )
        gate, layer_gates = out.gate[:, 0], out.layer_gates[:, 0]
        window[:, 0, self.now + 1] = text
        window[:, layout.own, self.now + 1] = codes
        rows.gates[:, self.now + 1] = torch.cat([gate[:, None], layer_gates], dim=1)
        return StepTrace(out.hidden[:, 0], out.text_logits[:, 0], gate, layer_gates, depth_logits)

    def frame_of(self, row: int) -> int:
        """The number of the whole frame that the last step gave of a row; negative: none yet."""
        return self.steps[row] - 1 - self.lm.layout.max_delay

    def _first(self, count: int) -> Rows:
        if count not in self._first_rows:
            self._first_rows[count] = self.rows.first(count)
        return self._first_rows[count]

    def _whole_frame(self, rows: Rows, count: int) -> FrameOut | None:
        frames = [self.frame_of(row) for row in range(count)]
        if max(frames) < 0:
            return None
        ids = rows.window[:, self.own_rows, self.returned]
        if min(frames) < 0:
            ids[[row for row, frame in enumerate(frames) if frame < 0]] = -1
        # Copies: the window moves on under what was returned.
        gates = rows.gates[:, self.text_returned].clone()
        return FrameOut(max(frames), ids[:, 0], ids[:, 1:], gates[:, 0], gates[:, 1:])

    def _choose(self, part: int, logits: Tensor) -> Tensor:
        """One id per row from logits [n, V]: part 0 is text, part 1 + k codebook k."""
        ids = self.sampler.choose(part, logits)
        return ids if self.agree is None else self.agree(ids)
