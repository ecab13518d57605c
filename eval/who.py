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


@dataclass(frozen=True)
class How:
    """Who is measured, and on what. model None: the embedded one. paced: no faster than people talk. quantize: see
    mmspeech.quantize.parse_kinds."""

    model: str | None = None
    batch_size: int = 16
    processes: int = 1
    device: str = "cpu"
    paced: bool = False
    quantize: str | None = None


def opened_bundle(how: How) -> "Bundle | None":
    """The checkpoint that is measured, or None for a script."""
    from mmspeech.checkpoint import load_model
    from mmspeech.commands.common import check_device
    from mmspeech.serve.engine import settle_threads

    if how.model is not None and how.model.startswith(SCRIPTED):
        if how.model.removeprefix(SCRIPTED) not in NAMES:
            raise ConfigError(f"--model {how.model}: expected one of {', '.join(SCRIPTED + name for name in NAMES)}")
        return None
    bundle = load_model(how.model, device=check_device(how.device), quantize=how.quantize)
    settle_threads(bundle.model)
    return bundle


def reply_identity(bundle: "Bundle", sampling: GenerationConfig) -> dict[str, Any]:
    """What decides on a model's replies beside prompt and seed."""
    return {"model": model_hash(bundle.path), "sampling": sampling.model_dump(), "responder": ModelResponder.version}


@contextmanager
def responders(
    bundle: "Bundle | None", how: How, *, settings: Settings, out: Path
) -> Iterator[Callable[[Task], Responder]]:
    """Who answers each task: a script made for it, or the model, in processes of its own where there are to be
    several. Its replies are kept in `out`/replies, but for a paced run, whose point is to take its time."""
    if bundle is None:
        yield lambda task: Scripted(how.model.removeprefix(SCRIPTED), task)
    elif how.paced:
        model = ModelResponder(bundle, sampling=settings.sampling(bundle), paced=True)
        yield lambda task: model
    else:
        sampling = settings.sampling(bundle)
        identity = reply_identity(bundle, sampling)
        identity |= {"quantize": how.quantize} if how.quantize else {}
        with _unpaced(bundle, how, sampling) as model:
            kept = KeptReplies(model, out / REPLIES, identity=identity)
            yield lambda task: kept


@contextmanager
def _unpaced(bundle: "Bundle", how: How, sampling: GenerationConfig) -> Iterator[Responder]:
    if how.processes == 1:
        yield ModelResponder(bundle, sampling=sampling)
        return
    opened = {"device": how.device, "quantize": how.quantize}
    with PooledResponder(bundle.path, opened, sampling=sampling, processes=how.processes) as pool:
        yield pool
