"""The moshi package's LMGen beside our generator: the same weights, codes, device and precision, stepped in turns."""

import os
import time
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmspeech.config import ConfigError, GenerationConfig, ModelConfig
from mmspeech.formats.groups import export_tensors
from mmspeech.formats.kyutai_keys import moshi_groups
from mmspeech.formats.moshi_config import config_to_moshi
from mmspeech.lm.generate import FrameGenerator

if TYPE_CHECKING:
    from mmspeech.lm.model import DuplexLM, VisionSpeechModel

_WARM_UP_STEPS = 8


def moshi_installed() -> bool:
    """Whether the package that we compare with is here; it is no dependency."""
    from importlib.util import find_spec

    return find_spec("moshi") is not None


@torch.no_grad()
def time_beside_moshi(model: "VisionSpeechModel", *, batch_size: int, num_steps: int) -> dict[str, list[float]]:
    """Seconds of each step of ours and of LMGen, without a picture. ConfigError when the two do not say the same: then
    they do not do the same work."""
    theirs = _lm_gen(model)
    ours = FrameGenerator(model.lm, batch_size, GenerationConfig(text_temperature=0, audio_temperature=0))
    count, device = model.config.lm.num_codebooks, next(model.parameters()).device
    times: dict[str, list[float]] = {"ours": [], "moshi": []}
    equal = total = 0
    with theirs.streaming(batch_size):
        for step in range(_WARM_UP_STEPS + num_steps):
            user = torch.randint(0, model.config.lm.audio_card, (batch_size, count), device=device)
            out, our_sec = _timed(lambda user=user: ours.step(user), device)
            other, their_sec = _timed(lambda user=user: theirs.step(user[:, :, None]), device)
            if step >= _WARM_UP_STEPS:
                times["ours"].append(our_sec)
                times["moshi"].append(their_sec)
            if out is not None:
                said = torch.cat([out.text_ids[:, None], out.codes], dim=1)
                equal += int((said == other[:, : 1 + count, 0]).sum())
                total += said.numel()
    if equal < 0.9 * total:
        raise ConfigError(f"only {equal} of {total} tokens are moshi's: the two do not compute the same, so no times")
    return times


def _lm_gen(model: "VisionSpeechModel") -> Any:
    os.environ.setdefault("NO_TORCH_COMPILE", "1")  # a compiler is not everywhere; on CUDA it still captures graphs
    from moshi.models.lm import LMGen, LMModel

    blind = _blind(model.config)
    settings = {key: value for key, value in config_to_moshi(blind).items() if key != "model_type"}
    weight = next(model.parameters())
    lm = LMModel(**settings, device=weight.device, dtype=weight.dtype)
    state: dict[str, Tensor] = export_tensors(_speech(model.lm), moshi_groups(blind))
    lm.load_state_dict(state)
    return LMGen(lm.eval(), use_sampling=False)


def _blind(config: ModelConfig) -> ModelConfig:
    lm = config.lm.model_copy(update={"fusion": None})
    return config.model_copy(update={"vision": None, "lm": lm})


def _speech(lm: "DuplexLM") -> dict[str, Tensor]:
    return {f"lm.{name}": value for name, value in lm.state_dict().items() if not name.startswith("temporal.fusion.")}


def _timed(run, device: torch.device) -> tuple[Any, float]:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    result = run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return result, time.perf_counter() - began
