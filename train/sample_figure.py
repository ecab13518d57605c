"""A sampled call as one picture: both voices, the words above their frames, the gates over time and layers."""

import io
from dataclasses import dataclass
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np

from mmspeech.commands.plot import draw_wave
from mmspeech.frames import FRAME_RATE_HZ, SAMPLE_RATE_HZ

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from train.samples import SampledCall

DPI = 110
USER, MODEL, FAINT = "#6b7280", "#0f766e", "#9ca3af"
LEFT, RIGHT, PICTURE, BOTTOM = 0.75, 0.95, 2.3, 0.5  # inches: margins, and the column of pictures
TITLE, WORDS, WAVE, GAP = 0.45, 0.55, 0.5, 0.08
SHOWN_PICTURES = 4


@dataclass(frozen=True)
class CallFigure:
    """png: the image; left and right: where second 0 and the last second lie, as shares of its width."""

    png: bytes
    left: float
    right: float

    def pixels(self) -> np.ndarray:
        """[H, W, 3] uint8."""
        from PIL import Image

        return np.asarray(Image.open(io.BytesIO(self.png)).convert("RGB"))


class _Sheet:
    """Axes placed in inches, from the top down, over one time axis."""

    def __init__(self, *, width: float, height: float, span: float, duration_sec: float):
        from matplotlib.figure import Figure

        self.figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
        self.width, self.height, self.span, self.duration_sec = width, height, span, duration_sec
        self.below = height - TITLE

    def row(self, height: float, *, gap: float = GAP) -> "Axes":
        self.below -= height
        place = (LEFT / self.width, self.below / self.height, self.span / self.width, height / self.height)
        axes = self.figure.add_axes(place, xlim=(0, self.duration_sec), xticks=[])
        axes.spines[:].set_visible(False)
        self.below -= gap
        return axes


def draw_call(call: "SampledCall") -> CallFigure:
    """Draw it: time in seconds from left to right, a row for each layer that looks."""
    duration_sec = max(1.0, call.wave.shape[1] / SAMPLE_RATE_HZ)
    span = float(np.clip(duration_sec * 0.95, 7.0, 24.0))
    layers = len(call.layers)
    heat = float(np.clip(layers * 0.2, 1.2, 4.5)) if layers else 0.0
    width = LEFT + span + RIGHT + (PICTURE if call.pictures else 0)
    height = TITLE + 2 * (WORDS + WAVE + GAP) + heat + BOTTOM + 0.35
    sheet = _Sheet(width=width, height=height, span=span, duration_sec=duration_sec)
    said = " ".join(word.text for word in call.words) or "(nothing)"
    title = fill(f"{call.id}   the model said: {said}", width=int(span * 13), max_lines=2, placeholder=" …")
    sheet.figure.text(LEFT / width, 1 - 0.08 / height, title, va="top", fontsize=10, weight="bold", parse_math=False)
    _voice(sheet, [(word.start_sec, word.text) for word in call.heard], call.wave[1].numpy(), USER, "user")
    words = [(word.start_sec, word.text) for word in call.words]
    axes = _voice(sheet, words, call.wave[0].numpy(), MODEL, "model")
    if layers:
        axes = sheet.row(heat)
        _gates(sheet, axes, call)
    axes.set_xticks(np.arange(0, duration_sec + 0.01, 1 if span / duration_sec > 0.45 else 5))
    axes.tick_params(axis="x", labelsize=8, colors=USER)
    axes.set_xlabel("seconds", fontsize=8, color=USER)
    _pictures(sheet, call)
    target = io.BytesIO()
    sheet.figure.savefig(target, format="png")
    return CallFigure(target.getvalue(), LEFT / width, (LEFT + span) / width)


def _voice(sheet: _Sheet, words: list[tuple[float, str]], wave: np.ndarray, colour: str, label: str) -> "Axes":
    strip = sheet.row(WORDS, gap=0)
    strip.set(ylim=(0, 1), yticks=[])
    axes = sheet.row(WAVE)
    draw_wave(axes, wave, colour=colour, label="")
    axes.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9, color=colour)
    for start_sec, text in words:
        strip.text(start_sec, 0.06, text, rotation=38, rotation_mode="anchor", fontsize=8.5, color=colour,
                   parse_math=False)  # fmt: skip
        axes.axvline(start_sec, color=colour, linewidth=0.6, alpha=0.35)
    return axes


def _gates(sheet: _Sheet, axes: "Axes", call: "SampledCall") -> None:
    """Colours rise with the root of the gate, so that one that begins to open shows; the scale never moves."""
    from matplotlib.colors import Normalize, PowerNorm

    norm, colours, ticks = PowerNorm(0.5, 0, 1), "magma", [0, 0.05, 0.25, 0.5, 1]
    if call.signed_gates:
        norm, colours, ticks = Normalize(-1, 1), "RdBu_r", [-1, 0, 1]
    end_sec = len(call.layer_gates) / FRAME_RATE_HZ
    image = axes.imshow(
        call.layer_gates.T, aspect="auto", origin="lower", interpolation="nearest", norm=norm, cmap=colours,
        extent=(0, end_sec, -0.5, len(call.layers) - 0.5),
    )  # fmt: skip
    axes.set_xlim(0, sheet.duration_sec)
    every = -(-len(call.layers) // 16)
    axes.set_yticks(range(0, len(call.layers), every), [str(layer) for layer in call.layers[::every]], fontsize=8)
    axes.tick_params(axis="y", length=0, colors=USER)
    axes.set_ylabel("gate of layer", fontsize=9, color=USER)
    for word in call.words:
        axes.axvline(word.start_sec, color="white", linewidth=0.5, alpha=0.45)
    for _, start_sec in call.pictures:
        if 0 < start_sec < sheet.duration_sec:
            axes.axvline(start_sec, color="#22d3ee", linewidth=1.2, linestyle="--")
    box = axes.get_position()
    bar = sheet.figure.add_axes((box.x1 + 0.12 / sheet.width, box.y0, 0.11 / sheet.width, box.height))
    sheet.figure.colorbar(image, cax=bar, ticks=ticks)
    bar.tick_params(labelsize=7, length=2, colors=USER)
    bar.set_yticklabels([f"{tick:g}" for tick in ticks])
    bar.spines[:].set_visible(False)
    bar.set_title("open", fontsize=7, color=USER, loc="left", pad=4)


def _pictures(sheet: _Sheet, call: "SampledCall") -> None:
    shown = call.pictures[:SHOWN_PICTURES]
    left, room = (sheet.width - PICTURE) / sheet.width, (sheet.height - TITLE - BOTTOM) / max(1, len(shown))
    for place, (picture, start_sec) in enumerate(shown):
        below = sheet.height - TITLE - room * (place + 1) + 0.1
        size = (PICTURE - 0.2) / sheet.width, (room - 0.3) / sheet.height
        axes = sheet.figure.add_axes((left, below / sheet.height, *size), xticks=[], yticks=[], anchor="N")
        axes.imshow(np.asarray(picture))
        axes.spines[:].set_edgecolor(FAINT)
        axes.set_title(f"seen from {start_sec:.2f} s on", fontsize=8, color=USER)
