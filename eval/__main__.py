"""`python -m eval --model DIR_OR_ID --tasks a,b --out DIR`, and `python -m eval compare A B`."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from eval.task import MissingDataError, Pictures, Settings, Task
from mmspeech.config import ConfigError, GenerationConfig

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
SENTENCES = Path(__file__).parent / "sentences"
GREEDY = GenerationConfig(text_temperature=0.0, audio_temperature=0.0)


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
) -> None:
    """Measure a checkpoint."""
    if context.invoked_subcommand is not None:
        return
    if tasks == "list":
        list_tasks()
        return
    try:
        settings = Settings(
            data=data,
            manifest=manifest,
            limit=limit,
            seed=seed,
            sampling=GREEDY if greedy else None,
            pictures=pictures,
            sentences=None if sentences is None else read_sentences(sentences),
            recogniser=recogniser,
            judge=judge,
        )
        how = How(model=model, batch_size=batch_size, processes=processes, device=device, paced=paced)
        evaluate(settings, how, tasks=tasks, out=out)
    except (ConfigError, OSError) as error:
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(2) from error


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

    try:
        compare_runs(a, b, console=Console())
    except ConfigError as error:
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(2) from error


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

    settings = Settings(limit=limit, seed=seed, sampling=GREEDY, recogniser="none")
    try:
        run_plan(plan, Places(data, runs, out), settings, batch_size=batch_size, console=Console())
    except (ConfigError, OSError) as error:
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(2) from error


@dataclass(frozen=True)
class How:
    """Who is measured, and on what."""

    model: str | None = None
    batch_size: int = 16
    processes: int = 1
    device: str = "cpu"
    paced: bool = False


def evaluate(settings: Settings, how: How, *, tasks: str, out: Path) -> Path:
    """Run the tasks and write `out`/results.json and report.html; returns the former's path.

    A task whose data are not there is told of and left out, unless all are.
    """
    from rich.console import Console

    from eval.console import show_scores
    from eval.report import write_report
    from eval.results import claim, run_identity, task_identity, write_results
    from eval.who import opened_bundle

    console = Console()
    bundle = opened_bundle(how.model, how.device)
    settings = with_own_sentences(settings, bundle)
    built, missing = build_tasks(tasks, settings, bundle)
    for name, reason in missing.items():
        console.print(f"{name}: left out: {reason}", style="yellow", markup=False, highlight=False)
    if not built:
        raise ConfigError("none of the tasks could be run: " + "; ".join(f"{n}: {why}" for n, why in missing.items()))
    who = how.model or "embedded"
    identity = run_identity(settings=settings, bundle=bundle, who=who, batch_size=how.batch_size)
    about = {task.name: task_identity(task) for task in built}
    claim(out, identity, about)
    summaries, spent_sec = run_all(built, bundle, settings, how, out=out, console=console)
    summaries = {name: about[name] | summary for name, summary in summaries.items()}
    file = write_results(out, identity=identity, tasks=summaries, missing=missing, spent_sec=spent_sec, bundle=bundle)
    show_scores(summaries, console=console)
    typer.echo(f"{file}\n{write_report(out)}")
    return file


def run_all(built: list[Task], bundle, settings: Settings, how: How, *, out: Path, console):
    """Each task's summary and the seconds it took, by name."""
    from contextlib import nullcontext

    from eval.console import progress_bar, show_summary
    from eval.results import summarise_task
    from eval.run import run_task
    from eval.who import opened_model, script_of

    opened = nullcontext()
    if bundle is not None:
        place = {"out": out, "device": how.device, "paced": how.paced, "processes": how.processes}
        opened = opened_model(bundle, settings=settings, **place)
    summaries, spent_sec = {}, {}
    with opened as model:
        for task in built:
            responder = script_of(how.model, task) if model is None else model
            with progress_bar(task.name) as advance:
                records, spent = run_task(
                    task,
                    responder,
                    out=out,
                    seed=settings.seed,
                    batch_size=how.batch_size,
                    at_once=how.processes,
                    progress=advance,
                )
            summaries[task.name], spent_sec[task.name] = summarise_task(task, records), round(spent, 1)
            show_summary(task.name, summaries[task.name], console=console)
    return summaries, spent_sec


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
