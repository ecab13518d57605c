"""Calls in lockstep: microphone frames and pictures in, reply frames and text out, 12.5 times a second."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mmspeech.config import GenerationConfig
from mmspeech.frames import FRAME_RATE_HZ, FRAME_SAMPLES, samples_to_seconds
from mmspeech.nn.cuda_graph import Record, Recordings
from mmspeech.nn.streaming import State
from mmspeech.serve.eyes import FrameCounts, FrameInbox, check_sight, look
from mmspeech.serve.prompt import PromptFrames, silence_codes
from mmspeech.serve.script import Script, rehearsed
from mmspeech.types import FrameOut

if TYPE_CHECKING:
    from mmspeech.checkpoint import Bundle
    from mmspeech.serve.eyes import Picture

_SMALL_PARAMETERS = 100_000_000


@dataclass
class CallOut:
    """What one 80 ms step of n calls gives.

    wave: [n, 1920] float32, to be played now. out: the model frames in it, or None while the delayed streams of all of
    them fill; until a call has a frame its wave is silence. start_sec: of each call, when the sound of its model frame
    begins on the clock of the call; it counts the delays of the streams and of the codec's decoder. frames: the number
    of that model frame (negative: none yet, or one of the call's prompt). told: whether its text was put there (`tell`)
    and is no word of the reply.
    """

    wave: Tensor
    out: FrameOut | None
    start_sec: list[float]
    frames: list[int]
    told: list[bool]


@dataclass
class CodecRows(State):
    """What the codec is in the middle of, for B calls."""

    encoder: State
    decoder: State


class CallBatch:
    """B places for calls that go on together. Step it with 1920 samples of every caller; `see` and `show` give them
    pictures at any time. All begin at once; `begin` puts a new call in the place of one.

    `sampling` None takes the checkpoint's own. `seed` is one number or one per call; the same seed and input give the
    same call on the same machine, whoever else is there. `record`: see mmspeech.nn.cuda_graph.
    """

    def __init__(
        self,
        bundle: "Bundle",
        *,
        batch_size: int = 1,
        sampling: GenerationConfig | None = None,
        seed: int | Sequence[int] = 0,
        record: Record | None = None,
    ):
        self.bundle = bundle
        self.batch_size = batch_size
        self.device = next(bundle.model.lm.parameters()).device
        sampling = bundle.config.generation if sampling is None else sampling
        self.generator = bundle.model.generator(batch_size, sampling=sampling, seed=seed, record=record)
        self._record, self._recordings = record, Recordings(record)
        codec = bundle.codec
        self.codec_rows = CodecRows(codec.init_encoder_state(batch_size), codec.init_decoder_state(batch_size))
        self._first_codec_rows = {batch_size: self.codec_rows}
        self._inboxes = [FrameInbox() for _ in range(batch_size)]
        tower = bundle.model.tower
        self._window = None if tower is None else tower.init_state(batch_size)
        self._scripts = [Script(self.generator.lm.layout) for _ in range(batch_size)]
        self._silence: list[int] | None = None

    def begin(
        self,
        row: int,
        *,
        sampling: GenerationConfig | None = None,
        seed: int = 0,
        prompt: "PromptFrames | None" = None,
    ) -> None:
        """A new call in place `row`: nothing of the one before is left. `sampling` None: the checkpoint's own.

        A `prompt` takes the next steps of that place, one for each of its frames: meanwhile nobody is heard there and
        nothing is seen, what comes out is silence, and the call's clock stands still at 0.
        """
        chosen = self._chosen([row])
        sampling = self.bundle.config.generation if sampling is None else sampling
        sampler = self.generator.sampler
        seeds, samplings = list(sampler.seeds), list(sampler.settings)
        seeds[row], samplings[row] = seed, sampling
        self.generator.reset(chosen, seeds=seeds, samplings=samplings)
        self.codec_rows.reset(chosen)
        if self._window is not None:
            self._window.reset(chosen)
        self._inboxes[row] = FrameInbox()
        self._scripts[row] = Script(self.generator.lm.layout, prompt)

    def enough_places(self, count: int) -> int:
        """How many places to step for calls in the first `count`: as many, or, where each number is recorded, the next
        power of two, so that few are. Places that nobody holds may be stepped: who comes begins anew."""
        return count if self._record is None else min(self.batch_size, 1 << (count - 1).bit_length())

    def is_prompting(self, row: int) -> bool:
        """Whether the next step of a call is one of its prompt."""
        return self._scripts[row].is_prompting

    def tell(self, text: str, row: int = 0, *, silent: bool = False, max_pieces: int | None = None) -> int:
        """Put `text` into a call's inner monologue: its pieces, at most `max_pieces`, take the place of what the model
        would write, one per frame from the next step on, behind what is still being told. They are marked as told. The
        model goes on to speak meanwhile, unless `silent` makes it be still. May be called from any thread.

        Returns how many frames it takes: 0 where the tokenizer has none of its letters.
        """
        ids = self.bundle.tokenizer.encode(text)[:max_pieces]
        if not self.bundle.tokenizer.decode(ids):  # a lone space may be left
            return 0
        if silent and self._silence is None:
            self._silence = silence_codes(self.bundle.codec)
        self._scripts[row].tell(ids, own=self._silence if silent else None)
        return len(ids)

    @property
    def frame_counts(self) -> list[FrameCounts]:
        """What became of the pictures shown to each call."""
        return [inbox.counts for inbox in self._inboxes]

    def see(self, pictures: Sequence["Picture | None"], *, at_sec: float | None = None) -> None:
        """Show each call a picture (PIL, or the bytes of a file); a call that gets None sees nothing from now on.

        It enters at the first step at or after `at_sec` (None: the next step), beside the last ones that the model
        remembers. At most one waits for a call, the newest; others are dropped, and so are pictures that cannot be read
        (see `frame_counts`). SightError for a model without eyes.
        """
        if len(pictures) != self.batch_size:
            raise ValueError(f"expected {self.batch_size} pictures (or None), one per call, got {len(pictures)}")
        if all(picture is None for picture in pictures):
            self.forget()
            return
        check_sight(self.bundle)
        for row, picture in enumerate(pictures):
            if picture is None:
                self.forget([row])
            else:
                self.show(picture, row, at_sec=at_sec)

    def show(self, picture: "Picture", row: int, *, at_sec: float | None = None) -> None:
        """As `see`, for one call; the others go on as they are."""
        check_sight(self.bundle)
        self._inboxes[row].put(picture, at_sec=at_sec, step=max(0, self._step_of(row)))

    def forget(self, rows: Sequence[int] | None = None) -> None:
        """Those calls (None: all) see nothing from the next step on, until something is shown again."""
        chosen = range(self.batch_size) if rows is None else rows
        for row in chosen:
            self._inboxes[row].clear(step=max(0, self._step_of(row)))
        forgetting = self._chosen(list(chosen))
        self.generator.forget(forgetting)
        if self._window is not None:
            self._window.reset(forgetting.to(self.device))

    def step(self, pcm: Tensor, *, text_ids: Tensor | None = None) -> CallOut:
        """Advance by one frame. pcm: [n, 1920] float at 24 kHz, what the callers said in these 80 ms; with n < B the
        first n calls go on, and those behind them stay as they are. `text_ids` [n]: put into the models' text streams
        in place of what they would say, where not negative."""
        out = self.think(self.listen(pcm), text_ids=text_ids)
        rows = range(len(pcm))
        starts_sec, frames = [self.start_sec(row) for row in rows], [self.frame_of(row) for row in rows]
        told = [self._scripts[row].told for row in rows]
        return CallOut(self.speak(out, len(pcm)), out, starts_sec, frames, told)

    @torch.no_grad()
    def listen(self, pcm: Tensor) -> Tensor:
        """pcm [n, 1920] -> the callers' codes [n, K]."""
        if not 0 < len(pcm) <= self.batch_size or pcm.shape[1:] != (FRAME_SAMPLES,):
            raise ValueError(f"expected pcm [{self.batch_size}, {FRAME_SAMPLES}] or fewer rows, got {list(pcm.shape)}")
        codec, state = self.bundle.codec, self._first(len(pcm)).encoder
        run, pcm = partial(codec.encode, state=state), pcm[:, None].to(self.device)
        return self._recordings.run(("listen", len(pcm)), run, pcm, states=[state], kept=None)[:, :, 0]

    @torch.no_grad()
    def think(self, codes: Tensor, *, text_ids: Tensor | None = None) -> FrameOut | None:
        """The callers' codes [n, K] -> the model's next frames, None while all delayed streams fill."""
        self._look(len(codes))
        text_ids = None if text_ids is None else text_ids.to(self.device)
        scripts = self._scripts[: len(codes)]
        prompting = [script.is_prompting for script in scripts]
        codes, text_ids, own_codes = rehearsed([script.next() for script in scripts], codes, text_ids)
        out = self.generator.step(codes, text_ids=text_ids, own_codes=own_codes)
        ended = [row for row, before in enumerate(prompting) if before and not scripts[row].is_prompting]
        if ended:
            # What came in during the prompt was not heard: the caller's first frame follows on nothing.
            self.codec_rows.encoder.reset(self._chosen(ended))
        return out

    def _look(self, count: int) -> None:
        """Take in the pictures of the first calls whose time has come."""
        steps = [self._step_of(row) for row in range(count)]
        taken = {row: inbox.take(step=steps[row]) for row, inbox in enumerate(self._inboxes[:count])}
        due = {row: picture for row, picture in taken.items() if picture is not None}
        if due:
            at_steps = [steps[row] for row in due]
            seen = look(self.bundle, list(due.values()), rows=list(due), steps=at_steps, state=self._window)
            self.generator.show(seen, list(due))

    @torch.no_grad()
    def speak(self, out: FrameOut | None, count: int) -> Tensor:
        """The model's frames of the first `count` calls -> wave [count, 1920] on the CPU."""
        if out is None:
            return torch.zeros(count, FRAME_SAMPLES)
        codec, state = self.bundle.codec, self._first(count).decoder
        run, codes = partial(codec.decode, state=state), out.codes.clamp(min=0)[:, :, None]
        wave = self._recordings.run(("speak", count), run, codes, states=[state], kept=None)[:, 0].float().cpu()
        silent = [row for row in range(count) if self.frame_of(row) < 0]
        if silent:
            # Their decoders have heard nothing yet.
            self.codec_rows.decoder.reset(self._chosen(silent))
            wave[silent] = 0.0
        return wave

    def _first(self, count: int) -> CodecRows:
        if count not in self._first_codec_rows:
            self._first_codec_rows[count] = self.codec_rows.first(count)
        return self._first_codec_rows[count]

    def _chosen(self, rows: Sequence[int]) -> Tensor:
        """[B] bool: true at those rows."""
        chosen = torch.zeros(self.batch_size, dtype=torch.bool)
        chosen[list(rows)] = True
        return chosen

    def _step_of(self, row: int) -> int:
        """The number of a call's next step on its own clock; negative while its prompt lasts."""
        return self.generator.steps[row] - self._scripts[row].prompt_steps

    def frame_of(self, row: int) -> int:
        """The number of the model frame that the latest step gave of a call; negative: none of the call yet."""
        return self.generator.frame_of(row) - self._scripts[row].prompt_steps

    def state_tensors(self) -> list[Tensor]:
        """All that the calls remember between steps: of codec and speech LM, and what is seen."""
        states = [self.codec_rows, *self.generator.states]
        states += [] if self._window is None else [self._window]
        return [self.generator.sampler.noise] + [tensor for state in states for tensor in state.tensors()]

    def start_sec(self, row: int) -> float:
        """When the sound of the frame given by the latest step of a call begins, on the clock of the call."""
        delay_sec = samples_to_seconds(self.bundle.codec.decoder_delay_samples)
        return max(0, self._step_of(row) - 1) / FRAME_RATE_HZ + delay_sec


def settle_threads(model: nn.Module, *, num_processes: int = 1) -> None:
    """Run a small model on one CPU thread: its layers are too small to share, and threads that wait for each other on a
    busy machine make a frame ten times slower. Larger models keep torch's own choice, or their share of it where
    several processes of this machine compute at once."""
    weights = list(model.parameters())
    if weights[0].device.type != "cpu":
        return
    small = sum(weight.numel() for weight in weights) < _SMALL_PARAMETERS
    torch.set_num_threads(1 if small else max(1, torch.get_num_threads() // num_processes))
