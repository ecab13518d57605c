"""Calls in lockstep: microphone frames and pictures in, reply frames and text out, 12.5 times a second."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mmspeech.config import GenerationConfig
from mmspeech.frames import FRAME_RATE_HZ, FRAME_SAMPLES, samples_to_seconds
from mmspeech.serve.eyes import FrameCounts, FrameInbox, check_sight, look
from mmspeech.types import FrameOut

if TYPE_CHECKING:
    from mmspeech.checkpoint import Bundle
    from mmspeech.serve.eyes import Picture

_SMALL_PARAMETERS = 100_000_000


@dataclass
class CallOut:
    """What one 80 ms step of B calls gives.

    wave: [B, 1920] float32, to be played now. out: the model frame in it, or None in the first steps, while the
    delayed streams fill (the wave is silence then). start_sec: when, on the clock of the call, the sound of that
    model frame begins; it counts the delays of the streams and of the codec's decoder.
    """

    wave: Tensor
    out: FrameOut | None
    start_sec: float


class CallBatch:
    """B calls that began together. Step it with 1920 samples of every caller; `see` and `show` give them pictures at
    any time.

    `sampling` None takes the checkpoint's own. `seed` is one number or one per call; the same seed and input give the
    same call on the same machine.
    """

    def __init__(
        self,
        bundle: "Bundle",
        *,
        batch_size: int = 1,
        sampling: GenerationConfig | None = None,
        seed: int | Sequence[int] = 0,
    ):
        self.bundle = bundle
        self.batch_size = batch_size
        self.device = next(bundle.model.lm.parameters()).device
        sampling = bundle.config.generation if sampling is None else sampling
        self.generator = bundle.model.generator(batch_size, sampling=sampling, seed=seed)
        self.encoder_state = bundle.codec.init_encoder_state(batch_size)
        self.decoder_state = bundle.codec.init_decoder_state(batch_size)
        self.steps = 0
        self._inboxes = [FrameInbox() for _ in range(batch_size)]
        tower = bundle.model.tower
        self._window = None if tower is None else tower.init_state(batch_size)

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
        self._inboxes[row].put(picture, at_sec=at_sec, step=self.generator.steps[row])

    def forget(self, rows: Sequence[int] | None = None) -> None:
        """Those calls (None: all) see nothing from the next step on, until something is shown again."""
        chosen = range(self.batch_size) if rows is None else rows
        for row in chosen:
            self._inboxes[row].clear(step=self.generator.steps[row])
        forgetting = torch.zeros(self.batch_size, dtype=torch.bool)
        forgetting[list(chosen)] = True
        self.generator.forget(forgetting)
        if self._window is not None:
            self._window.reset(forgetting.to(self.device))

    def step(self, pcm: Tensor) -> CallOut:
        """Advance by one frame. pcm: [B, 1920] float at 24 kHz, what the callers said in these 80 ms."""
        out = self.think(self.listen(pcm))
        return CallOut(self.speak(out), out, self.last_start_sec)

    @torch.no_grad()
    def listen(self, pcm: Tensor) -> Tensor:
        """pcm [B, 1920] -> the callers' codes [B, K]."""
        if pcm.shape != (self.batch_size, FRAME_SAMPLES):
            raise ValueError(f"expected pcm [{self.batch_size}, {FRAME_SAMPLES}], got {list(pcm.shape)}")
        return self.bundle.codec.encode(pcm[:, None].to(self.device), state=self.encoder_state)[:, :, 0]

    @torch.no_grad()
    def think(self, codes: Tensor) -> FrameOut | None:
        """The callers' codes [B, K] -> the model's next frame, None while the delayed streams fill."""
        self._look()
        self.steps += 1
        return self.generator.step(codes)

    def _look(self) -> None:
        """Take in the pictures whose time has come."""
        taken = {row: inbox.take(step=self.generator.steps[row]) for row, inbox in enumerate(self._inboxes)}
        due = {row: picture for row, picture in taken.items() if picture is not None}
        if due:
            steps = [self.generator.steps[row] for row in due]
            seen = look(self.bundle, list(due.values()), rows=list(due), steps=steps, state=self._window)
            self.generator.show(seen, list(due))

    @torch.no_grad()
    def speak(self, out: FrameOut | None) -> Tensor:
        """The model's frame -> wave [B, 1920] on the CPU."""
        if out is None:
            return torch.zeros(self.batch_size, FRAME_SAMPLES)
        wave = self.bundle.codec.decode(out.codes[:, :, None], state=self.decoder_state)
        return wave[:, 0].float().cpu()

    def state_tensors(self) -> list[Tensor]:
        """All that the calls remember between steps: of codec and speech LM, and what is seen."""
        states = [self.encoder_state, self.decoder_state, *self.generator.states]
        states += [] if self._window is None else [self._window]
        own = [self.generator.window, self.generator.gates, self.generator.noise]
        return own + [tensor for state in states for tensor in state.tensors()]

    @property
    def last_start_sec(self) -> float:
        """When the sound of the frame given by the latest step begins, on the clock of the call."""
        delay_sec = samples_to_seconds(self.bundle.codec.decoder_delay_samples)
        return (self.steps - 1) / FRAME_RATE_HZ + delay_sec


def settle_threads(model: nn.Module, *, num_processes: int = 1) -> None:
    """Run a small model on one CPU thread: its layers are too small to share, and threads that wait for each other on a
    busy machine make a frame ten times slower. Larger models keep torch's own choice, or their share of it where
    several processes of this machine compute at once."""
    weights = list(model.parameters())
    if weights[0].device.type != "cpu":
        return
    small = sum(weight.numel() for weight in weights) < _SMALL_PARAMETERS
    torch.set_num_threads(1 if small else max(1, torch.get_num_threads() // num_processes))
