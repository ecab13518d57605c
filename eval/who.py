"""Who is measured: a checkpoint, or a script."""

from pathlib import Path
from typing import TYPE_CHECKING

from eval.replies import KeptReplies
from eval.responder import ModelResponder
from eval.results import model_hash
from eval.scripted import NAMES, Scripted
from eval.task import Responder, Settings, Task
from mmspeech.config import ConfigError

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


def open_responder(
    model: str | None, bundle: "Bundle | None", task: Task, *, settings: Settings, out: Path, paced: bool
) -> Responder:
    """Who answers the prompts of `task`; a model's replies are kept in `out`/replies."""
    if bundle is None:
        return Scripted(model.removeprefix(SCRIPTED), task)
    responder = ModelResponder(bundle, sampling=settings.sampling, paced=paced)
    if paced:
        return responder
    sampling = (settings.sampling or bundle.config.generation).model_dump()
    identity = {"model": model_hash(bundle.path), "sampling": sampling, "responder": ModelResponder.version}
    return KeptReplies(responder, out / REPLIES, identity=identity)
