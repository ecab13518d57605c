"""What a run shows: a progress bar, and tables of its numbers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table


@contextmanager
def progress_bar(name: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr; call what it gives with (done, total)."""
    columns = (TextColumn(name), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task(name, total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)


def show_summary(name: str, summary: dict[str, Any], *, console: Console) -> None:
    """The numbers of all lines, then one row for each kind and voice."""
    counts = summary["counts"]
    console.print(f"[bold]{name}[/bold]: {counts['measured']} of {counts['lines']} lines measured")
    for line_id, reason in summary["failed"].items():
        console.print(f"  failed: {line_id}: {reason}", style="red", markup=False)
    groups = {"all": summary["all"], **summary["by_kind"], **summary["by_voice"]}
    numbers = [key for key, value in summary["all"].items() if isinstance(value, int | float | None)]
    table = Table("", *groups)
    for key in numbers:
        table.add_row(key, *(_shown(group[key]) for group in groups.values()))
    console.print(table)


def _shown(value: float | None) -> str:
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.3f}"
