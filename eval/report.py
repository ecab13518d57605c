"""report.html: a run on one page that needs nothing else: scores, plots, confusions, and the worst samples to hear."""

import base64
from collections import Counter
from collections.abc import Iterable
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from eval.charts import answer_time_chart, confusion_table, gate_chart, gate_line
from eval.console import score_rows, shown
from eval.results import TIMES, read_results
from eval.run import SAMPLES, read_records
from mmspeech.commands.common import whole_file

REPORT = "report.html"
WORST = 40  # samples of each task that are shown, the worst first
_MIME = {".flac": "audio/flac", ".png": "image/png"}


def write_report(out: Path) -> Path:
    """Write `out`/report.html from its results.json and samples.jsonl; returns its path. ConfigError without them."""
    results, records = read_results(out), read_records(out / SAMPLES)
    names = list(results["tasks"])
    sections = [_task(name, [r for r in records if r["task"] == name], out) for name in names]
    missing = "".join(f"<li>{escape(name)}: {escape(reason)}</li>" for name, reason in results["missing"].items())
    template = Template(Path(__file__).with_suffix(".html").read_text(encoding="utf-8"))
    text = template.substitute(
        title=escape(f"{_model(results)} measured"),
        facts=escape(_facts(results)),
        scores=_scores(results["tasks"]),
        missing=f"<h2>Left out</h2><ul>{missing}</ul>" if missing else "",
        tasks="".join(sections),
    )
    file = out / REPORT
    with whole_file(file) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return file


def _model(results: dict[str, Any]) -> str:
    model = results["run"]["model"]
    return results["run"]["responder"] if model is None else model["name"]


def _facts(results: dict[str, Any]) -> str:
    run, hardware, times = results["run"], results["hardware"], results[TIMES]
    model = "" if run["model"] is None else f"weights {run['model']['sha256'][:12]}, "
    where = hardware["gpu"] or f"{hardware['threads']} thread(s) of {hardware['cpus']} CPUs"
    spent = sum(times["spent_sec"].values())
    commit = (results["commit"] or "unknown")[:12]
    return f"{model}seed {run['seed']}, commit {commit}, {where}, {spent:.0f} s, {times['created']}"


def _scores(tasks: dict[str, Any]) -> str:
    head = "".join(f"<th>{name}</th>" for name in ("task", "kind", "score", "", "95 % interval", "samples"))
    rows = []
    for task, kind, score, interval, count, _ in score_rows(tasks):
        width = 0.0 if score == shown(None) else 10 * max(0.0, min(1.0, float(score)))
        bar = f'<span class="bar" style="width: {width:.2f}em"></span>'
        cells = f"<td>{escape(task)}</td><td>{escape(kind)}</td><td class=number>{score}</td><td>{bar}</td>"
        rows.append(f"<tr>{cells}<td>{interval}</td><td class=number>{count}</td></tr>")
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def _task(name: str, records: list[dict[str, Any]], out: Path) -> str:
    good = [record for record in records if "error" not in record]
    failed = [record for record in records if "error" in record]
    plots = "".join(f"<figure>{chart}</figure>" for chart in (gate_chart(good), answer_time_chart(good)) if chart)
    errors = "".join(f"<li>{escape(record['id'])}: {escape(record['error'])}</li>" for record in failed)
    told = [record for record in good if record.get("score") is not None]
    worst = worst_of(told, WORST)
    samples = "".join(_sample(record, out) for record in worst)
    return (
        f"<h2>{escape(name)}</h2>{plots}{confusion_table(good)}"
        + (f"<h3>Could not be asked</h3><ul>{errors}</ul>" if errors else "")
        + (f"<h3>Samples, the worst first ({len(worst)} of {len(told)})</h3>{samples}" if samples else "")
    )


def worst_of(records: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The worst of each kind, then the second worst of each ...: no kind hides the others."""
    ranks: Counter[str] = Counter()
    placed = []
    for record in sorted(records, key=lambda record: (record["score"], record["id"])):
        placed.append((record["score"], ranks[record["kind"]], record["kind"], record))
        ranks[record["kind"]] += 1
    return [place[-1] for place in sorted(placed, key=lambda place: place[:3])][:count]


def _sample(record: dict[str, Any], out: Path) -> str:
    picture = _embedded(out, record.get("picture"))
    sounds = [
        f"<dt>{label}</dt><dd><audio controls preload=none src='{sound}'></audio></dd>"
        for label, key in (("asked", "asked"), ("reply", "audio"))
        if (sound := _embedded(out, record.get(key)))
    ]
    level = "high" if record["score"] >= 1 else "low"
    told = "".join(
        f"<dt>{label}</dt><dd>{escape(str(text))}</dd>"
        for label, text in _lines_of(record)
        if text not in (None, "", [])
    )
    return (
        f"<div class=sample><div>{f'<img alt=seen src={picture!r}>' if picture else ''}</div><div>"
        f"<span class='score {level}'>{shown(float(record['score']))}</span> {escape(record['id'])}"
        f"<div class=words>{_words(record.get('words', []))}</div>"
        f"<dl>{told}{''.join(sounds)}</dl>{gate_line(record.get('gates', []))}</div></div>"
    )


def _lines_of(record: dict[str, Any]) -> Iterable[tuple[str, Any]]:
    yield "question", record.get("question")
    yield "right", " / ".join(record.get("answers", []))
    yield "said", record.get("text")
    yield "heard", record.get("heard")


def _words(words: list[dict[str, Any]]) -> str:
    """Words over the colour of their gate, as the page of a call has them."""
    return " ".join(
        f"<span title='{word['start_sec']:.2f} s, gate {word['gate']:.2f}' "
        f"style='background: rgb(40 150 220 / {0.6 * word['gate']:.2f})'>{escape(word['text'])}</span>"
        for word in words
    )


def _embedded(out: Path, name: str | None) -> str | None:
    """A file of the run as a data: address, or None when it is not there."""
    if name is None or not (out / name).is_file():
        return None
    kind = _MIME[Path(name).suffix]
    return f"data:{kind};base64,{base64.b64encode((out / name).read_bytes()).decode()}"
