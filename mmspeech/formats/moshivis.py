"""Kyutai's MoshiVis layout (config.yaml and model.safetensors) <-> ours."""

from pathlib import Path

import yaml
from torch import Tensor

from mmspeech.checkpoint import read_tensors, write_tensors
from mmspeech.config import ModelConfig, read_mapping
from mmspeech.formats.groups import (
    Converted,
    ConvertError,
    export_tensors,
    has_copies,
    import_tensors,
    shapes_of,
    weights_file,
)
from mmspeech.formats.kyutai_keys import moshivis_groups
from mmspeech.formats.mimi import MIMI, read_mimi_beside
from mmspeech.formats.moshivis_config import config_from_kyutai, config_to_kyutai

CONFIG, WEIGHTS = "config.yaml", "model.safetensors"
TOKENIZER = "tokenizer_spm_32k_3.model"
COPIES_MARK = "kyutai_copies"
TOWER_PREFIX = "image_prefix.enc."


def read_moshivis(path: str | Path) -> Converted:
    """Read a directory in their layout. Raises ConvertError."""
    path = Path(path)
    source = path / CONFIG
    if not source.is_file():
        raise ConvertError(f"{path}: no {CONFIG}; expected a directory in Kyutai's layout ({CONFIG} and safetensors)")
    data = read_mapping(source)
    config = config_from_kyutai(data, source=str(source))
    file = weights_file(path, str(data.get("model", WEIGHTS)))
    tensors = read_tensors(file)
    tower = {key: tensors.pop(key) for key in list(tensors) if key.startswith(TOWER_PREFIX)}
    groups = list(moshivis_groups(config))
    marks = {COPIES_MARK: "true"} if has_copies(tensors, groups) else {}
    weights = import_tensors(tensors, groups, shapes_of(config), source=file)
    tokenizer = path / data.get("text_tokenizer", TOKENIZER)
    codec = read_mimi_beside(path / data.get("mimi_codec", MIMI), config.codec)
    return Converted(config, weights, tower, codec, tokenizer if tokenizer.is_file() else None, marks)


def write_moshivis(
    path: str | Path,
    state: dict[str, Tensor],
    config: ModelConfig,
    *,
    tower: dict[str, Tensor] | None = None,
    copies: bool = False,
) -> None:
    """Write config.yaml and model.safetensors in their layout; `tower`: under our names; `copies`: shared tensors once
    per layer.

    Raises ConvertError for what their layout cannot hold.
    """
    path = Path(path)
    theirs = config_to_kyutai(config)
    tensors = export_tensors(state, moshivis_groups(config), copies=copies)
    tensors |= {f"{TOWER_PREFIX}model.{name}": value for name, value in (tower or {}).items()}
    path.mkdir(parents=True, exist_ok=True)
    write_tensors(path / WEIGHTS, tensors)
    (path / CONFIG).write_text(yaml.safe_dump(theirs), encoding="utf-8")
