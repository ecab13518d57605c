"""State of streaming modules: trees of dataclasses, owned by the caller, allocated once, updated in place.

A streaming module has `init_state(batch_size, *, device, dtype) -> State` and `forward(x, *, state=None)`. Every tensor
in a state has the batch as its first axis, so that single rows (one call among many) can be reset.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor


@dataclass
class State:
    """Base of states. Fields are tensors [B, ...], other states, or lists of states.

    A tensor field resets to 0, or to `field(metadata={"reset_value": v})`.
    """

    def _leaves(self) -> Iterator[tuple[Tensor, float | int | bool]]:
        for spec in fields(self):
            value = getattr(self, spec.name)
            if isinstance(value, Tensor):
                yield value, spec.metadata.get("reset_value", 0)
            else:
                for child in value if isinstance(value, list | tuple) else [value]:
                    if isinstance(child, State):
                        yield from child._leaves()

    def tensors(self) -> list[Tensor]:
        """All tensors of the tree, in a fixed order."""
        return [tensor for tensor, _ in self._leaves()]

    @torch.no_grad()
    def reset(self, rows: Tensor | None = None) -> None:
        """Start over, in place: all rows, or those where `rows` [B] bool is true."""
        for tensor, value in self._leaves():
            if rows is None:
                tensor.fill_(value)
            else:
                tensor[rows.to(tensor.device)] = value

    def first(self, count: int) -> Self:
        """The same memory, of the first `count` rows only: what is written there is written here."""
        return type(self)(**{spec.name: _first(getattr(self, spec.name), count) for spec in fields(self)})

    def clone(self) -> Self:
        """An independent copy of the whole tree."""
        changes = {}
        for spec in fields(self):
            changes[spec.name] = _clone(getattr(self, spec.name))
        return type(self)(**changes)


def _clone(value):
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, State):
        return value.clone()
    if isinstance(value, list | tuple):
        return type(value)(_clone(child) for child in value)
    return value


def _first(value, count: int):
    if isinstance(value, Tensor):
        return value[:count]
    if isinstance(value, State):
        return value.first(count)
    if isinstance(value, list | tuple):
        return type(value)(_first(child, count) for child in value)
    return value
