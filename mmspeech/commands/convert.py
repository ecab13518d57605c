"""`mmspeech convert` and `mmspeech verify`: other projects' checkpoints into ours and back, and the proof of it."""

from pathlib import Path

from rich.console import Console
from rich.table import Table


def run_convert(src: str, dst: Path, *, layout: str | None, lora: Path | None) -> None:
    """Translate the directory (or hub id) `src` into a new directory `dst`, and say what was not there to translate."""
    from mmspeech.formats.directory import convert_directory
    from mmspeech.hub import fetched

    console = Console(stderr=True)
    with console.status(f"converting {src}"):
        notes = convert_directory(fetched(src), dst, layout=layout, lora=lora)
    for note in notes:
        console.print(f"note: {note}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    print(dst)


def run_verify(path: Path) -> int:
    """Print the largest difference of every stored tensor; 0 when all are within their limits, else 1."""
    from mmspeech.verify import verify

    with Console(stderr=True).status(f"running {path}"):
        rows = verify(path)
    table = Table("", "tensor", "shape", "largest difference", "allowed")
    for row in rows:
        shown = "equal" if row.limit == 0 and row.passed else f"{row.difference:.2e}"
        mark = "[green]ok[/green]" if row.passed else "[red]differs[/red]"
        table.add_row(mark, row.name, "×".join(map(str, row.shape)), shown, f"{row.limit:g}" if row.limit else "none")
    passed = all(row.passed for row in rows)
    console = Console()
    console.print(table)
    console.print(f"{path}: {'all agree' if passed else 'differs from the reference'}", highlight=False, soft_wrap=True)
    return 0 if passed else 1
