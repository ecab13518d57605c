"""`mmspeech merge`: a run, or one of its checkpoints, as a directory that needs nothing else, with a card."""

from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from mmspeech.checkpoint import (
    CARD,
    TOKENIZER,
    Bundle,
    load_model,
    replacing_directory,
    resolve,
    save_adapters,
    save_model,
)
from mmspeech.commands.card import RunFacts, read_run, shown, write_card
from mmspeech.config import ConfigError, ModelConfig, apply_overrides, parse_config
from mmspeech.hub import HUB_ID
from mmspeech.lm.model import push_directory

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class MergeOptions:
    """The options of the command, as given; `overrides`: a.b=value for the model's configuration."""

    run: str
    out: Path
    overrides: list[str]
    adapters_only: bool
    dtype: str
    card: Path | None
    push: str | None
    private: bool


def run_merge(options: MergeOptions) -> None:
    """Write `options.out` and print it; with `push`, also upload it and print the commit's address."""
    checkpoint = _check(options)
    facts = read_run(checkpoint)
    console = Console(stderr=True)
    with console.status(f"reading {checkpoint}"):
        bundle = load_model(checkpoint)
    config = _changed(bundle.config, options)
    if options.adapters_only:
        _check_adapters(bundle, facts)
    base = _base(facts, config)
    if options.card is None:
        name = options.push or options.out.name
        card = write_card(config, facts, model=name, base=base if options.adapters_only else None)
    else:
        card = options.card.read_text(encoding="utf-8")
    with console.status(f"writing {options.out}"):
        if options.adapters_only:
            _write_adapters(bundle, options, base=base, card=card)
        else:
            save_model(
                options.out,
                model=bundle.model,
                codec=bundle.codec,
                tokenizer_file=bundle.path / TOKENIZER,
                config=config,
                card=card,
                dtype=DTYPES[options.dtype],
            )
    size = sum(file.stat().st_size for file in options.out.iterdir())
    console.print(f"{checkpoint} in {options.dtype}, {size / 1e6:.1f} MB", highlight=False, soft_wrap=True)
    print(options.out)
    if options.push is not None:
        print(_push(options))


def _check(options: MergeOptions) -> Path:
    """The checkpoint that is meant; ConfigError, before any work, for options that can not be."""
    if options.dtype not in DTYPES:
        raise ConfigError(f"--dtype {options.dtype}: expected {', '.join(DTYPES)}")
    if options.push is not None and not HUB_ID.fullmatch(options.push):
        raise ConfigError(f"--push {options.push}: expected OWNER/NAME")
    if options.adapters_only and options.overrides:
        raise ConfigError(f"{options.overrides[0]}: --adapters-only writes no configuration to change; leave it out")
    checkpoint = resolve(options.run)
    if options.out.resolve().parent.name == "checkpoints" or options.out.resolve() == checkpoint.resolve():
        raise ConfigError(f"{options.out}: holds what a run goes on from; choose another directory")
    if options.card is not None and not options.card.is_file():
        raise ConfigError(f"--card {options.card}: no such file")
    return checkpoint


def _changed(config: ModelConfig, options: MergeOptions) -> ModelConfig:
    data = apply_overrides(config.model_dump(mode="json"), options.overrides)
    return parse_config(ModelConfig, data, source=f"configuration of {options.run}")


def _base(facts: RunFacts | None, config: ModelConfig) -> str:
    """The model that adapters belong to, as far as that is known."""
    init = {} if facts is None else facts.settings.get("init", {})
    return str(shown(init.get("checkpoint") or config.name))


def _check_adapters(bundle: Bundle, facts: RunFacts | None) -> None:
    """ConfigError when the run changed more than adapters: they alone would not be its model."""
    adapters = set(bundle.model.adapter_names())
    more = [] if facts is None else [name for name in facts.trained if name not in adapters]
    if more:
        raise ConfigError(
            f"--adapters-only: {facts.path} trained {len(more)} tensors that are no vision adapters ({more[0]} ...); "
            f"merge it whole"
        )


def _write_adapters(bundle: Bundle, options: MergeOptions, *, base: str, card: str) -> None:
    with replacing_directory(options.out) as building:
        save_adapters(building, bundle.model.to(DTYPES[options.dtype]), base=base)
        (building / CARD).write_text(card, encoding="utf-8")


def _push(options: MergeOptions) -> str:
    # The base of what the HTTP library raises, whichever one this version of huggingface_hub uses.
    from huggingface_hub.errors import HTTPError

    try:
        return push_directory(options.out, options.push, private=options.private)
    except (HTTPError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{options.out} is written, but not pushed to {options.push}: {reason}") from error
