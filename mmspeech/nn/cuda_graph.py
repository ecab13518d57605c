"""What a step launches on a CUDA device, recorded once and launched again as a whole (CUDA graphs).

A large model's step launches thousands of small operations, and launching them one by one can take longer than running
them. A recording works on the memory it was made with: inputs are copied to where it reads, states are updated in
place, and what it gives lies where it gave it the last time.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmspeech.nn.streaming import State

WARM_UP_RUNS = 3

Run = Callable[[], Any]
# (run, the states it changes) -> what runs it again; it leaves the states as they were.
Record = Callable[[Run, Sequence[State]], Run]


def record_cuda_graph(run: Run, states: Sequence[State]) -> Run:
    """Record `run`, which may not wait for the device, on the CUDA device that holds the states.

    It runs a few times before, as libraries choose their kernels and workspaces then; the states are put back.
    """
    kept = [state.clone() for state in states]
    with torch.cuda.device(states[0].tensors()[0].device):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP_RUNS):
                run()
        torch.cuda.current_stream().wait_stream(side)
        put_back(states, kept)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            given = run()

    def replay() -> Any:
        graph.replay()
        return given

    return replay


def put_back(states: Sequence[State], kept: Sequence[State]) -> None:
    """Make the states what their copies `kept` are, in place."""
    for state, was in zip(states, kept, strict=True):
        for tensor, before in zip(state.tensors(), was.tensors(), strict=True):
            tensor.copy_(before)


@dataclass
class _Recording:
    inputs: tuple[Tensor | None, ...]
    replay: Run
    kept: Any  # what the recording reads beside its inputs stays where it is, and its id is nobody else's


class Recordings:
    """Runs functions of tensors: as they are, or, with a `record`, each recorded at its first run for a key.

    A key stands for all that a recording can not see change: shapes, settings, and what else the function reads.
    """

    def __init__(self, record: Record | None = None):
        self._record = record
        self._made: dict[Hashable, _Recording] = {}

    def clear(self) -> None:
        """Forget what was recorded."""
        self._made.clear()

    def run(
        self, key: Hashable, function: Callable[..., Any], *inputs: Tensor | None, states: Sequence[State], kept: Any
    ) -> Any:
        """`function(*inputs)`, which changes `states` in place. `kept`: what it reads beside them, told apart by
        identity; it is part of the key. What is recorded gives the same tensors every time, with new contents."""
        if self._record is None:
            return function(*inputs)
        place_of = (key, id(kept))
        made = self._made.get(place_of)
        if made is None:
            held = tuple(None if one is None else one.clone() for one in inputs)
            made = _Recording(held, self._record(lambda: function(*held), states), kept)
            self._made[place_of] = made
        for place, one in zip(made.inputs, inputs, strict=True):
            if place is not None:
                place.copy_(one)
        return made.replay()
