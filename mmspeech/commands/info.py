"""`mmspeech info`: what a model is made of, without running it."""

from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from mmspeech.audio.codec import build_codec
from mmspeech.checkpoint import CONFIG, TOWER, CheckpointError, resolve
from mmspeech.config import ModelConfig, load_config
from mmspeech.frames import FRAME_RATE_HZ
from mmspeech.lm.model import VisionSpeechModel

_DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass
class Part:
    """A row of the table; parameters None when they are not in the checkpoint (a tower loaded by name)."""

    name: str
    parameters: int | None
    note: str = ""


def run_info(model: str | None) -> None:
    """Print the parts, parameters and memory of a checkpoint, hub id or configuration file."""
    if model is not None and Path(model).suffix in (".yaml", ".yml", ".json"):
        path, directory = Path(model), None
    else:
        directory = resolve(model)
        path = directory / CONFIG
    config = load_config(ModelConfig, path)
    with torch.device("meta"):
        network, codec = VisionSpeechModel(config), build_codec(config.codec)
    parts = list_parts(config, network, codec, directory)
    console = Console()
    console.print(f"[bold]{config.name}[/bold]  {path}", highlight=False, soft_wrap=True)
    console.print(_parts_table(parts))
    adapters = sum(p.numel() for p in network.adapter_parameters())
    known = sum(part.parameters or 0 for part in parts)
    console.print(f"parameters: {known:,} in all, {adapters:,} trainable as vision adapters", highlight=False)
    context_sec = config.lm.temporal.context / FRAME_RATE_HZ
    console.print(
        f"frames: {FRAME_RATE_HZ} per second, {config.lm.num_codebooks} codebooks of {config.lm.audio_card}, "
        f"looks back {context_sec:.0f} s",
        highlight=False,
    )
    cache = 2 * config.lm.temporal.num_layers * config.lm.temporal.context * config.lm.temporal.dim
    sizes = (f"{name} {(known + cache) * size / 2**20:,.0f} MiB" for name, size in _DTYPES.items())
    console.print(
        f"memory for one call (weights, attention window): {', '.join(sizes)}", highlight=False, soft_wrap=True
    )


def list_parts(config: ModelConfig, network: VisionSpeechModel, codec: nn.Module, directory: Path | None) -> list[Part]:
    """Every part once, in the order of the data flow. Cross-attention is counted as a part of its own."""
    fusion = network.lm.temporal.fusion
    inside = 0 if fusion is None else count(fusion)
    parts = [Part(f"codec ({config.codec.kind})", count(codec))]
    if config.vision is not None:
        parts.append(_tower(config, directory))
        parts.append(Part("projector", count(network.projector), "adapter"))
        parts.append(Part("cross-attention and gates", inside, "adapter"))
    parts.append(Part("temporal transformer", count(network.lm.temporal) - inside))
    parts.append(Part("depth transformer", count(network.lm.depth)))
    return parts


def count(module: nn.Module) -> int:
    """Parameters of a module, shared ones once."""
    return sum(parameter.numel() for parameter in module.parameters())


def _tower(config: ModelConfig, directory: Path | None) -> Part:
    from safetensors import SafetensorError, safe_open

    name = f"vision tower ({config.vision.tower}, {config.vision.image_size_px} px)"
    if directory is None or not (directory / TOWER).is_file():
        return Part(name, None, "frozen; loaded by name")
    try:
        with safe_open(str(directory / TOWER), framework="pt") as file:
            shapes = [file.get_slice(key).get_shape() for key in file.keys()]  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(
            f"{directory / TOWER}: not a readable safetensors file ({error}); copy it again"
        ) from error
    return Part(name, sum(torch.Size(shape).numel() for shape in shapes), "frozen")


def _parts_table(parts: list[Part]) -> Table:
    table = Table("part", "parameters", "")
    table.columns[1].justify = "right"
    for part in parts:
        table.add_row(part.name, "–" if part.parameters is None else f"{part.parameters:,}", part.note)
    return table
