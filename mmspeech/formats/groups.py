"""Key tables: which tensors of another layout hold the same numbers as which of ours.

Layouts differ in names and in what is packed into one tensor, seldom in the order of the numbers. So a table is a list
of groups: the tensors of a group, laid end to end, are equal on both sides.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from mmspeech.checkpoint import PICKLES, build_empty, check_keys, load_weights
from mmspeech.config import ConfigError, ModelConfig
from mmspeech.lm.model import VisionSpeechModel

Shape = tuple[int, ...]


class ConvertError(ConfigError):
    """A checkpoint that cannot be converted; the message names the file and every problem."""


@dataclass(frozen=True)
class Group:
    """ours: names in our state dict; theirs: their names with shapes; copies: their other names of the same tensors."""

    ours: tuple[str, ...]
    theirs: dict[str, Shape]
    copies: tuple[dict[str, str], ...] = ()


@dataclass
class Converted:
    """A checkpoint read from another layout, under our names; weights keep the precision they are stored in.

    tower, codec: empty where the files have none. tokenizer: the file, None where it is not there. marks: what the way
    back must know to give the same files.
    """

    config: ModelConfig
    weights: dict[str, Tensor]
    tower: dict[str, Tensor] = field(default_factory=dict)
    codec: dict[str, Tensor] = field(default_factory=dict)
    tokenizer: Path | None = None
    marks: dict[str, str] = field(default_factory=dict)

    def build(self) -> VisionSpeechModel:
        """The model with these weights, in eval mode, without a tower."""
        model = build_empty(lambda: VisionSpeechModel(self.config))
        load_weights(model, self.weights, source=self.config.name)
        return model.eval()


def weights_file(path: Path, name: str) -> Path:
    """`path`/`name` when it is a safetensors file that is there; ConvertError otherwise, also for pickles."""
    file = path / name
    if file.suffix != ".safetensors" or not file.is_file():
        pickles = sorted(found.name for pattern in PICKLES for found in path.glob(pattern))
        hint = f" ({pickles[0]} is a pickle, which can run code)" if pickles else ""
        raise ConvertError(f"{file}: not there or not a safetensors file; expected model.safetensors{hint}")
    return file


def import_tensors(
    tensors: dict[str, Tensor], groups: Iterable[Group], shapes: dict[str, Shape], *, source: str | Path
) -> dict[str, Tensor]:
    """Their tensors -> our state dict, whose `shapes` these are; a CheckpointError names every key that does not fit.

    `tensors` is emptied on the way, so that no more than one group is held twice.
    """
    groups = list(groups)
    _drop_copies(tensors, groups, source=source)
    theirs = {key: torch.empty(shape, device="meta") for group in groups for key, shape in group.theirs.items()}
    check_keys(theirs, tensors, source=source)
    ours: dict[str, Tensor] = {}
    for group in groups:
        ours |= repack([tensors.pop(key) for key in group.theirs], {name: shapes[name] for name in group.ours})
    return ours


def shapes_of(config: ModelConfig) -> dict[str, Shape]:
    """The state dict of a model that has no weights yet."""
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in VisionSpeechModel(config).state_dict().items()}


def export_tensors(state: dict[str, Tensor], groups: Iterable[Group], *, copies: bool = False) -> dict[str, Tensor]:
    """Our state dict -> their tensors; `copies`: shared tensors under all of their names."""
    theirs: dict[str, Tensor] = {}
    for group in groups:
        theirs |= repack([state[name] for name in group.ours], group.theirs)
        for copy in group.copies if copies else ():
            theirs |= {other: theirs[name] for name, other in copy.items()}
    return theirs


def repack(tensors: list[Tensor], shapes: dict[str, Shape]) -> dict[str, Tensor]:
    """The same numbers in the same order, cut into other shapes."""
    flat = tensors[0].reshape(-1) if len(tensors) == 1 else torch.cat([tensor.reshape(-1) for tensor in tensors])
    sizes = [torch.Size(shape).numel() for shape in shapes.values()]
    return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), flat.split(sizes), strict=True)}


def has_copies(tensors: Iterable[str], groups: Iterable[Group]) -> bool:
    """Whether a file holds shared tensors under more than one name."""
    names = set(tensors)
    return any(other in names for group in groups for copy in group.copies for other in copy.values())


def same(ours: str, theirs: str, shape: Shape) -> Group:
    """One tensor, under another name."""
    return Group((ours,), {theirs: shape})


def _drop_copies(tensors: dict[str, Tensor], groups: list[Group], *, source: str | Path) -> None:
    """Leave shared tensors under their first name only; raises ConvertError where a file holds different ones."""
    for group in groups:
        for copy in group.copies:
            for name, other in copy.items():
                if other not in tensors:
                    continue
                again = tensors.pop(other)
                if not torch.equal(tensors.setdefault(name, again), again):
                    raise ConvertError(f"{source}: {name} and {other} differ, but they are one shared tensor")
