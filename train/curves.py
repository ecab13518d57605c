"""RUN/metrics.jsonl as a picture: `python -m train.curves RUN` writes RUN/curves.png; a run does so when it ends."""

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path

from mmspeech.config import ConfigError

PANELS = ("loss", "text_loss", "audio_loss", "word_acc", "semantic_acc", "gate", "grad_norm", "learning_rate",
          "frames_per_sec")  # fmt: skip
COLUMNS = 3

Curves = dict[str, dict[str, list[tuple[int, float]]]]


def read_curves(run_dir: Path) -> Curves:
    """{number: {"train" or "eval/SET": [(step, value), ...]}}. Raises ConfigError where there is nothing to draw."""
    file = run_dir / "metrics.jsonl"
    if not file.is_file():
        raise ConfigError(f"{file}: not there; expected the folder of a run")
    curves: Curves = defaultdict(lambda: defaultdict(list))
    for line in file.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        for name in PANELS:
            if isinstance(entry.get(name), int | float):
                curves[name][entry["kind"]].append((entry["step"], entry[name]))
    return curves


def draw_curves(run_dir: Path) -> Path:
    """Write curves.png: a panel for each number, a line for each set it was measured on."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curves = read_curves(run_dir)
    shown = [name for name in PANELS if name in curves]
    rows = -(-len(shown) // COLUMNS)
    figure = Figure(figsize=(5 * COLUMNS, 3 * max(1, rows)), layout="constrained")
    FigureCanvasAgg(figure)
    for place, name in enumerate(shown, start=1):
        axes = figure.add_subplot(rows, COLUMNS, place, title=name, xlabel="step")
        for kind, points in curves[name].items():
            steps, values = zip(*points, strict=True)
            axes.plot(steps, values, label=kind, marker="." if len(points) < 20 else None, linewidth=1)
        axes.grid(alpha=0.3)
        if len(curves[name]) > 1:
            axes.legend(fontsize="small")
    figure.savefig(run_dir / "curves.png", dpi=90)
    return run_dir / "curves.png"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    try:
        print(draw_curves(parser.parse_args().run))
    except (ConfigError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
