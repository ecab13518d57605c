"""Two runs side by side: what differs, by how much, and whether that may be chance."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from eval.results import read_results
from eval.run import SAMPLES, read_records
from eval.statistics import Difference, paired_difference

LEVEL = 0.05


@dataclass(frozen=True)
class Compared:
    """The scores of one kind of one task in both runs, paired by sample. unpaired: samples that only one has."""

    task: str
    kind: str
    a: float
    b: float
    difference: Difference
    unpaired: int


def compare_runs(a: Path, b: Path, *, console: Console) -> list[Compared]:
    """Print a table of all kinds of all tasks that both folders hold, and what else differs between the runs.

    ConfigError when one holds no results.
    """
    results_a, results_b = read_results(a), read_results(b)
    for line in _differences_of_runs(results_a, results_b):
        console.print(line, style="yellow", markup=False, highlight=False)
    rows = compare_records(read_records(a / SAMPLES), read_records(b / SAMPLES))
    table = Table("task", "kind", "a", "b", "b - a", "95 % interval", "p", "pairs", "unpaired")
    for row in rows:
        d = row.difference
        style = None if d.p > LEVEL else ("green" if d.mean > 0 else "red")
        interval = f"{d.low:+.3f} to {d.high:+.3f}"
        numbers = (f"{row.a:.3f}", f"{row.b:.3f}", f"{d.mean:+.3f}", interval, f"{d.p:.4f}")
        table.add_row(row.task, row.kind, *numbers, str(d.pairs), str(row.unpaired), style=style)
    console.print(table)
    console.print(
        f"p: how often chance alone would part them as far (sign-flip permutations of {len(rows)} comparisons, not "
        f"corrected for their number); coloured where it is at most {LEVEL}"
    )
    return rows


def compare_records(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> list[Compared]:
    """Records of two runs -> a row for each kind of each task, and one for all kinds where there are several."""
    scores_a, scores_b = _scores(a), _scores(b)
    groups: dict[tuple[str, str], set[tuple[str, str]]] = {}
    kinds = {key: kind for key, (kind, _) in (scores_a | scores_b).items()}
    for key, kind in kinds.items():
        groups.setdefault((key[0], kind), set()).add(key)
        groups.setdefault((key[0], "all kinds"), set()).add(key)
    several = {task for task, kind in groups if sum(other == task for other, _ in groups) > 2}
    rows = []
    for (task, kind), keys in sorted(groups.items()):
        if kind == "all kinds" and task not in several:
            continue
        paired = sorted(key for key in keys if key in scores_a and key in scores_b)
        if paired:
            pair = [[scores[key][1] for key in paired] for scores in (scores_a, scores_b)]
            means = (sum(values) / len(values) for values in pair)
            rows.append(Compared(task, kind, *means, paired_difference(*pair), len(keys) - len(paired)))
    return rows


def _scores(records: list[dict[str, Any]]) -> dict[tuple[str, str], tuple[str, float]]:
    """(task, id) -> kind and score; a sample that failed scored 0."""
    told = ((record, 0.0 if "error" in record else record["score"]) for record in records)
    return {(r["task"], r["id"]): (r["kind"], float(score)) for r, score in told if score is not None}


def _differences_of_runs(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    lines = []
    for key in sorted(a["run"].keys() | b["run"].keys()):
        if a["run"].get(key) != b["run"].get(key):
            lines.append(f"{key}: {a['run'].get(key)} against {b['run'].get(key)}")
    for task in sorted(a["tasks"].keys() & b["tasks"].keys()):
        for key in ("version", "revision"):
            if a["tasks"][task][key] != b["tasks"][task][key]:
                what = "another version of the task" if key == "version" else "other data"
                lines.append(f"{task}: {what}: {a['tasks'][task][key]} against {b['tasks'][task][key]}")
    for name, only in (("a", a["tasks"].keys() - b["tasks"].keys()), ("b", b["tasks"].keys() - a["tasks"].keys())):
        if only:
            lines.append(f"only in {name}: {', '.join(sorted(only))}")
    return lines
