"""candle's layout of Moshi and MoshiVis (safetensors and GGUF of the Rust servers) -> ours; it is only read."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmspeech.checkpoint import read_tensors
from mmspeech.config import ConfigError, ModelConfig
from mmspeech.formats.groups import Converted, ConvertError, Shape, import_tensors, shapes_of
from mmspeech.formats.kyutai_keys import candle_groups
from mmspeech.formats.mimi import KYUTAI_FILES, read_mimi_beside
from mmspeech.formats.moshi_config import config_from_moshi, settings_of_shapes
from mmspeech.formats.moshivis_config import config_from_kyutai

VISION_TOWER = "model_vision_tower_unquant.safetensors"  # beside a GGUF, in the precision it was trained in
TOWER_PREFIX = "image_prefix.enc."
_SIGN = {"text_emb.weight", "depformer.0.emb.weight"}
# What MoshiVis's settings call the sizes that the moshi package calls otherwise.
_NAMES = {"card": "audio_card"}
_VISION = {
    "num_crossattended_tokens": -1, "encoder_name": "siglip_gemma2_448", "norm_xa": "real_rms_norm_f32",
    "xa_gating": "sigmoid", "xa_conditional_gating": True, "norm": "real_rms_norm_f32",
}  # fmt: skip


def find_candle(path: Path) -> Path | None:
    """The file of `path` (a file, or a directory with one) in candle's layout; None when there is none."""
    files = [path] if path.is_file() else sorted([*path.glob("model*.gguf"), *path.glob("model.safetensors")])
    for file in files:
        if file.suffix == ".gguf":
            return file
        if file.suffix == ".safetensors" and read_tensors(file).keys() >= _SIGN:
            return file
    return None


def read_candle(file: Path) -> Converted:
    """Read a bf16 safetensors file or a GGUF (Q8_0, Q4_K ... become float32). Raises ConvertError, also for the GGUF of
    another model. No settings lie beside these files: sizes are those of the tensors, and heads are as wide as in the
    released models."""
    tensors = read_gguf(file) if file.suffix == ".gguf" else read_tensors(file)
    if not tensors.keys() >= _SIGN:
        shown = ", ".join(sorted(tensors)[:3]) or "no tensors"
        raise ConvertError(f"{file}: not Moshi in candle's layout ({shown}); expected {', '.join(sorted(_SIGN))}")
    beside = file.parent / VISION_TOWER
    if file.suffix == ".gguf" and beside.is_file():
        tensors |= read_tensors(beside)
    tower = {key: tensors.pop(key) for key in list(tensors) if key.startswith(TOWER_PREFIX)}
    _join_cross_attention(tensors)
    settings = _settings(tensors)
    if "image_prefix.proj_xa.weight" in tensors:
        told = {_NAMES.get(key, key): value for key, value in settings.items()} | _VISION
        told["depformer_context"] = told["dep_q"]
        config = config_from_kyutai(told, source=str(file))
    else:
        config = config_from_moshi(settings, source=str(file))
    weights = import_tensors(_shaped(tensors, config), candle_groups(config), shapes_of(config), source=file)
    mimi = sorted(file.parent.glob(KYUTAI_FILES))
    tokenizers = sorted(file.parent.glob("tokenizer*.model"))
    codec = read_mimi_beside(mimi[0], config.codec) if mimi else {}
    return Converted(config, weights, tower, codec, tokenizers[0] if tokenizers else None)


def read_gguf(file: Path) -> dict[str, Tensor]:
    """All tensors of a GGUF file, dequantised to float32; ConvertError for a file of another model, or a broken one."""
    try:
        from gguf import GGUFReader, dequantize
    except ImportError as error:
        raise ConfigError(f"{file}: GGUF files need the package gguf; pip install 'mmspeech[gguf]'") from error
    try:
        reader = GGUFReader(str(file))
    except (ValueError, OSError, IndexError, KeyError) as error:
        raise ConvertError(f"{file}: not a readable GGUF file ({error}); copy it again") from error
    told = reader.fields.get("general.architecture")
    kind = None if told is None else str(told.contents())
    names = {tensor.name for tensor in reader.tensors}
    if not names >= _SIGN:
        raise ConvertError(
            f"{file}: a GGUF of {kind or 'something else'} ({len(names)} tensors, such as "
            f"{', '.join(sorted(names)[:2]) or 'none'}), not of Moshi, which has {', '.join(sorted(_SIGN))}"
        )
    return {
        tensor.name: torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy()) for tensor in reader.tensors
    }


def _join_cross_attention(tensors: dict[str, Tensor]) -> None:
    """Queries beside keys and values, which quantised files hold apart, as other files hold them."""
    for key in [key for key in tensors if key.endswith(".cross_attention.in_proj_weight_q")]:
        other = f"{key.removesuffix('_q')}_kv"
        if other in tensors and tensors[other].shape[1] == tensors[key].shape[1]:
            tensors[key.removesuffix("_q")] = torch.cat([tensors.pop(key), tensors.pop(other)])


def _settings(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Sizes, by the names that the moshi package's files would have."""
    shapes = {}
    for key, value in tensors.items():
        name = re.sub(r"^depformer\.(\d+)\.linear_out\.", r"linears.\1.", key)
        name = re.sub(r"^depformer\.0\.emb\.", "depformer_text_emb.", name)
        name = re.sub(r"^depformer\.0\.transformer\.(layers\.\d+\.gating)\.", r"depformer.\1.0.", name)
        shapes[re.sub(r"^depformer\.0\.transformer\.", "depformer.", name)] = tuple(value.shape)
    return settings_of_shapes(shapes)


def _shaped(tensors: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """A GGUF drops leading dimensions of 1; they come back where the table has them."""
    wanted: dict[str, Shape] = {}
    for group in candle_groups(config):
        wanted |= group.theirs
        for copy in group.copies:
            wanted |= {other: group.theirs[name] for name, other in copy.items()}
    return {key: _with_ones(value, wanted.get(key, value.shape)) for key, value in tensors.items()}


def _with_ones(tensor: Tensor, shape: Shape) -> Tensor:
    return tensor.reshape(shape) if tensor.shape == shape[len(shape) - tensor.dim() :] else tensor
