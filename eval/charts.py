"""Charts and tables of a report, as HTML that needs nothing else."""

import base64
import io
from collections import Counter, defaultdict
from html import escape
from typing import Any

import numpy as np

from eval.scoring import holds_answer, normalise
from mmspeech.frames import FRAME_RATE_HZ

_MOST_LINES = 12
_MOST_ANSWERS = 12  # more are no table to read
_OTHER = "something else"
_GATE_SEC = 15.0


def gate_chart(records: list[dict[str, Any]]) -> str:
    """The mean gate of each kind over the time of the call; empty where no reply has gates."""
    kinds: dict[str, list[list[float]]] = defaultdict(list)
    for record in records:
        if record.get("gates"):
            kinds[record["kind"]].append(record["gates"])
    if not kinds:
        return ""
    figure = _figure()
    axes = figure.subplots()
    for kind, rows in sorted(kinds.items(), key=lambda item: -len(item[1]))[:_MOST_LINES]:
        length = min(max(map(len, rows)), int(_GATE_SEC * FRAME_RATE_HZ))
        sums, counts = np.zeros(length), np.zeros(length)
        for row in rows:
            part = np.asarray(row[:length], float)
            sums[: len(part)] += part
            counts[: len(part)] += 1
        axes.plot(np.arange(length) / FRAME_RATE_HZ, sums / np.maximum(counts, 1), label=kind, linewidth=1.2)
    axes.set(xlabel="seconds of the call", ylabel="mean gate", ylim=(0, 1))
    axes.legend(fontsize=7, ncols=2)
    return _image(figure, "mean gate over time")


def answer_time_chart(records: list[dict[str, Any]]) -> str:
    """A histogram of the seconds from a question's end to the first word; empty where no record tells."""
    times_sec = [record["answer_sec"] for record in records if record.get("answer_sec") is not None]
    if not times_sec:
        return ""
    figure = _figure()
    axes = figure.subplots()
    axes.hist(times_sec, bins=np.arange(0, max(times_sec) + 0.16, 0.08), color="tab:blue")
    axes.set(xlabel="seconds from the question's end to the first word", ylabel="samples")
    return _image(figure, "how soon answers come")


def confusion_table(records: list[dict[str, Any]]) -> str:
    """For each kind of question with few answers: what was right (rows) and what was said (columns)."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        if record.get("answers") and "text" in record:
            groups[record.get("about", record["kind"])].append(record)
    tables = []
    for group, own in sorted(groups.items()):
        names = sorted({record["answers"][0] for record in own})
        if 2 <= len(names) <= _MOST_ANSWERS:
            tables.append(_confusion(group, own, names))
    return "".join(tables)


def _confusion(group: str, records: list[dict[str, Any]], names: list[str]) -> str:
    counted = Counter((record["answers"][0], _said(record, names)) for record in records)
    columns = [*names, _OTHER]
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    rows = []
    for name in names:
        cells = (
            f"<td{' class=hit' if name == column else ''}>{counted[name, column] or ''}</td>" for column in columns
        )
        rows.append(f"<tr><th>{escape(name)}</th>{''.join(cells)}</tr>")
    return (
        f"<details><summary>{escape(group)}: right (rows) and said (columns), {len(records)} samples</summary>"
        f"<table class=confusion><tr><th></th>{head}</tr>{''.join(rows)}</table></details>"
    )


def _said(record: dict[str, Any], names: list[str]) -> str:
    """The right answer if an accepted form of it was said, or else the longest other one that was."""
    words = normalise(record["text"])
    if holds_answer(words, record["answers"]):
        return record["answers"][0]
    return next((name for name in sorted(names, key=len, reverse=True) if holds_answer(words, [name])), _OTHER)


def gate_line(gates: list[float]) -> str:
    """The gate of one reply, frame by frame, as a small line; empty of none."""
    if not gates:
        return ""
    points = " ".join(f"{index},{1 - gate:.3f}" for index, gate in enumerate(gates))
    return (
        f"<svg class=gate viewBox='0 0 {len(gates)} 1' preserveAspectRatio=none role=img aria-label='gate over time'>"
        f"<polyline points='{points}' fill=none stroke='#3b82c4' stroke-width='1.5' vector-effect=non-scaling-stroke />"
        "</svg>"
    )


def _figure():
    from matplotlib.figure import Figure

    return Figure(figsize=(8.0, 2.6), layout="constrained")


def _image(figure, alt: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return f"<img alt='{alt}' src='data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}'>"
