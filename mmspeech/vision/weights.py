"""Reading a tower's weights from files of several makers, and loading them strictly."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor, nn

from mmspeech.config import ConfigError

# What stands before the tower's own names in files of whole models (PaliGemma, LLaVA, CLIP, MoshiVis) and in
# transformers before version 5.
_PREFIX = re.compile(r"^(?:.*\.)?(?:vision_tower|vision_model|vision_encoder|image_prefix\.enc\.model)\.")
# Parts that make one vector of a picture, or are counted anew: never used here, so a file may hold them or not.
_UNUSED = (
    "head.",
    "attn_pool.",
    "embeddings.position_ids",
    "embeddings.mask_token",
    "visual_projection.",
    "predictor.",
)


def portable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tower's part of `tensors`, under names without what stands before them."""
    own = {_PREFIX.sub("", name): tensor for name, tensor in tensors.items() if _PREFIX.match(name)}
    if not own:
        own = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in own.items() if not name.startswith(_UNUSED)}


def load_weights(model: nn.Module, weights: str | Path | Mapping[str, Tensor], *, tower: str) -> None:
    """Copy weights into `model`; every missing, unexpected or misshaped name is an error.

    Raises ConfigError naming the file and up to four of the names in each class.
    """
    source = f"weights of {tower}" if isinstance(weights, Mapping) else str(weights)
    given = portable(weights if isinstance(weights, Mapping) else read_tensors(Path(weights)))
    wanted = {_PREFIX.sub("", name): name for name in model.state_dict()}
    wanted = {short: name for short, name in wanted.items() if not short.startswith(_UNUSED)}
    shapes = {short: model.state_dict()[name].shape for short, name in wanted.items()}
    problems = [
        _listed("missing", wanted.keys() - given.keys()),
        _listed("unexpected", given.keys() - wanted.keys()),
        _listed("misshaped", (
            f"{name} {list(given[name].shape)} instead of {list(shapes[name])}"
            for name in given.keys() & wanted.keys() if given[name].shape != shapes[name]
        )),
    ]  # fmt: skip
    if any(problems):
        raise ConfigError(f"{source}: does not fit {tower}: " + "; ".join(filter(None, problems)))
    model.load_state_dict({wanted[name]: tensor for name, tensor in given.items()}, strict=False)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, or of a directory: `tower.safetensors`, else the tower's part of every file there.

    Raises ConfigError when there is none or one cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    files = [path] if path.is_file() else sorted(path.glob("tower.safetensors")) or sorted(path.glob("*.safetensors"))
    if not files:
        raise ConfigError(f"{path}: no safetensors file there; expected tower.safetensors or model.safetensors")
    tensors = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                names = list(opened.keys())
                own = [name for name in names if _PREFIX.match(name)] or (names if len(files) == 1 else [])
                tensors |= {name: opened.get_tensor(name) for name in own}
        except (SafetensorError, OSError) as error:
            raise ConfigError(
                f"{file}: not a readable safetensors file ({error}); copy or download it again"
            ) from error
    return tensors


def _listed(what: str, names: Iterable[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return f"{what} {', '.join(names[:4])}{more}" if names else ""
