"""`python -m eval --model DIR_OR_ID --tasks a,b --out DIR`, and `python -m eval compare A B`."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eval.console import told_errors
from eval.task import MissingDataError, Pictures, Settings, Task
from mmspeech.config import ConfigError

if TYPE_CHECKING:
    from eval.who import How

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
SENTENCES = Path(__file__).parent / "sentences"


@app.callback(invoke_without_command=True)
def main(
    context: typer.Context,
    tasks: Annotated[str, typer.Option(help="names with commas between them; all; or list, which shows them")] = "list",
    out: Annotated[
        Path, typer.Option(help="folder for results.json, samples.jsonl, report.html; a killed run goes on there")
    ] = Path("results"),
    model: Annotated[
        str | None,
        typer.Option(help="checkpoint directory or hub id (default: the embedded one); or scripted:oracle|blind|late"),
    ] = None,
    data: Annotated[Path, typer.Option(help="where each task finds its folder")] = Path("data"),
    manifest: Annotated[Path | None, typer.Option(help="questions of your own; see eval/manifest.py")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="so many samples of each kind")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    greedy: Annotated[bool, typer.Option(help="always the likeliest text and codes")] = False,
    paced: Annotated[bool, typer.Option(help="no faster than people talk")] = False,
    pictures: Annotated[Pictures, typer.Option(help="what lines of --manifest are shown")] = "given",
    sentences: Annotated[
        Path | None, typer.Option(help="what the model may say (default: eval/sentences/NAME.txt)")
    ] = None,
    recogniser: Annotated[str, typer.Option(help="sphinx (a closed world), none, or whisper:NAME_OR_DIR")] = "sphinx",
    judge: Annotated[str, typer.Option(help="of open answers: rules, or an OpenAI-compatible URL")] = "rules",
    batch_size: Annotated[int, typer.Option(min=1, help="calls at once")] = 16,
    processes: Annotated[int, typer.Option(min=1, help="so many copies of the model, each on a core")] = 1,
    device: Annotated[str, typer.Option(help="cpu, cuda ...")] = "cpu",
    quantize: Annotated[
        str | None, typer.Option(help="int8, int4, fp8, or by part: temporal=int8,depth=int4,tower=int8")
    ] = None,
) -> None:
    """Measure a checkpoint."""
    if context.invoked_subcommand is not None:
        return
    if tasks == "list":
        list_tasks()
        return
    from eval.who import How

    with told_errors():
        settings = Settings(
            data=data,
            manifest=manifest,
            limit=limit,
            seed=seed,
            greedy=greedy,
            pictures=pictures,
            sentences=None if sentences is None else read_sentences(sentences),
            recogniser=recogniser,
            judge=judge,
        )
        how = How(model, batch_size, processes=processes, device=device, paced=paced, quantize=quantize)
        evaluate(settings, how, tasks=tasks, out=out)


def list_tasks() -> None:
    """Name every task, with what it is."""
    from eval.tasks import NAMES, describe

    for name in NAMES:
        typer.echo(f"{name:20} {describe(name)}")


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="--out of a run")],
    b: Annotated[Path, typer.Argument(help="--out of another")],
) -> None:
    """Show where two runs differ, and whether that may be chance."""
    from rich.console import Console

    from eval.compare import compare_runs

    with told_errors():
        compare_runs(a, b, console=Console())


@app.command()
def ablate(
    plan: Annotated[Path, typer.Option(help="rows and columns; see configs/eval/ablation.yaml")],
    out: Annotated[Path, typer.Option(help="where replies and results go; a killed table goes on there")],
    data: Annotated[Path, typer.Option(help="where the questions are")] = Path("data"),
    runs: Annotated[Path | None, typer.Option(help="root of training: shards, and the runs made here")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="so many questions of each column")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    batch_size: Annotated[int, typer.Option(min=1)] = 16,
) -> None:
    """Print a table of what gate, picture, training data and projections are worth."""
    from rich.console import Console

    from eval.ablate import Places
    from eval.ablate import ablate as run_plan

    settings = Settings(limit=limit, seed=seed, greedy=True, recogniser="none")
    with told_errors():
        run_plan(plan, Places(data, runs, out), settings, batch_size=batch_size, console=Console())


def evaluate(settings: Settings, how: "How", *, tasks: str, out: Path) -> Path:
    """Run the tasks and write `out`/results.json and report.html; returns the former's path.

    A task whose data are not there is told of and left out, unless all are.
    """
    from rich.console import Console

    from eval.console import progress_bar, show_scores, show_summary
    from eval.measure import Run, measure_tasks
    from eval.report import write_report
    from eval.results import RESULTS, run_identity
    from eval.who import opened_bundle, responders

    console = Console()
    bundle = opened_bundle(how)
    settings = with_own_sentences(settings, bundle)
    built, missing = build_tasks(tasks, settings, bundle)
    for name, reason in missing.items():
        console.print(f"{name}: left out: {reason}", style="yellow", markup=False, highlight=False)
    if not built:
        raise ConfigError("none of the tasks could be run: " + "; ".join(f"{n}: {why}" for n, why in missing.items()))
    who = (how.model or "embedded") + (f" in {how.quantize}" if how.quantize else "")
    identity = run_identity(settings=settings, bundle=bundle, who=who, batch_size=how.batch_size)
    run = Run(out, identity, bundle, how.processes, missing)
    with responders(bundle, how, settings=settings, out=out) as responder_of:
        show = partial(show_summary, console=console)
        summaries = measure_tasks(built, run, responder_of, progress=progress_bar, measured=show)
    show_scores(summaries, console=console)
    typer.echo(f"{out / RESULTS}\n{write_report(out)}")
    return out / RESULTS


def with_own_sentences(settings: Settings, bundle) -> Settings:
    """Where none were given, what the model of that name is known to say."""
    own = SENTENCES / f"{bundle.config.name}.txt" if bundle is not None else None
    if settings.sentences is not None or own is None or not own.is_file():
        return settings
    return replace(settings, sentences=read_sentences(own))


def build_tasks(names: str, settings: Settings, bundle) -> tuple[list[Task], dict[str, str]]:
    """The tasks of a list of names, and why those could not be built whose data are not there."""
    from eval.tasks import NAMES, find

    built, missing = [], {}
    for name in NAMES if names == "all" else [name.strip() for name in names.split(",")]:
        try:
            built.append(find(name)(settings, bundle))
        except MissingDataError as error:
            missing[name] = str(error)
    return built, missing


def read_sentences(path: Path) -> tuple[str, ...]:
    """The lines of a text file; the recogniser's idea of what a model may say."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; expected one sentence per line")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text file; expected one sentence per line") from error
    return tuple(line.strip() for line in text.splitlines() if line.strip())


if __name__ == "__main__":
    app()
