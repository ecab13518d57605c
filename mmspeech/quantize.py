"""Weights in 8 or 4 bits (torchao, weights only): chosen by part when a model is loaded, or stored as such.

Matrices are quantised row by row; embeddings, norms and the codec stay as they are. What a quantised matrix is
multiplied with stays in the model's precision.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mmspeech.config import ConfigError
from mmspeech.lm.depth import StepLinear, StepLinears

if TYPE_CHECKING:
    from mmspeech.lm.model import VisionSpeechModel

PARTS = ("temporal", "depth", "tower")
KINDS = ("int8", "int4", "fp8")
MARK = "quantized"  # in the metadata of a file of weights: the kinds by part, as `parse_kinds` reads them
GROUP = 32  # numbers of a row that share a scale, for int4 on a CPU
CUDA_GROUP = 128


def parse_kinds(text: str) -> dict[str, str]:
    """`int8` (all parts) or `temporal=int8,depth=int4` -> kind by part. Raises ConfigError."""
    found: dict[str, str] = {}
    for item in text.split(","):
        part, separator, kind = item.rpartition("=")
        names = (part,) if separator else PARTS
        if kind not in KINDS or not set(names) <= set(PARTS) or found.keys() & set(names):
            raise ConfigError(
                f"--quantize {text!r}: expected {', '.join(KINDS)}, or PART=KIND,... with {', '.join(PARTS)} each once"
            )
        found |= dict.fromkeys(names, kind)
    return found


@torch.no_grad()
def quantize_model(model: "VisionSpeechModel", kinds: dict[str, str]) -> None:
    """Quantise the matrices of the parts that `kinds` names, in place. Raises ConfigError for what can not be here.

    int4 has kernels for CUDA in bfloat16; on a CPU each of its numbers takes a byte, which shows how far it drifts
    and saves no more than int8.
    """
    if not kinds:  # torchao is an extra, and takes seconds to import
        return
    quantize_ = _torchao().quantize_
    for part, kind in kinds.items():
        if (module := _part(model, part)) is None:
            continue
        _split_steps(module)
        weight = next(module.parameters())
        quantize_(module, _config(kind, weight), filter_fn=lambda one, _: isinstance(one, nn.Linear))


def shape_for(model: "VisionSpeechModel", kinds: dict[str, str]) -> None:
    """Give an empty model the modules that `quantize_model` would, so that stored weights find their places."""
    for part in kinds:
        if (module := _part(model, part)) is not None:
            _split_steps(module)


def stored(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A state dict with quantised matrices -> plain tensors and metadata for a file."""
    _torchao()
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    tensors, told = flatten_tensor_state_dict({name: value.detach() for name, value in state.items()})
    return tensors, {key: str(value) for key, value in told.items()}


def restored(tensors: dict[str, Tensor], told: dict[str, str]) -> dict[str, Tensor]:
    """The inverse of `stored`. Raises ConfigError for tensors that are not whole."""
    _torchao()
    from torchao.prototype.safetensors.safetensors_support import unflatten_tensor_state_dict

    state, left = unflatten_tensor_state_dict(tensors, told)
    if left:
        raise ConfigError(f"quantised weights without all of their tensors: {', '.join(sorted(left)[:4])}")
    return state


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters, quantised ones with their scales."""
    return sum(_bytes(parameter) for parameter in model.parameters())


def _bytes(tensor: Tensor) -> int:
    inner = getattr(tensor, "__tensor_flatten__", None)
    if inner is None:
        return tensor.numel() * tensor.element_size()
    return sum(_bytes(getattr(tensor, name)) for name in inner()[0])


def _part(model: "VisionSpeechModel", part: str) -> nn.Module | None:
    return {"temporal": model.lm.temporal, "depth": model.lm.depth, "tower": model.tower}[part]


def _split_steps(module: nn.Module) -> None:
    """Matrices of the depth transformer's steps one by one, since torchao knows matrices only."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, StepLinear):
                setattr(parent, name, StepLinears.of(child))


def _config(kind: str, weight: Tensor) -> Any:
    from torchao import quantization

    if kind == "int8":
        return quantization.Int8WeightOnlyConfig()
    if kind == "fp8":
        return quantization.Float8WeightOnlyConfig()
    if weight.device.type != "cuda":
        return quantization.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=_granularity())
    if weight.dtype != torch.bfloat16:
        raise ConfigError(f"int4 on CUDA is for models in bfloat16, not {weight.dtype}; choose int8")
    return quantization.Int4WeightOnlyConfig(group_size=CUDA_GROUP, int4_packing_format="tile_packed_to_4d")


def _granularity() -> Callable:
    from torchao.quantization.granularity import PerGroup

    return PerGroup(GROUP)


def _torchao():
    try:
        import torchao.quantization
    except ImportError as error:
        raise ConfigError("quantised weights need torchao; pip install 'mmspeech[quantize]'") from error
    return torchao.quantization
