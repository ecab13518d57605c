"""What a step is measured against: the time to read its weights, and the moshi package's LMGen with the same ones."""

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mmspeech.config import ConfigError, GenerationConfig, ModelConfig
from mmspeech.formats.groups import export_tensors
from mmspeech.formats.kyutai_keys import moshi_groups
from mmspeech.formats.moshi_config import config_to_moshi
from mmspeech.lm.depth import StepLinear
from mmspeech.lm.generate import FrameGenerator

if TYPE_CHECKING:
    from mmspeech.lm.model import DuplexLM, VisionSpeechModel

_WARM_UP_STEPS = 8
_COPY_BYTES = 1 << 28


def moshi_installed() -> bool:
    """Whether the package that we compare with is here; it is no dependency."""
    from importlib.util import find_spec

    return find_spec("moshi") is not None


@dataclass(frozen=True)
class Roofline:
    """weights_gb: read in a step of the language model; copy_gb_per_sec: of memory here, read and written;
    least_ms: how long reading alone takes."""

    weights_gb: float
    copy_gb_per_sec: float

    @property
    def least_ms(self) -> float:
        return 1000 * self.weights_gb / self.copy_gb_per_sec


def roofline(model: "VisionSpeechModel") -> Roofline:
    """From the bytes of the matrices that a step multiplies with (keys and values are not counted), and a copy of
    _COPY_BYTES, measured here and now."""
    lm = model.lm
    share = lm.config.num_codebooks / lm.config.depth_steps
    read = 0.0
    for name, module in lm.named_modules():
        if isinstance(module, nn.Linear | StepLinear) and not name.endswith("kv_proj"):  # made once for each picture
            size = module.weight.numel() * module.weight.element_size()
            read += size * (share if isinstance(module, StepLinear) else 1.0)
    device = next(model.parameters()).device
    source = torch.ones(_COPY_BYTES // 4, device=device)
    target = torch.empty_like(source)
    spent = [_timed(lambda: target.copy_(source), device)[1] for _ in range(8)]
    return Roofline(read / 1e9, 2 * _COPY_BYTES / min(spent) / 1e9)


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
