"""`python -m eval.views --audio Q.wav --image P.png --out DIR`: which words looked, and where: gate and attention."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
import typer
from torch import Tensor

from eval.console import told_errors
from eval.task import Prompt
from mmspeech.audio.waveform import in_frames
from mmspeech.config import ConfigError
from mmspeech.frames import FRAME_RATE_HZ, FRAME_SAMPLES
from mmspeech.nn.cross_attention import CrossProjections
from mmspeech.serve.engine import CallBatch
from mmspeech.serve.session import TextReader

if TYPE_CHECKING:
    from PIL.Image import Image

    from mmspeech.checkpoint import Bundle

MOST_WORDS = 15
LISTEN_SEC = 6.0  # after the question


@dataclass
class LookedWord:
    """A word of a reply: its mean gate, and where its pieces looked, [S] (sums to 1), averaged over heads, looking
    layers and pieces; None where nothing was seen."""

    text: str
    frame: int
    gate: float
    attention: np.ndarray | None


@contextmanager
def recorded_attention(bundle: "Bundle") -> Iterator[list[Tensor]]:
    """While open, what each call of a cross-attention layer attends to is appended: [B, T, S], averaged over heads.

    It is computed again beside the layer's own attention, which stays as it is.
    """
    found: list[Tensor] = []

    def record(layer: CrossProjections, args: tuple, kwargs: dict, _out: Tensor) -> None:
        found.append(attention_weights(layer, *args, **kwargs).mean(dim=1))

    layers = [module for module in bundle.model.modules() if isinstance(module, CrossProjections)]
    hooks = [layer.register_forward_hook(record, with_kwargs=True) for layer in layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def attention_weights(
    layer: CrossProjections, x: Tensor, keys: Tensor, values: Tensor, *, mask: Tensor | None, ages: Tensor | None = None
) -> Tensor:
    """What `layer` attends to when called with these: softmax over tokens, [B, H, T, S]."""
    query, keys = (y.unflatten(-1, (-1, layer.head_dim)).transpose(1, 2) for y in (layer.q_proj(x), keys))
    logits = (query.to(keys.dtype) @ keys.transpose(-1, -2)).float() * layer.head_dim**-0.5
    if layer.age is not None:
        logits = logits + layer._age_logits(query, ages)
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf)
    return logits.softmax(dim=-1)


def looked_words(bundle: "Bundle", prompt: Prompt, *, seed: int = 0) -> list[LookedWord]:
    """Make the call of a prompt (greedy), and tell where each word looked. SightError for a model without eyes."""
    calls, reader = CallBatch(bundle, sampling=bundle.config.generation.greedy(), seed=seed), TextReader(bundle)
    for at_sec, picture in prompt.pictures:
        calls.show(picture, 0, at_sec=at_sec)
    frames = [*in_frames(prompt.wave), *torch.zeros(int(LISTEN_SEC * FRAME_RATE_HZ), FRAME_SAMPLES)]
    seen: list[np.ndarray | None] = []
    words: list[LookedWord] = []
    pieces: list[list[tuple[float, np.ndarray | None]]] = []
    with recorded_attention(bundle) as found:
        for pcm in frames:
            found.clear()
            result = calls.step(pcm[None])
            seen.append(torch.stack([one[0, 0] for one in found]).mean(dim=0).cpu().numpy() if found else None)
            frame = result.frames[0]
            piece = reader.piece(int(result.out.text_ids[0])) if result.out is not None and frame >= 0 else None
            if piece is None:
                continue
            if not words or piece.startswith(" "):
                words.append(LookedWord("", frame, 0.0, None))
                pieces.append([])
            words[-1].text += piece.strip()
            # The piece of frame f was chosen in step f.
            pieces[-1].append((float(result.out.gate[0]), seen[frame]))
    for word, own in zip(words, pieces, strict=True):
        word.gate = float(np.mean([gate for gate, _ in own]))
        looked = [attention for _, attention in own if attention is not None]
        word.attention = np.mean(looked, axis=0) if looked else None
    return [word for word in words if word.text]


def draw_views(words: list[LookedWord], picture: "Image", path: Path) -> Path:
    """Draw the picture once for each word (the first MOST_WORDS), lit where it looked, over the gate of all words.

    ConfigError where there are no words, or where tokens are no square grid (several pictures, or pooled ones).
    """
    from matplotlib.figure import Figure

    shown = [word for word in words if word.attention is not None][:MOST_WORDS]
    if not shown:
        raise ConfigError("no word was said while a picture was in view; ask about the picture")
    side = math.isqrt(len(shown[0].attention))
    if side * side != len(shown[0].attention):
        raise ConfigError(
            f"{len(shown[0].attention)} visual tokens are no square grid of one picture; nothing to draw on"
        )
    columns = min(5, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(2.2 * columns, 2.4 * rows + 1.8), layout="constrained")
    maps, gates = figure.subfigures(2, 1, height_ratios=(2.4 * rows, 1.8))
    for axes, word in zip(np.ravel(maps.subplots(rows, columns, squeeze=False)), shown, strict=False):
        size = picture.size
        axes.imshow(picture.convert("L"), cmap="gray", vmin=0, vmax=255, extent=(0, size[0], size[1], 0))
        heat = word.attention.reshape(side, side)
        axes.imshow(heat, cmap="inferno", alpha=0.6, extent=(0, size[0], size[1], 0), interpolation="bilinear", vmin=0)
        axes.set_title(f"{word.text} ({word.gate:.2f})", fontsize=9)
    for axes in maps.axes:
        axes.axis("off")
    axes = gates.subplots()
    axes.bar(range(len(words)), [word.gate for word in words], color="tab:cyan")
    axes.set_xticks(range(len(words)), [word.text for word in words], rotation=45, fontsize=8)
    axes.set(ylim=(0, 1), ylabel="gate")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


def main(
    audio: Annotated[Path, typer.Option(help="a spoken question")],
    image: Annotated[Path, typer.Option(help="the picture it is about")],
    out: Annotated[Path, typer.Option(help="folder to write views.png to")],
    model: Annotated[str | None, typer.Option(help="checkpoint (default: the embedded one)")] = None,
) -> None:
    """Draw which words of the answer looked at the picture, and where."""
    from mmspeech.audio.waveform import read_audio
    from mmspeech.checkpoint import load_model
    from mmspeech.serve.engine import settle_threads
    from mmspeech.vision.image import load_image

    with told_errors():
        bundle, picture = load_model(model), load_image(image)
        settle_threads(bundle.model)
        words = looked_words(bundle, Prompt(read_audio(audio)[0].numpy(), [(0.0, picture)]))
        typer.echo(" ".join(f"{word.text}({word.gate:.2f})" for word in words))
        typer.echo(str(draw_views(words, picture, out / "views.png")))


if __name__ == "__main__":
    typer.run(main)
