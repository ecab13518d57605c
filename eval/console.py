"""What a run shows: a progress bar, and tables of its numbers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from mmspeech.config import ConfigError

_GROUP_COLUMNS = 6  # the first numbers of a summary; all of them are in results.json
_NAMED_FAILURES = 10
_MOST_GROUPS = 30


@contextmanager
def told_errors() -> Iterator[None]:
    """What the user can mend becomes one line on stderr and exit code 2."""
    try:
        yield
    except (ConfigError, OSError) as error:
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(2) from error


@contextmanager
def progress_bar(name: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr; call what it gives with (done, total)."""
    columns = (TextColumn(name), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task(name, total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)


def show_summary(name: str, summary: dict[str, Any], *, console: Console) -> None:
    """All numbers of all samples, then the first few of each kind and voice."""
    counts = summary["counts"]
    console.print(f"[bold]{name}[/bold]: {counts['measured']} of {counts['samples']} samples measured")
    failed = list(summary["failed"].items())
    for sample_id, reason in failed[:_NAMED_FAILURES]:
        console.print(f"  failed: {sample_id}: {reason}", style="red", markup=False)
    if len(failed) > _NAMED_FAILURES:
        console.print(f"  and {len(failed) - _NAMED_FAILURES} more; samples.jsonl names them", style="red")
    whole = Table("all", "")
    for key, value in _plain(summary["all"]).items():
        whole.add_row(key, shown(value))
    console.print(whole)
    for group in ("by_kind", "by_voice"):
        if len(summary[group]) > _MOST_GROUPS:
            console.print(f"{len(summary[group])} {group.removeprefix('by_')}s: results.json has the numbers of each")
        elif summary[group]:
            groups = [_plain(values) for values in summary[group].values()]
            told = [key for key in groups[0] if any(values.get(key) is not None for values in groups)]
            columns = told[:_GROUP_COLUMNS]
            table = Table(group.removeprefix("by_"), *columns)
            for name_of_group, values in summary[group].items():
                table.add_row(name_of_group, *(shown(values.get(key)) for key in columns))
            console.print(table)


def show_scores(summaries: dict[str, Any], *, console: Console) -> None:
    """The scores of all tasks and their kinds as a Markdown table."""
    head = ("task", "kind", "score", "95 % interval", "samples", "failed")
    show_markdown([head, *score_rows(summaries)], console=console)


def show_markdown(rows: list[tuple[str, ...]], *, console: Console) -> None:
    """A Markdown table, its head first, to be copied whole: never wrapped to a terminal's width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows = [rows[0], tuple("-" * width for width in widths), *rows[1:]]
    lines = (" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    console.print("\n".join(f"| {line} |" for line in lines), soft_wrap=True, markup=False, highlight=False)


def score_rows(summaries: dict[str, Any]) -> list[tuple[str, ...]]:
    """Rows of task, kind, score, its interval, number of samples, and how many of the task failed."""
    rows = []
    for task, summary in summaries.items():
        groups = summary["by_kind"] or {"all": summary["all"]}
        for kind, numbers in groups.items():
            low_high = numbers["score_95"]
            interval = "" if low_high is None else f"{low_high[0]:.3f} to {low_high[1]:.3f}"
            failed = str(summary["counts"]["failed"])
            rows.append((task, kind, shown(numbers["score"]), interval, str(numbers["count"]), failed))
    return rows


def _plain(numbers: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in numbers.items() if isinstance(value, int | float | None)}


def shown(value: float | str | None) -> str:
    """A number as tables have it."""
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
