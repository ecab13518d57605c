"""mmspeech as a model of lmms-eval, which knows hundreds of public tasks.

`python -m eval.lmms_eval_model --tasks mmbench_en_dev --model_args pretrained=DIR --output_path results`

All options are lmms-eval's own but the model, which is ours. lmms-eval is not among our dependencies: it pins packages
of its own, so it is best installed in an environment beside (pip install lmms-eval, then this repository).

A question is put into the model's text stream; a request that carries sound is heard instead. Pictures are shown from
the start, a video as its last frames, two a second. What the model then says is the answer, cut at `until`.
"""

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from eval.options import judged_options
from eval.responder import ModelResponder
from eval.sights import last_pictures
from eval.task import Prompt
from mmspeech.audio.waveform import resample
from mmspeech.config import ConfigError
from mmspeech.frames import SAMPLE_RATE_HZ

MODEL_ID = "mmspeech"
VIDEO_FPS, VIDEO_SEC = 2.0, 16.0

try:
    from lmms_eval.api.model import lmms
except ModuleNotFoundError as error:
    raise ConfigError(
        f"{error.name} is not installed; the adapter runs inside lmms-eval: pip install lmms-eval, in an environment "
        "of its own beside this repository"
    ) from error


class MmspeechModel(lmms):
    """`pretrained`: checkpoint directory or hub id (None: the embedded one). `max_sec`: the longest answer."""

    is_simple = True

    def __init__(
        self,
        pretrained: str | None = None,
        batch_size: int | str = 1,
        device: str | None = None,
        max_sec: float = 12.0,
        **unknown: Any,
    ):
        super().__init__()
        from mmspeech.checkpoint import load_model
        from mmspeech.commands.common import check_device
        from mmspeech.serve.engine import settle_threads

        unknown.pop("max_batch_size", None)
        if unknown:
            raise ConfigError(f"model_args {', '.join(unknown)}: unknown; expected pretrained, max_sec")
        self.bundle = load_model(pretrained, device=check_device(device or "cpu"))
        settle_threads(self.bundle.model)
        self.batch_size = 1 if batch_size == "auto" else int(batch_size)
        sampling = self.bundle.config.generation.greedy()
        self._responder = ModelResponder(self.bundle, sampling=sampling, max_sec=float(max_sec))

    def generate_until(self, requests: list[Any]) -> list[str]:
        """The answers to requests with arguments (context, options, doc_to_visual, doc_id, task, split)."""
        answers: list[str] = []
        for first in range(0, len(requests), self.batch_size):
            batch = [request.args for request in requests[first : first + self.batch_size]]
            prompts = [prompt_of(args[0], args[2](self._doc(*args[3:]))) for args in batch]
            answers += self._answers(prompts, [args[1] for args in batch])
        return answers

    def generate_until_multi_round(self, requests: list[Any]) -> list[list[str]]:
        """All answers of each request, whose doc_to_text tells what comes next, given those before, until it says that
        it is over."""
        found = []
        for request in requests:
            context, options, doc_to_visual, doc_to_text, doc_id, task, split = request.args
            doc, told, rounds = self._doc(doc_id, task, split), None, []
            visuals = doc_to_visual(doc)
            while True:
                rounds += self._answers([prompt_of(context, visuals)], [options])
                visuals, context, over, rounds, told = doc_to_text(
                    doc, previous_output=list(rounds), round_idx=len(rounds), previous_round_info=told
                )
                rounds = list(rounds)
                if over:
                    break
            found.append(rounds)
        return found

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """The log-probability of each continuation, and whether the model would choose it token by token."""
        found = []
        for request in requests:
            context, target, doc_to_visual, doc_id, task, split = request.args
            doc = self._doc(doc_id, task, split)
            prompt = prompt_of(context, doc_to_visual(doc))
            prompt.options = (target if isinstance(target, str) else target(doc),)
            found += judged_options(self.bundle, prompt)
        return found

    def _answers(self, prompts: list[Prompt], options: list[dict[str, Any]]) -> list[str]:
        replies = self._responder.answer([None] * len(prompts), prompts, seeds=[0] * len(prompts))
        return [cut(reply.text, own) for reply, own in zip(replies, options, strict=True)]

    def _doc(self, doc_id: int, task: str, split: str) -> Any:
        return self.task_dict[task][split][doc_id]


def prompt_of(context: str, visuals: list[Any] | None) -> Prompt:
    """A request as a prompt: pictures (PIL), videos (paths) and sounds (array and sampling_rate) in `visuals`.

    With sound the question is heard, and the context not written. ConfigError for visuals of another kind.
    """
    pictures: list[tuple[float, Any]] = []
    wave = np.zeros(0, np.float32)
    for visual in visuals or []:
        if isinstance(visual, Image.Image):
            pictures.append((0.0, visual.convert("RGB")))
        elif isinstance(visual, str | Path):
            pictures += last_pictures(Path(visual), until_sec=math.inf, window_sec=VIDEO_SEC, fps=VIDEO_FPS)
        elif isinstance(visual, dict) and {"array", "sampling_rate"} <= visual.keys():
            heard = torch.as_tensor(np.asarray(visual["array"], np.float32))[None]
            wave = resample(heard, int(visual["sampling_rate"]), SAMPLE_RATE_HZ)[0].numpy()
        else:
            raise ConfigError(f"a {type(visual).__name__} to look at; expected pictures, paths of videos, or sounds")
    return Prompt(wave, pictures, text="" if len(wave) else context)


def cut(answer: str, options: dict[str, Any]) -> str:
    """An answer up to the first of the strings at which the task ends it."""
    until = options.get("until") or []
    ends = [answer.find(stop) for stop in ([until] if isinstance(until, str) else until) if stop]
    found = [end for end in ends if end >= 0]
    return answer[: min(found)].strip() if found else answer.strip()


def main() -> None:
    """lmms-eval's own command, with our model in place of --model."""
    from lmms_eval.__main__ import cli_evaluate
    from lmms_eval.models import MODEL_REGISTRY_V2
    from lmms_eval.models.registry_v2 import ModelManifest

    # By name, for run as a program this module is __main__, too.
    MODEL_REGISTRY_V2.register_manifest(
        ModelManifest(MODEL_ID, simple_class_path="eval.lmms_eval_model.MmspeechModel"), overwrite=True
    )
    sys.argv += ["--model", MODEL_ID]
    cli_evaluate()


if __name__ == "__main__":
    main()
