"""`python -m eval --model DIR_OR_ID --tasks spoken_vqa --manifest M.jsonl --out DIR`."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from eval.task import Pictures, Settings, Task
from mmspeech.config import ConfigError, GenerationConfig

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
SENTENCES = Path(__file__).parent / "sentences"
GREEDY = GenerationConfig(text_temperature=0.0, audio_temperature=0.0)


@app.command()
def main(
    manifest: Annotated[Path, typer.Option(help="one JSON object per line; see eval/manifest.py")],
    out: Annotated[Path, typer.Option(help="folder for results.json and samples.jsonl; a killed run goes on there")],
    tasks: Annotated[str, typer.Option(help="names, with commas between them")] = "spoken_vqa",
    model: Annotated[
        str | None, typer.Option(help="checkpoint directory or hub id (default: the embedded one)")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="only the first lines")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    greedy: Annotated[bool, typer.Option(help="always the likeliest text and codes")] = False,
    pictures: Annotated[Pictures, typer.Option(help="show each line its picture or clip")] = "given",
    sentences: Annotated[
        Path | None, typer.Option(help="what the model may say (default: eval/sentences/NAME.txt)")
    ] = None,
    save_audio: Annotated[bool, typer.Option(help="keep every reply as a wav file")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="calls at once")] = 16,
    device: Annotated[str, typer.Option(help="cpu, cuda ...")] = "cpu",
) -> None:
    """Measure a checkpoint on recorded questions."""
    try:
        settings = Settings(
            manifest=manifest,
            limit=limit,
            seed=seed,
            sampling=GREEDY if greedy else None,
            pictures=pictures,
            sentences=None if sentences is None else read_sentences(sentences),
            audio_dir=out / "audio" if save_audio else None,
        )
        evaluate(settings, task_names=tasks.split(","), out=out, model=model, batch_size=batch_size, device=device)
    except (ConfigError, OSError) as error:
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(2) from error


def evaluate(
    settings: Settings, *, task_names: list[str], out: Path, model: str | None, batch_size: int, device: str
) -> Path:
    """Run the tasks and write `out`/results.json; returns its path."""
    from rich.console import Console

    from eval.console import progress_bar, show_summary
    from eval.report import claim, run_identity, summarise_task, write_results
    from eval.run import run_task
    from eval.tasks import find
    from mmspeech.checkpoint import load_model
    from mmspeech.commands.common import check_device
    from mmspeech.serve.engine import settle_threads

    builders = [find(name.strip()) for name in task_names]
    bundle = load_model(model, device=check_device(device))
    settle_threads(bundle.model)
    own = SENTENCES / f"{bundle.config.name}.txt"
    if settings.sentences is None and own.is_file():
        settings = replace(settings, sentences=read_sentences(own))
    tasks: list[Task] = [build(settings, bundle, None) for build in builders]
    identity = run_identity(settings=settings, bundle=bundle, batch_size=batch_size, tasks=tasks)
    claim(out, identity)
    summaries = {}
    for task in tasks:
        with progress_bar(task.name) as advance:
            records, spent_sec = run_task(task, out=out, seed=settings.seed, batch_size=batch_size, progress=advance)
        summaries[task.name] = {**summarise_task(task, records), "spent_sec": round(spent_sec, 1)}
        show_summary(task.name, summaries[task.name], console=Console())
    file = write_results(out, identity=identity, tasks=summaries, bundle=bundle)
    typer.echo(f"{file}")
    return file


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
