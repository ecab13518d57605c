"""The smallest step: it doubles numbers."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from data_prep.steps import How, Outcome, run_step
from mmspeech.config import ConfigError


@dataclass(frozen=True)
class Doubling:
    """A step that doubles numbers, slowly, and dies where it is told to: the first time it gets there."""

    out: Path
    slow_sec: float = 0.0
    dies_at: int = -1

    def open(self):
        return self._chunk

    def _chunk(self, number, items):
        for where, data in items:
            time.sleep(self.slow_sec)
            if isinstance(data, ConfigError):
                yield Outcome(where, failed=str(data))
                continue
            value = data["value"]
            if value == self.dies_at and not (self.out / "died").exists():
                (self.out / "died").write_text("")
                os.kill(os.getpid(), signal.SIGKILL)
            if value % 10 == 7:
                yield Outcome(str(value), dropped="seven", detail=f"it was {value}")
            else:
                yield Outcome(str(value), {"id": str(value), "value": 2 * value})


def numbers(folder, count):
    folder.mkdir(exist_ok=True)
    (folder / "manifest.jsonl").write_text("".join(f'{{"value": {n}}}\n' for n in range(count)))
    return folder


def doubled(data, out, *, how=None, **work):
    return run_step("double", data, out, Doubling(out, **work), settings={}, how=how or How(), chunk_items=4)
