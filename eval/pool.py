"""A model in several processes at once, each on a core: batches go to whichever is free."""

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from eval.responder import ModelResponder
from eval.task import Prompt, Reply
from mmspeech.config import GenerationConfig

_own: ModelResponder | None = None  # of a process of the pool


class PooledResponder:
    """As a ModelResponder of the checkpoint in `path`, to be called from `processes` threads at once; `opened`: how
    `load_model` is to open it.

    A context: the processes end with it.
    """

    def __init__(self, path: Path, opened: dict[str, Any], *, sampling: GenerationConfig, processes: int):
        self._pool = ProcessPoolExecutor(
            processes,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_begin,
            initargs=(path, opened, sampling, processes),
        )

    def answer(self, samples: Sequence[Any], prompts: Sequence[Prompt], *, seeds: Sequence[int]) -> list[Reply]:
        """Ask the next free process; the samples stay here, for no model looks at them."""
        return self._pool.submit(_answer, list(prompts), list(seeds)).result()

    def __enter__(self) -> "PooledResponder":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)


def _begin(path: Path, opened: dict[str, Any], sampling: GenerationConfig, processes: int) -> None:
    global _own
    from mmspeech.checkpoint import load_model
    from mmspeech.serve.engine import settle_threads

    bundle = load_model(path, **opened)
    settle_threads(bundle.model, num_processes=processes)
    _own = ModelResponder(bundle, sampling=sampling)


def _answer(prompts: list[Prompt], seeds: list[int]) -> list[Reply]:
    return _own.answer([None] * len(prompts), prompts, seeds=seeds)
