"""Who is measured: a checkpoint, or a script."""

from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def opened_model(
    bundle: "Bundle", *, settings: Settings, out: Path, device: str, paced: bool, processes: int
) -> Iterator[Responder]:
    """The model as a responder, in processes of its own where there are to be several. Its replies are kept in
    `out`/replies, but for a paced run, whose point is to take its time."""
    sampling = settings.sampling or bundle.config.generation
    identity = {
        "model": model_hash(bundle.path),
        "sampling": sampling.model_dump(),
        "responder": ModelResponder.version,
    }
    if paced or processes == 1:
        responder = ModelResponder(bundle, sampling=settings.sampling, paced=paced)
        yield responder if paced else KeptReplies(responder, out / REPLIES, identity=identity)
        return
    with PooledResponder(bundle.path, sampling=settings.sampling, device=device, processes=processes) as pool:
        yield KeptReplies(pool, out / REPLIES, identity=identity)


def script_of(model: str, task: Task) -> Responder:
    """The script that `--model scripted:NAME` means, for one task."""
    return Scripted(model.removeprefix(SCRIPTED), task)
