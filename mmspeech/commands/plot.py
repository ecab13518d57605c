"""A picture of a call: both waveforms, the words where they sound, and the gate."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmspeech.commands.common import whole_file
from mmspeech.frames import FRAME_RATE_HZ, SAMPLE_RATE_HZ

if TYPE_CHECKING:
    from mmspeech.commands.talk import Talk

_POINTS_PER_SEC = 200


def plot_talk(talk: "Talk", path: Path) -> None:
    """Draw `talk` into `path` (png, pdf or svg)."""
    from matplotlib.figure import Figure

    duration_sec = len(talk.reply) / SAMPLE_RATE_HZ
    figure = Figure(figsize=(max(6.0, min(24.0, duration_sec * 1.6)), 5.0), layout="constrained")
    user, model, gate = figure.subplots(3, 1, sharex=True, height_ratios=(2, 3, 1))
    draw_wave(user, talk.question.numpy(), colour="tab:gray", label="user")
    draw_wave(model, talk.reply.numpy(), colour="tab:blue", label="model", top=2.2)
    for word in talk.transcript.words:
        model.annotate(
            word.text, (word.start_sec, 1.05), rotation=45, fontsize=9, annotation_clip=False,
            color=(0.1, 0.35 + 0.3 * word.gate, 0.35 + 0.6 * word.gate),
        )  # fmt: skip
    times_sec = np.arange(len(talk.gates)) / FRAME_RATE_HZ
    gate.step(times_sec, talk.gates, where="post", color="tab:cyan")
    gate.set(ylim=(0, 1), ylabel="gate", xlabel="seconds", xlim=(0, duration_sec))
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=120)


def draw_wave(axes, wave: np.ndarray, *, colour: str, label: str, top: float = 1.0) -> None:
    """The envelope of a wave [N], from -1 to 1: a point for every sample would take long to draw and look the same."""
    size = SAMPLE_RATE_HZ // _POINTS_PER_SEC
    pieces = wave[: len(wave) // size * size].reshape(-1, size)
    times_sec = np.arange(len(pieces)) / _POINTS_PER_SEC
    peak = max(1e-3, float(np.abs(pieces).max(initial=0.0)))
    axes.fill_between(times_sec, pieces.min(axis=1) / peak, pieces.max(axis=1) / peak, color=colour, linewidth=0)
    axes.set(ylim=(-1, top), ylabel=label, yticks=[])
