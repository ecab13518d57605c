"""The moshi package's layout (moshiko, moshika, PersonaPlex, fine-tuned ones) <-> ours: a duplex model without eyes."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from mmspeech.checkpoint import read_tensors, write_tensors
from mmspeech.config import ModelConfig, read_mapping
from mmspeech.formats.groups import Converted, export_tensors, import_tensors, shapes_of, weights_file
from mmspeech.formats.kyutai_keys import moshi_groups
from mmspeech.formats.lora import merge_lora
from mmspeech.formats.mimi import MIMI, read_mimi_beside
from mmspeech.formats.moshi_config import config_from_moshi, config_to_moshi, settings_of_shapes

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer_spm_32k_3.model"
SPLIT_MARK = "kyutai_split"
# Newer files hold attention's matrices apart, one for each step of the depth transformer.
_SPLIT = re.compile(r"^(.*\.(?:self_attn|cross_attention)\.)(in|out)_projs\.(\d+)\.weight$")


def holds_moshi(path: Path) -> bool:
    """Whether `path` is a directory as the moshi package loads it: by its settings, or by the weights' names."""
    if (path / CONFIG).is_file():
        data = read_mapping(path / CONFIG)
        if data.keys() & {"n_q", "depformer_dim"}:
            return True
        if data.keys() & {"schema_version", "hidden_size", "kind"}:
            return False
    file = path / WEIGHTS
    if not file.is_file():
        return False
    with safe_open(str(file), framework="pt") as opened:
        names = set(opened.keys())
    return {"text_emb.weight", "emb.0.weight"} <= names and "depformer.0.emb.weight" not in names  # as candle's


def read_moshi(path: str | Path, *, lora: Path | None = None) -> Converted:
    """Read a directory in their layout; `lora`: a file of moshi-finetune to add to the matrices. Raises ConvertError.

    Without settings in config.json (PersonaPlex, the first Moshi) the sizes are those of the tensors.
    """
    path = Path(path)
    data = read_mapping(path / CONFIG) if (path / CONFIG).is_file() else {}
    file = weights_file(path, data.get("moshi_name") or WEIGHTS)
    tensors = read_tensors(file)
    split = any(_SPLIT.match(key) for key in tensors)
    tensors = join_projections(tensors)
    if lora is None and data.get("lora_name"):
        lora = path / data["lora_name"]
    if lora is not None:
        merge_lora(tensors, lora, scaling=data.get("lora_scaling"))
    told = data if "n_q" in data or "dim" in data else _sizes(tensors) | data
    config = config_from_moshi(told, source=str(path / CONFIG if data else file))
    weights = import_tensors(tensors, moshi_groups(config), shapes_of(config), source=file)
    tokenizer = path / (data.get("tokenizer_name") or TOKENIZER)
    codec = read_mimi_beside(path / (data.get("mimi_name") or MIMI), config.codec)
    marks = {SPLIT_MARK: "true"} if split else {}
    return Converted(config, weights, {}, codec, tokenizer if tokenizer.is_file() else None, marks)


def write_moshi(path: str | Path, state: dict[str, Tensor], config: ModelConfig, *, split: bool = False) -> None:
    """Write config.json and model.safetensors; `split`: attention's matrices apart, as
    newer files of theirs. Raises ConvertError for what their layout cannot hold."""
    path = Path(path)
    theirs = config_to_moshi(config)
    tensors = export_tensors(state, moshi_groups(config))
    if split:
        tensors = split_projections(tensors, steps=config.lm.depth_steps)
    path.mkdir(parents=True, exist_ok=True)
    write_tensors(path / WEIGHTS, tensors)
    (path / CONFIG).write_text(json.dumps(theirs, indent=1) + "\n", encoding="utf-8")


def join_projections(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Attention's matrices in one tensor each, whichever way a file holds them."""
    joined: dict[str, Tensor] = {}
    parts: dict[str, dict[int, Tensor]] = {}
    for key, value in tensors.items():
        found = _SPLIT.match(key)
        if found is None:
            joined[key] = value
        else:
            parts.setdefault(found[1] + packed(found[2]), {})[int(found[3])] = value
    for key, steps in parts.items():
        joined[key] = torch.cat([steps[step] for step in sorted(steps)]) if len(steps) > 1 else steps[0]
    return joined


def split_projections(tensors: dict[str, Tensor], *, steps: int) -> dict[str, Tensor]:
    """The inverse of `join_projections`: `steps` matrices in the depth transformer, one in the temporal one."""
    split: dict[str, Tensor] = {}
    for key, value in tensors.items():
        found = re.match(r"^(.*\.self_attn\.)(in_proj_weight|out_proj\.weight)$", key)
        if found is None:
            split[key] = value
            continue
        count = steps if key.startswith("depformer.") else 1
        kind = found[2].partition("_")[0]
        split |= {f"{found[1]}{kind}_projs.{k}.weight": rows for k, rows in enumerate(value.chunk(count))}
    return split


def packed(kind: str) -> str:
    """What a file with one tensor calls attention's matrices of a kind, in or out."""
    return "in_proj_weight" if kind == "in" else "out_proj.weight"


def _sizes(tensors: dict[str, Tensor]) -> dict[str, Any]:
    try:
        return settings_of_shapes({key: tuple(value.shape) for key, value in tensors.items()})
    except KeyError:  # not all there: the key table tells what is missing of the released sizes
        return {}
