"""What a run shows: a progress bar, and tables of its numbers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

_GROUP_COLUMNS = 5  # the first numbers of a summary; all of them are in results.json


@contextmanager
def progress_bar(name: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr; call what it gives with (done, total)."""
    columns = (TextColumn(name), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task(name, total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)


def show_summary(name: str, summary: dict[str, Any], *, console: Console) -> None:
    """All numbers of all lines, then the first few of each kind and voice."""
    counts = summary["counts"]
    console.print(f"[bold]{name}[/bold]: {counts['measured']} of {counts['lines']} lines measured")
    for line_id, reason in summary["failed"].items():
        console.print(f"  failed: {line_id}: {reason}", style="red", markup=False)
    numbers = {key: value for key, value in summary["all"].items() if isinstance(value, int | float | None)}
    whole = Table("all", "")
    for key, value in numbers.items():
        whole.add_row(key, _shown(value))
    console.print(whole)
    for kind in ("by_kind", "by_voice"):
        if summary[kind]:
            columns = list(numbers)[:_GROUP_COLUMNS]
            table = Table(kind.removeprefix("by_"), *columns)
            for group, values in summary[kind].items():
                table.add_row(group, *(_shown(values[key]) for key in columns))
            console.print(table)


def _shown(value: float | None) -> str:
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.3f}"
