"""`mmspeech add-vision`: fresh adapters beside any duplex model, ready to train."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from mmspeech.checkpoint import (
    CARD,
    CODEC,
    CONFIG,
    MODEL,
    TOKENIZER,
    CheckpointError,
    check_keys,
    read_tensors,
    replacing_directory,
    resolve,
    write_tensors,
)
from mmspeech.config import ConfigError, FusionConfig, ModelConfig, apply_overrides, parse_config, read_mapping
from mmspeech.lm.model import VisionSpeechModel, build_adapters


@dataclass(frozen=True)
class AddVisionOptions:
    """The options of the command, as given; `overrides`: a.b=value for the new configuration."""

    base: str
    out: Path
    tower: str
    overrides: list[str]
    seed: int


def run_add_vision(options: AddVisionOptions) -> None:
    """Write `options.out` and print it. The tower stays where its name says; its weights are not copied."""
    base = resolve(options.base)
    before = parse_config(ModelConfig, read_mapping(base / CONFIG), source=str(base / CONFIG))
    if before.vision is not None:
        raise ConfigError(f"{base}: sees already, through {before.vision.tower}; give a speech model without vision")
    config = _with_vision(before, options)
    torch.manual_seed(options.seed)
    fresh = build_adapters(config)
    tensors = read_tensors(base / MODEL)
    with torch.device("meta"):
        check_keys(VisionSpeechModel(before).state_dict(), tensors, source=base / MODEL)
    dtype = tensors["lm.temporal.text_linear.weight"].dtype
    if options.out.resolve() == base.resolve():
        raise CheckpointError(f"{options.out}: that is the base; choose another directory")
    with Console(stderr=True).status(f"writing {options.out}"), replacing_directory(options.out) as folder:
        write_tensors(folder / MODEL, tensors | {name: value.to(dtype) for name, value in fresh.items()})
        (folder / CONFIG).write_text(config.model_dump_json(indent=1), encoding="utf-8")
        for name in (CODEC, TOKENIZER):
            if (base / name).is_file():
                shutil.copyfile(base / name, folder / name)
        (folder / CARD).write_text(_card(config, options), encoding="utf-8")
    count = sum(value.numel() for value in fresh.values())
    Console(stderr=True).print(f"{count:,} new parameters, which change nothing until they are trained")
    print(options.out)


def _with_vision(before: ModelConfig, options: AddVisionOptions) -> ModelConfig:
    from mmspeech.vision.encoder import default_config

    data = before.model_dump(mode="json")
    data["vision"] = default_config(options.tower).model_dump(mode="json")
    data["lm"]["fusion"] = FusionConfig().model_dump(mode="json")
    return parse_config(ModelConfig, apply_overrides(data, options.overrides), source="the new configuration")


def _card(config: ModelConfig, options: AddVisionOptions) -> str:
    return (
        f"# {config.name} with eyes\n\n{options.base}, to which `mmspeech add-vision` gave fresh adapters for "
        f"{config.vision.tower}. Untrained: it speaks exactly as before.\n"
    )
