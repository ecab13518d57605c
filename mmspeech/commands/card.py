"""The card of a model that a run made: what learnt, for how long, how well, from which settings, how to talk to it."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import yaml

from mmspeech.config import ModelConfig, read_mapping

NOT_SCORES = ("kind", "step", "depth_frames")
FRONT = """---
library_name: mmspeech
pipeline_tag: audio-to-audio
tags: [speech, full-duplex, vision, mmspeech]
---
"""


@dataclass
class RunFacts:
    """What a run directory says about one of its checkpoints. `trained`: shape by name of parameter; `scores`: the last
    numbers up to `step` of every evaluation set; `learning`: those of the training itself."""

    path: Path
    step: int
    settings: dict[str, Any] = field(default_factory=dict)
    trained: dict[str, list[int]] = field(default_factory=dict)
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)
    learning: dict[str, Any] = field(default_factory=dict)


def read_run(checkpoint: Path) -> RunFacts | None:
    """The facts of the run that `checkpoint` lies in; None for a checkpoint that lies in none."""
    checkpoint = checkpoint.resolve()
    if checkpoint.parent.name != "checkpoints" or not checkpoint.name.startswith("step_"):
        return None
    facts = RunFacts(checkpoint.parents[1], int(checkpoint.name.removeprefix("step_")))
    if (facts.path / "config.yaml").is_file():
        facts.settings = read_mapping(facts.path / "config.yaml")
    for line in _lines(facts.path / "trainable.txt"):
        name, _, shape = line.partition(" ")
        facts.trained[name] = json.loads(shape)
    for line in _lines(facts.path / "metrics.jsonl"):
        try:
            numbers = json.loads(line)
        except json.JSONDecodeError:
            continue  # cut off by a kill
        if numbers["step"] > facts.step:
            continue
        if numbers["kind"] == "train":
            facts.learning = numbers
        elif numbers["kind"].startswith("eval/"):
            facts.scores[numbers["kind"].removeprefix("eval/")] = numbers
    return facts


def write_card(config: ModelConfig, facts: RunFacts | None, *, model: str, base: str | None) -> str:
    """The card in Markdown. `model`: its name where it will be; `base`: given for adapters alone, what they go with."""
    parts = [FRONT, f"# {config.name}\n"]
    if facts is None:
        parts.append("A vision-speech model of mmspeech.\n")
    else:
        parts.append(f"Step {facts.step:,} of the run `{facts.path.name}`, made with mmspeech.\n")
    parts += _use(model) if base is None else _use_adapters(model, base)
    if facts is not None:
        parts += [*_learnt(facts), *_scores(facts), *_settings(facts)]
    return "\n".join(parts)


def _use(model: str) -> list[str]:
    talk = f"mmspeech talk --model {model} --audio question.wav --image picture.png --out reply.wav"
    return ["## Talk to it\n", f"```bash\n{talk}\n```\n"]


def _use_adapters(model: str, base: str) -> list[str]:
    code = (
        "from mmspeech.checkpoint import load_adapters, load_model\n\n"
        f'bundle = load_model("{base}")\nload_adapters("{model}", bundle.model)\n'
    )
    text = f"Only the vision adapters are here. They go with `{base}`, whose configuration needs the same eyes."
    return ["## Use\n", f"{text}\n", f"```python\n{code}```\n"]


def _learnt(facts: RunFacts) -> list[str]:
    """A table of parts that learnt, with LoRA's pairs apart from what learnt whole."""
    if not facts.trained:
        return []
    parts: dict[str, list[int]] = {}
    for name, shape in facts.trained.items():
        words = name.split(".")
        part = ".".join(words[: 3 if words[0] == "lm" else 1]).removesuffix(".weight")
        parts.setdefault(f"{part}, LoRA" if ".lora_" in name else part, []).append(math.prod(shape))
    rows = [f"| {part} | {len(sizes)} | {sum(sizes):,} |" for part, sizes in parts.items()]
    total = f"| all | {len(facts.trained)} | {sum(map(sum, parts.values())):,} |"
    return ["## What learnt\n", "| part | tensors | numbers |\n|---|---|---|\n" + "\n".join([*rows, total]) + "\n"]


def _scores(facts: RunFacts) -> list[str]:
    parts = []
    if "loss" in facts.learning:
        minutes = facts.learning.get("minutes")
        worked = "" if minutes is None else f" after {minutes:,.0f} minutes"
        parts.append(f"Loss in training: {facts.learning['loss']:.3f}{worked}.\n")
    if facts.scores:
        keys = (key for values in facts.scores.values() for key, value in values.items() if _is_score(key, value))
        columns = list(dict.fromkeys(keys))
        rows = [["validation set", "step", *columns], ["---"] * (len(columns) + 2)]
        for name, values in facts.scores.items():
            numbers = (f"{values[key]:.3f}" if key in values else "" for key in columns)
            rows.append([name, str(values["step"]), *numbers])
        parts.append("\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n")
        parts.append("Each frame was predicted from the true ones before it; `_acc` is the share of right ones.\n")
    return ["## Scores\n", *parts] if parts else []


def _is_score(key: str, value: Any) -> bool:
    return key not in NOT_SCORES and isinstance(value, int | float)


def _settings(facts: RunFacts) -> list[str]:
    if not facts.settings:
        return []
    said = {key: shown(value) for key, value in facts.settings.items() if key not in ("root", "run")}
    return ["## Settings\n", f"```yaml\n{yaml.safe_dump(said, sort_keys=False)}```\n"]


def shown(value: Any) -> Any:
    """The same with absolute paths cut to their last part: where files lay is nobody's business."""
    if isinstance(value, dict):
        return {key: shown(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [shown(inner) for inner in value]
    return PurePath(value).name if isinstance(value, str) and PurePath(value).is_absolute() else value


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
