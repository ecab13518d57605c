"""`python -m train --config ... --dry-run`: build everything, learn from one batch, and show it. Nothing is written."""

import itertools
import time
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from rich.table import Table

from mmspeech.tokens.text import PAD_ID, TextTokenizer
from mmspeech.types import Batch
from train import machine
from train.feed import Planner, Position
from train.learner import Learner
from train.metrics import peak_memory_bytes
from train.recipe import set_up
from train.settings import TrainConfig

if TYPE_CHECKING:
    from accelerate import Accelerator

SHOWN_FRAMES = 24
LEAD_FRAMES = 4


def dry_run(config: TrainConfig) -> None:
    """Print what trains, a batch, one of its calls on the frame grid, and one step with its time and memory.

    Every process of a launch calls it. Raises ConfigError as `train` does.
    """
    accelerator = machine.start(config)
    _show(config, accelerator)
    machine.finish(accelerator)


def _show(config: TrainConfig, accelerator: "Accelerator") -> None:
    console = Console(quiet=not accelerator.is_main_process)
    learner, data = set_up(config, accelerator)
    learner.wrap()
    planner = Planner(data.sources, config=config.data, seed=config.seed, progress_of=lambda _: 0.0)
    fed = [data.train[plan] for plan in itertools.islice(planner.plans(Position()), config.batches_per_step)]
    own = fed[accelerator.process_index :: accelerator.num_processes]
    console.print(f"trainable:\n{learner.listing}", highlight=False, markup=False)
    console.print(_batch_table(own[0].batch, learner))
    console.print(_call_table(own[0].batch, learner.origin.tokenizer))
    began_sec, gathered = time.monotonic(), Gathered(learner.origin.model)
    out = learner.step(iter(own), number=0, rate=config.optim.learning_rate)
    numbers = out.numbers[0] | {"grad_norm": out.norm} | gathered.numbers()
    console.print(_step_table(numbers, time.monotonic() - began_sec))


class Gathered:
    """What ZeRO-3 keeps in a process, in parameters: its own share, and how many are whole at once in a forward."""

    def __init__(self, model: torch.nn.Module):
        self.parameters = [parameter for parameter in model.parameters() if hasattr(parameter, "ds_id")]
        self.most = 0
        if self.parameters:
            for module in model.modules():
                # DeepSpeed's own hook, which gathers, came before.
                module.register_forward_pre_hook(self._look)

    def _look(self, module: torch.nn.Module, args: tuple) -> None:
        whole = sum(p.ds_numel for p in self.parameters if p.ds_status.name == "AVAILABLE")
        self.most = max(self.most, whole)

    def numbers(self) -> dict[str, float]:
        """Nothing where parameters are not split."""
        if not self.parameters:
            return {}
        return {
            "parameters": sum(p.ds_numel for p in self.parameters),
            "parameters of this process": sum(p.ds_tensor.numel() for p in self.parameters),
            "parameters whole at once": self.most,
        }


def _batch_table(batch: Batch, learner: Learner) -> Table:
    table = Table("what", "size", title="batch")
    rows, _, columns = batch.codes.shape
    held = int((batch.codes >= 0).any(dim=1).sum())
    table.add_row("codes [B, 1 + 2K, T]", str(list(batch.codes.shape)))
    table.add_row("frames, of which padding", f"{rows * columns}, {100 * (1 - held / (rows * columns)):.0f} %")
    table.add_row("frames with a text target", str(int((batch.text_weight > 0).sum())))
    table.add_row("frames with an audio target", str(int((batch.audio_weight > 0).sum())))
    table.add_row("pictures", "none" if batch.pixels is None else str(list(batch.pixels.shape)))
    table.add_row("numbers that train", f"{learner.trained_numbers:,}")
    return table


def _call_table(batch: Batch, tokenizer: TextTokenizer) -> Table:
    """Frames of the first call around its first word: what stands on each stream, what counts, what is seen."""
    codes = batch.codes[0]
    streams = (codes.shape[0] - 1) // 2
    words = (codes[0] > PAD_ID).nonzero()
    first = max(0, int(words[0]) - LEAD_FRAMES) if len(words) else 0
    onset = None if batch.picture_rows is None else batch.onset_frames[batch.picture_rows == 0]
    table = Table(
        "frame", "text", "own codes", "user codes", "text weight", "audio weight", "shown", title=batch.ids[0]
    )
    for frame in range(first, min(first + SHOWN_FRAMES, codes.shape[1])):
        text = int(codes[0, frame])
        own, user = (" ".join(map(str, part[:, frame].tolist())) for part in codes[1:].split(streams))
        seen = int((onset <= frame).sum()) if onset is not None else 0
        weights = (f"{float(weight[0, frame]):g}" for weight in (batch.text_weight, batch.audio_weight))
        table.add_row(str(frame), "" if text < 0 else tokenizer.piece(text), own, user, *weights, str(seen or ""))
    return table


def _step_table(numbers: dict[str, float], seconds: float) -> Table:
    table = Table("one step", "", title="learning")
    for name, value in numbers.items():
        table.add_row(name, f"{value:,}" if isinstance(value, int) else f"{value:.4g}")
    table.add_row("seconds", f"{seconds:.2f}")
    table.add_row("peak memory of this process, MB", f"{peak_memory_bytes() / 1e6:,.0f}")
    return table
