"""RUN/metrics.jsonl as a picture: `python -m train.curves RUN` writes RUN/curves.png; a run does so when it ends."""

import argparse
import json
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmspeech.config import ConfigError
from train.gap import GAP

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = {
    "loss": "loss",
    "text_loss": "text loss",
    "audio_loss": "audio loss",
    "word_acc": "word accuracy",
    "semantic_acc": "semantic code accuracy",
    "gap": "what seeing is worth (sighted against blind)",
    "gate": "mean gate",
    "gate_open": "share of gates beyond 0.5",
    "gate_layers": "gate of each layer",
    "grad_norm": "gradient norm, before clipping",
    "learning_rate": "learning rate",
    "frames_per_sec": "frames per second",
}
COLUMNS = 3
GATE_LAYER = re.compile(r"gate_layer_(\d+)")
PALETTE = ("#0f766e", "#c2410c", "#7c3aed", "#0369a1", "#a16207", "#be185d")
TRAIN, INK = "#94a3b8", "#334155"
SMOOTHED_POINTS = 60

Lines = dict[str, list[tuple[int, float]]]
Curves = dict[str, Lines]


def read_curves(run_dir: Path) -> Curves:
    """{number: {"train" or "eval/SET": [(step, value), ...]}}. Raises ConfigError where there is nothing to draw."""
    file = run_dir / "metrics.jsonl"
    if not file.is_file():
        raise ConfigError(f"{file}: not there; expected the folder of a run")
    curves: Curves = defaultdict(lambda: defaultdict(list))
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue  # the line a run is writing
        for name, value in entry.items():
            if isinstance(value, int | float) and (name in PANELS or GATE_LAYER.fullmatch(name)):
                curves[name][entry["kind"]].append((entry["step"], value))
    if not curves:
        raise ConfigError(f"{file}: no numbers to draw; expected lines of a run of `python -m train`")
    return curves


def draw_curves(run_dir: Path) -> Path:
    """Write curves.png: a panel for each number, a line for each set it was measured on."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    curves = read_curves(run_dir)
    gap = {name: _take_gap(curves, name) for name in ("word_acc", "text_loss")}
    layers = {int(found[1]): curves[name] for name in sorted(curves) if (found := GATE_LAYER.fullmatch(name))}
    held = [name for name in PANELS if curves.get(name)]
    held += [name for name, there in (("gap", any(gap.values())), ("gate_layers", layers)) if there]
    shown = [name for name in PANELS if name in held]
    colours = _colours(curves)
    rows = -(-len(shown) // COLUMNS)
    figure = Figure(figsize=(5.2 * COLUMNS, 3.1 * rows + 0.4), layout="constrained", facecolor="white")
    figure.suptitle(run_dir.name, x=0.01, ha="left", fontsize=13, weight="bold", color=INK)
    FigureCanvasAgg(figure)
    for place, name in enumerate(shown, start=1):
        axes = figure.add_subplot(rows, COLUMNS, place)
        axes.set_title(PANELS[name], loc="left", fontsize=10, color=INK)
        axes.tick_params(labelsize=8, colors=INK)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(TRAIN)
        if name == "gap":
            _draw_gap(axes, gap)
        elif name == "gate_layers":
            _draw_gate_layers(axes, layers)
        else:
            _draw_lines(axes, curves[name], colours, smooth=name != "learning_rate")
    lines = {kind: Line2D([], [], color=colour, linewidth=2) for kind, colour in colours.items()}
    figure.legend(lines.values(), lines.keys(), loc="upper right", ncols=len(lines), fontsize=9, frameon=False)
    figure.savefig(run_dir / "curves.png", dpi=100)
    return run_dir / "curves.png"


def _take_gap(curves: Curves, name: str) -> Lines:
    """The gap's own lines of a number, taken out of `curves`."""
    kinds = [kind for kind in curves.get(name, ()) if kind.startswith(f"eval/{GAP}")]
    return {kind.removeprefix(f"eval/{GAP}").lstrip("_"): curves[name].pop(kind) for kind in kinds}


def _colours(curves: Curves) -> dict[str, str]:
    """One colour for each set, the same in every panel."""
    kinds = dict.fromkeys(kind for lines in curves.values() for kind in lines if kind != "train")
    return {"train": TRAIN} | {kind: PALETTE[place % len(PALETTE)] for place, kind in enumerate(kinds)}


def _draw_lines(axes: "Axes", lines: Lines, colours: dict[str, str], *, smooth: bool) -> None:
    for kind in sorted(lines, key=lambda kind: kind != "train"):
        steps, values = np.array(lines[kind]).T
        marker = "." if len(steps) < 20 else None
        faint = smooth and len(steps) > 2 * SMOOTHED_POINTS
        axes.plot(steps, values, color=colours[kind], marker=marker, linewidth=1, alpha=0.3 if faint else 1)
        if faint:
            axes.plot(steps, _smooth(values), color=colours[kind], linewidth=1.6)
    _finish(axes)


def _draw_gap(axes: "Axes", gap: dict[str, Lines]) -> None:
    names = {"word_acc": ("word accuracy gained", "-"), "text_loss": ("text loss saved", "--")}
    axes.axhline(0, color=TRAIN, linewidth=0.8)
    for name, lines in gap.items():
        for place, (pair, points) in enumerate(lines.items()):
            label, style = names[name]
            steps, values = np.array(points).T
            axes.plot(steps, values, style, color=PALETTE[place % len(PALETTE)], marker=".", linewidth=1.4,
                      label=f"{label} {pair}".strip())  # fmt: skip
    axes.legend(fontsize=8, frameon=False)
    _finish(axes)


def _draw_gate_layers(axes: "Axes", layers: dict[int, Lines]) -> None:
    """Over steps and layers, as measured on the first validation set that has them, else in training."""
    from matplotlib.colors import PowerNorm

    kinds = list(dict.fromkeys(kind for lines in layers.values() for kind in lines))
    kind = next((kind for kind in kinds if kind != "train"), kinds[0])
    values = [np.array(lines[kind]).T for lines in layers.values()]
    steps, height = values[0][0], np.arange(len(layers) + 1) - 0.5
    middle = (steps[1:] + steps[:-1]) / 2
    edges = np.concatenate([[0.0], middle, steps[-1:]])
    gates = np.stack([gate for _, gate in values])
    image = axes.pcolormesh(edges, height, abs(gates), norm=PowerNorm(0.5, 0, 1), cmap="magma")
    every = -(-len(layers) // 12)
    axes.set_yticks(range(0, len(layers), every), [str(layer) for layer in list(layers)[::every]])
    axes.set_ylabel("layer", fontsize=8, color=INK)
    bar = axes.figure.colorbar(image, ax=axes, ticks=[0, 0.05, 0.25, 0.5, 1], pad=0.02)
    bar.ax.set_yticklabels(["0", "0.05", "0.25", "0.5", "1"], fontsize=7)
    bar.outline.set_visible(False)
    axes.set_xlabel(f"step ({kind})", fontsize=8, color=INK)


def _finish(axes: "Axes") -> None:
    axes.grid(alpha=0.25)
    axes.set_xlabel("step", fontsize=8, color=INK)
    axes.set_xlim(left=0)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Means of a window that shrinks towards both ends; what is not finite has no part in them."""
    half = max(1, len(values) // SMOOTHED_POINTS)
    return np.array([np.nanmean(values[max(0, i - half) : i + half + 1]) for i in range(len(values))])


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
