"""Who is measured: a checkpoint, or a script."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.pool import PooledResponder
from eval.replies import KeptReplies
from eval.responder import ModelResponder
from eval.results import model_hash
from eval.scripted import NAMES, Scripted
from eval.task import Responder, Settings, Task
from mmspeech.config import ConfigError, GenerationConfig

if TYPE_CHECKING:
    from mmspeech.checkpoint import Bundle

SCRIPTED = "scripted:"
REPLIES = "replies"


def opened_bundle(model: str | None, device: str) -> "Bundle | None":
    """The checkpoint of that name (None: the embedded one), or None for a script."""
    from mmspeech.checkpoint import load_model
    from mmspeech.commands.common import check_device
    from mmspeech.serve.engine import settle_threads

    if model is not None and model.startswith(SCRIPTED):
        if model.removeprefix(SCRIPTED) not in NAMES:
            raise ConfigError(f"--model {model}: expected one of {', '.join(SCRIPTED + name for name in NAMES)}")
        return None
    bundle = load_model(model, device=check_device(device))
    settle_threads(bundle.model)
    return bundle


def reply_identity(bundle: "Bundle", sampling: GenerationConfig) -> dict[str, Any]:
    """What decides on a model's replies beside prompt and seed."""
    return {"model": model_hash(bundle.path), "sampling": sampling.model_dump(), "responder": ModelResponder.version}


@dataclass(frozen=True)
class How:
    """Who is measured, and on what. model None: the embedded one. paced: no faster than people talk."""

    model: str | None = None
    batch_size: int = 16
    processes: int = 1
    device: str = "cpu"
    paced: bool = False


@contextmanager
def responders(
    bundle: "Bundle | None", how: How, *, settings: Settings, out: Path
) -> Iterator[Callable[[Task], Responder]]:
    """Who answers each task: a script made for it, or the model, in processes of its own where there are to be
    several. Its replies are kept in `out`/replies, but for a paced run, whose point is to take its time."""
    if bundle is None:
        yield lambda task: Scripted(how.model.removeprefix(SCRIPTED), task)
    elif how.paced:
        model = ModelResponder(bundle, sampling=settings.sampling, paced=True)
        yield lambda task: model
    else:
        identity = reply_identity(bundle, settings.sampling or bundle.config.generation)
        with _unpaced(bundle, how, settings.sampling) as model:
            kept = KeptReplies(model, out / REPLIES, identity=identity)
            yield lambda task: kept


@contextmanager
def _unpaced(bundle: "Bundle", how: How, sampling: GenerationConfig | None) -> Iterator[Responder]:
    if how.processes == 1:
        yield ModelResponder(bundle, sampling=sampling)
        return
    with PooledResponder(bundle.path, sampling=sampling, device=how.device, processes=how.processes) as pool:
        yield pool
