"""The steps of a small stage that has a program of its own: one process, all data in memory, killed and gone on."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from mmspeech.config import StrictModel
from train.machine import fast_precision
from train.metrics import MetricsLog
from train.optim import set_learning_rate


class StepsConfig(StrictModel):
    """Settings that every such stage has; `out`: the folder of what it writes."""

    out: str
    batch_size: int = Field(128, gt=0)
    max_steps: int = Field(2000, gt=0)
    learning_rate: float = Field(1.5e-3, gt=0)
    weight_decay: float = Field(0.05, ge=0)
    warmup_steps: int = Field(100, ge=0)
    save_every_steps: int = Field(200, gt=0)
    log_every_steps: int = Field(20, gt=0)
    seed: int = 0


def learning_rate(step: int, config: StepsConfig) -> float:
    """Linear warm-up, then a cosine to a hundredth."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.max_steps - config.warmup_steps)
    return config.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def save_atomically(path: Path, state: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.replace(path)


def table(scores: dict[str, float]) -> str:
    """Shares as percentages, side by side."""
    return "  ".join(f"{name} {100 * value:.1f}" for name, value in scores.items())


def run_steps(
    config: StepsConfig,
    modules: nn.Module,
    *,
    name: str,
    losses_of: Callable[[int], dict[str, Tensor]],
    scores_of: Callable[[], dict[str, float]],
) -> None:
    """Train what of `modules` may learn until max_steps, from the checkpoint in `config.out` if there is one.

    losses_of: the losses of a step, which depend on the seed and its number alone, so that a run that goes on is the
    one that was never stopped. scores_of: on held-out data, at every save.
    """
    from accelerate import Accelerator
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    from torch.nn.attention import SDPBackend, sdpa_kernel

    accelerator, out = Accelerator(mixed_precision=fast_precision(on_cpu=True), cpu=True), Path(config.out)
    learning = [parameter for parameter in modules.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        learning, lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.98), fused=True
    )
    checkpoint, start = out / "checkpoint.pt", 0
    if checkpoint.is_file():
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
        modules.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        start = saved["step"]
    metrics = MetricsLog(out, step=start)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TimeRemainingColumn()) as progress:
        task = progress.add_task(name, total=config.max_steps, completed=start)
        began = time.monotonic()
        for step in range(start, config.max_steps):
            set_learning_rate(optimizer, learning_rate(step, config))
            # The fused attention's backward in bf16 is several times slower than plain matrix products on a CPU.
            with accelerator.autocast(), sdpa_kernel(SDPBackend.MATH):
                losses = losses_of(step)
                loss = sum(losses.values())
                accelerator.backward(loss)
            accelerator.clip_grad_norm_(learning, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            progress.advance(task)
            last = step + 1 == config.max_steps
            if (step + 1) % config.log_every_steps == 0 or last:
                seconds = time.monotonic() - began
                log = {key: round(value.item(), 5) for key, value in losses.items()}
                log |= {"loss": loss.item(), "samples_per_sec": (step + 1 - start) * config.batch_size / seconds}
                metrics.write("train", step + 1, log)
                progress.update(task, description=f"{name} loss {log['loss']:.3f}")
            if (step + 1) % config.save_every_steps == 0 or last:
                scores = scores_of()
                metrics.write("eval/held_out", step + 1, scores)
                progress.console.print(f"step {step + 1}: " + table(scores))
                state = {"model": modules.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
                save_atomically(checkpoint, state)
    metrics.close()
