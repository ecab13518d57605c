"""Where a run is watched: TensorBoard always, Weights & Biases when asked."""

import hashlib
import html
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from mmspeech.config import ConfigError
from mmspeech.frames import SAMPLE_RATE_HZ


@dataclass(frozen=True)
class Shown:
    """A sampled call to look at and listen to. wave [2, N]: the model, the user; text: markdown; figure and picture:
    [H, W, 3] uint8."""

    name: str
    wave: Tensor
    text: str
    figure: np.ndarray
    picture: np.ndarray | None = None


class Board(Protocol):
    """Takes what a run tells. Tags are made of `kind` and the name of a number or of what is shown."""

    def numbers(self, kind: str, step: int, values: dict[str, float]) -> None: ...

    def show(self, kind: str, step: int, shown: Shown) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """RUN/tensorboard. After a resume at `step`, what a killed run told later is not shown."""

    def __init__(self, run_dir: Path, *, step: int):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1)

    def numbers(self, kind: str, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"{kind}/{name}", value, step)

    def show(self, kind: str, step: int, shown: Shown) -> None:
        tag = f"{kind}/{shown.name}"
        both = shown.wave.sum(dim=0)  # TensorBoard plays one channel
        self._writer.add_audio(f"{tag}/call", both / both.abs().max().clamp(min=1.0), step, SAMPLE_RATE_HZ)
        self._writer.add_audio(f"{tag}/model", shown.wave[0].clamp(-1, 1), step, SAMPLE_RATE_HZ)
        self._writer.add_text(f"{tag}/words", shown.text, step)
        self._writer.add_image(f"{tag}/gates", shown.figure, step, dataformats="HWC")
        if shown.picture is not None:
            self._writer.add_image(f"{tag}/picture", shown.picture, step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of `project`; one that resumes goes on as the same. WANDB_MODE=offline writes below RUN/wandb only."""

    def __init__(self, run_dir: Path, *, project: str):
        self._wandb = _wandb()
        identity = hashlib.sha256(str(run_dir.resolve()).encode()).hexdigest()[:16]
        try:
            self._run = self._wandb.init(
                project=project, name=run_dir.name, dir=str(run_dir), id=identity, resume="allow"
            )
        except self._wandb.Error as error:
            raise ConfigError(
                f"log.wandb {project!r}: {error}; run `wandb login`, or set WANDB_MODE=offline to keep it here"
            ) from error
        # Its own count only rises; a run that resumes tells some of its steps again.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def numbers(self, kind: str, step: int, values: dict[str, float]) -> None:
        self._run.log({"step": step} | {f"{kind}/{name}": value for name, value in values.items()})

    def show(self, kind: str, step: int, shown: Shown) -> None:
        tag = f"{kind}/{shown.name}"
        told: dict[str, Any] = {
            "step": step,
            f"{tag}/call": self._wandb.Audio(shown.wave.T.numpy(), sample_rate=SAMPLE_RATE_HZ),
            f"{tag}/words": self._wandb.Html(f"<pre>{html.escape(shown.text)}</pre>"),
            f"{tag}/gates": self._wandb.Image(shown.figure),
        }
        if shown.picture is not None:
            told[f"{tag}/picture"] = self._wandb.Image(shown.picture)
        self._run.log(told)

    def close(self) -> None:
        self._run.finish()


def check_wandb() -> None:
    """ConfigError where log.wandb cannot be followed."""
    _wandb()


def _wandb() -> Any:
    try:
        import wandb
    except ImportError as error:
        raise ConfigError(
            "log.wandb is set, but the wandb library is not installed; pip install wandb, or set log.wandb to null"
        ) from error
    return wandb
