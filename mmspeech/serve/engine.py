"""Calls in lockstep: microphone frames and pictures in, reply frames and text out, 12.5 times a second."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mmspeech.config import ConfigError, GenerationConfig
from mmspeech.frames import FRAME_RATE_HZ, FRAME_SAMPLES, samples_to_seconds
from mmspeech.types import FrameOut, VisualContext

if TYPE_CHECKING:
    from PIL.Image import Image

    from mmspeech.checkpoint import Bundle


_SMALL_PARAMETERS = 100_000_000


class SightError(ConfigError):
    """A picture was shown to a model that cannot see; the message is one line."""


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
    """B calls that began together. Step it with 1920 samples of every caller; `see` shows pictures at any time.

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

    @torch.no_grad()
    def see(self, pictures: Sequence["Image | None"]) -> None:
        """Show each call its picture (None: nothing to see) from the next step on; replaces what was shown before."""
        if len(pictures) != self.batch_size:
            raise ValueError(f"expected {self.batch_size} pictures (or None), one per call, got {len(pictures)}")
        if all(picture is None for picture in pictures):
            self.generator.see(None)
            return
        self.generator.see(look(self.bundle, pictures, onset_frame=self.steps))

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
        self.steps += 1
        return self.generator.step(codes)

    @torch.no_grad()
    def speak(self, out: FrameOut | None) -> Tensor:
        """The model's frame -> wave [B, 1920] on the CPU."""
        if out is None:
            return torch.zeros(self.batch_size, FRAME_SAMPLES)
        wave = self.bundle.codec.decode(out.codes[:, :, None], state=self.decoder_state)
        return wave[:, 0].float().cpu()

    @property
    def last_start_sec(self) -> float:
        """When the sound of the frame given by the latest step begins, on the clock of the call."""
        delay_sec = samples_to_seconds(self.bundle.codec.decoder_delay_samples)
        return (self.steps - 1) / FRAME_RATE_HZ + delay_sec


def look(bundle: "Bundle", pictures: Sequence["Image | None"], *, onset_frame: int) -> VisualContext:
    """Keys and values [B, S, D] of pictures; rows without one see nothing. SightError for a model without eyes."""
    from mmspeech.vision.image import to_pixels

    model, vision = bundle.model, bundle.config.vision
    if vision is None or model.tower is None:
        raise SightError(f"{bundle.path}: this model cannot see (no vision tower); leave the picture out")
    weight = next(model.lm.parameters())
    rows = [row for row, picture in enumerate(pictures) if picture is not None]
    pixels = torch.stack(
        [to_pixels(pictures[row], vision.image_size_px, model.tower.mean, model.tower.std) for row in rows]
    )
    seen, seen_mask = model.tower(pixels.to(device=weight.device, dtype=weight.dtype))
    features = seen.new_zeros(len(pictures), *seen.shape[1:])
    features[rows] = seen
    mask = torch.zeros(features.shape[:2], dtype=torch.bool, device=weight.device)
    mask[rows] = True if seen_mask is None else seen_mask
    onset = torch.full((len(pictures),), onset_frame, dtype=torch.long, device=weight.device)
    return model.see(features, onset, mask=mask)


def settle_threads(model: nn.Module, *, num_processes: int = 1) -> None:
    """Run a small model on one CPU thread: its layers are too small to share, and threads that wait for each other on a
    busy machine make a frame ten times slower. Larger models keep torch's own choice, or their share of it where
    several processes of this machine compute at once."""
    weights = list(model.parameters())
    if weights[0].device.type != "cpu":
        return
    small = sum(weight.numel() for weight in weights) < _SMALL_PARAMETERS
    torch.set_num_threads(1 if small else max(1, torch.get_num_threads() // num_processes))
