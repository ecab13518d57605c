"""What a step left out, with examples to look at."""

from collections.abc import Iterator
from pathlib import Path

from data_prep.steps import PARTS, read_part

EXAMPLES = 3  # of each rule


def dropped_examples(out: Path) -> Iterator[str]:
    """A few lines for each rule of a step's output: which items it left out, and what in them breaks it."""
    shown: dict[str, int] = {}
    for file in sorted((out / PARTS).glob("*.jsonl")):
        for one in read_part(out, int(file.stem)) or []:
            rule = one.get("dropped")
            if rule is not None and shown.setdefault(rule, 0) < EXAMPLES:
                shown[rule] += 1
                yield f"left out, {rule}: {one['id']}" + (f": {one['detail']}" if one.get("detail") else "")
