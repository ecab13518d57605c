"""LoRA files of moshi-finetune: added to the matrices of a checkpoint, and written from a run of ours."""

import json
import re
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from mmspeech.checkpoint import CONFIG, check_keys, read_tensors, write_tensors
from mmspeech.config import ModelConfig, read_mapping
from mmspeech.formats.groups import ConvertError
from mmspeech.formats.kyutai_keys import moshi_groups
from mmspeech.formats.moshi_config import config_to_moshi

LORA = "lora.safetensors"
SCALING = 2.0  # moshi-finetune's, where nothing is told
_PROJECTION = re.compile(r"^(.*\.self_attn\.)(in|out)_projs\.(\d+)$")


def merge_lora(tensors: dict[str, Tensor], file: Path, *, scaling: float | None = None) -> None:
    """Add `scaling` * B A of every pair in `file` to its matrix among `tensors` (the moshi package's names, attention's
    matrices in one tensor each), in float32; a matrix keeps its precision.

    `scaling` None: what a config.json beside the file tells, else 2. Raises ConvertError for pairs that are not whole
    or fit no matrix.
    """
    pairs = read_pairs(file)
    if scaling is None:
        beside = file.parent / CONFIG
        told = read_mapping(beside) if beside.is_file() else {}
        scaling = float(told.get("lora_scaling", SCALING))
    steps = sum(re.fullmatch(r"linears\.\d+\.weight", key) is not None for key in tensors)
    wrong = [
        f"{module} {[*first.shape]}, {[*second.shape]}"
        for module, (first, second) in pairs.items()
        if (rows := _rows(tensors, module, steps)) is None
        or rows.shape != (second.shape[0], first.shape[1])
        or first.shape[0] != second.shape[1]
    ]
    if wrong:
        shown = ", ".join(wrong[:8]) + (f" and {len(wrong) - 8} more" if len(wrong) > 8 else "")
        raise ConvertError(f"{file}: pairs that fit no matrix of the model: {shown}; is it for another model?")
    changed: set[str] = set()
    for module, (first, second) in pairs.items():
        name = _place(module)[0]
        if name not in changed:  # files are mapped into memory: what is written to is copied first
            tensors[name] = tensors[name].clone()
            changed.add(name)
        rows = _rows(tensors, module, steps)
        rows.copy_(rows.float() + scaling * (second.float() @ first.float()))


def read_pairs(file: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """module -> (A [r, in], B [out, r]); raises ConvertError for what is not a pair."""
    if file.suffix != ".safetensors":
        raise ConvertError(f"{file}: expected a safetensors file of moshi-finetune, such as {LORA}")
    found: dict[str, dict[str, Tensor]] = {}
    strange = []
    for key, value in read_tensors(file).items():
        match = re.match(r"^(.*)\.lora_([AB])\.weight$", key)
        if match is None:
            strange.append(key)
        else:
            found.setdefault(match[1], {})[match[2]] = value
    halves = [module for module, parts in found.items() if len(parts) < 2]
    if strange or halves or not found:
        told = f"unknown: {strange[:4]}" if strange else f"without their other half: {halves[:4] or 'none there'}"
        raise ConvertError(f"{file}: expected pairs X.lora_A.weight and X.lora_B.weight; {told}")
    return {module: (parts["A"], parts["B"]) for module, parts in found.items()}


def export_lora(checkpoint: Path, config: ModelConfig, dst: Path) -> None:
    """Write the pairs that a run of ours learnt (`checkpoint`/lora.safetensors) as moshi-finetune would, with their
    config.json, into `dst`. Raises ConvertError for a checkpoint without, or with pairs theirs cannot hold."""
    file = checkpoint / LORA
    if not file.is_file():
        raise ConvertError(f"{checkpoint}: no {LORA}; expected a checkpoint of a run that trained with LoRA")
    with safe_open(str(file), framework="pt") as opened:
        told = opened.metadata() or {}
    rank, alpha = int(told["rank"]), float(told["alpha"])
    names = {ours: group.theirs for group in moshi_groups(config) for ours in group.ours if len(group.ours) == 1}
    theirs: dict[str, Tensor] = {}
    for module, (first, second) in _our_pairs(read_tensors(file)).items():
        for name, (one, other) in _their_pairs(names[f"{module}.weight"], first, second, config).items():
            theirs |= {f"{name}.lora_A.weight": one, f"{name}.lora_B.weight": other}
    write_tensors(dst / LORA, theirs)
    settings = config_to_moshi(config) | {"lora": True, "lora_rank": rank, "lora_scaling": alpha / rank}
    (dst / CONFIG).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def _our_pairs(tensors: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    modules = sorted({key.partition(".lora_")[0] for key in tensors})
    wanted = {f"{module}.lora_{half}.weight": tensors for module in modules for half in "AB"}
    check_keys(dict.fromkeys(wanted, torch.empty(0)), dict.fromkeys(tensors, torch.empty(0)), source=LORA)
    return {module: (tensors[f"{module}.lora_A.weight"], tensors[f"{module}.lora_B.weight"]) for module in modules}


def _their_pairs(
    theirs: dict[str, tuple[int, ...]], first: Tensor, second: Tensor, config: ModelConfig
) -> dict[str, tuple[Tensor, Tensor]]:
    """Pairs of ours over one matrix, or over one for each step, under their names. peft lays the pairs of steps side by
    side: A [steps * r, in], and B [out, r * steps], whose columns go through the steps for each of the r."""
    keys = list(theirs)
    steps = config.lm.depth_steps if keys[0].startswith("depformer.") or len(keys) > 1 else 1
    firsts = first.unflatten(0, (steps, -1))
    seconds = second.unflatten(1, (-1, steps)).permute(2, 0, 1) if steps > 1 else second[None]
    modules = _modules(keys, steps)
    return {name: (firsts[k], seconds[k]) for k, name in enumerate(modules)}


def _modules(keys: list[str], steps: int) -> list[str]:
    if len(keys) > 1:
        return [key.removesuffix(".weight") for key in keys]
    found = re.match(r"^(.*\.self_attn\.)(in|out)_proj(?:_weight|\.weight)$", keys[0])
    if found is None:
        return [keys[0].removesuffix(".weight")]
    return [f"{found[1]}{found[2]}_projs.{k}" for k in range(steps)]


def _place(module: str) -> tuple[str, int]:
    """The tensor that holds a module's matrix, and which part of it."""
    found = _PROJECTION.match(module)
    if found is None:
        return f"{module}.weight", 0
    return found[1] + ("in_proj_weight" if found[2] == "in" else "out_proj.weight"), int(found[3])


def _rows(tensors: dict[str, Tensor], module: str, steps: int) -> Tensor | None:
    """The module's matrix, as a view; None when there is no such."""
    name, part = _place(module)
    if name not in tensors:
        return None
    count = steps if name.startswith("depformer.") and "self_attn" in name else 1
    whole = tensors[name]
    return whole.chunk(count)[part] if part < count and whole.shape[0] % count == 0 else None
