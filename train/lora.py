"""LoRA: beside matrices of the speech LM stand pairs of small ones, which learn in their place. peft runs them.

While a run lasts, a wrapped `X.weight` is called `X.base_layer.weight` and stays as it was; `X.lora_A.default.weight`
and `X.lora_B.default.weight` learn. A checkpoint's model.safetensors holds the sum under the usual name, so that it is
a model like any other; the pairs lie beside it in lora.safetensors, and a resumed run has the matrices from its init.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from mmspeech.checkpoint import MODEL, read_tensors, write_tensors
from mmspeech.config import ConfigError
from mmspeech.lm.depth import StepLinear
from mmspeech.lm.model import VisionSpeechModel
from mmspeech.lm.trainable import linear_layers, lora_names
from train.settings import LoraSettings

LORA = "lora.safetensors"
ADAPTER = "default"  # what peft calls the pairs


@dataclass(frozen=True)
class Lora:
    """What was added to a model. `matrices`: usual names of the wrapped ones; `pairs`: names of the parameters beside
    them; `own`: the model's present name of every usual one; `base`: hash of the wrapped matrices, 64 hex digits;
    `shell`: a model without numbers, wrapped alike, in which peft adds matrices and pairs up."""

    settings: LoraSettings
    matrices: list[str]
    pairs: list[str]
    own: dict[str, str]
    base: str
    shell: VisionSpeechModel

    def trainable(self, model: nn.Module, names: list[str]) -> list[str]:
        """The pairs, and those of `names` (usual ones) that are not wrapped: present names, in the model's order."""
        chosen = {self.own[name] for name in set(names) - set(self.matrices)} | set(self.pairs)
        return [name for name, _ in model.named_parameters() if name in chosen]

    def frozen(self) -> set[str]:
        """Present names of the wrapped matrices."""
        return {self.own[name] for name in self.matrices}

    @torch.no_grad()
    def merged(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The model's tensors under present names -> under usual names, pairs added to their matrices, in float32."""
        wrapped = set(self.matrices)
        return {name: self._sum(name, tensors) if name in wrapped else tensors[own] for name, own in self.own.items()}

    def _sum(self, matrix: str, tensors: dict[str, Tensor]) -> Tensor:
        place = matrix.rpartition(".")[0]
        layer = self.shell.get_submodule(place)
        parts = {name: tensors[f"{place}.{name}"].float() for name in layer.state_dict()}
        layer.load_state_dict(parts, assign=True)
        whole = parts["base_layer.weight"] + layer.get_delta_weight(ADAPTER)
        layer.to("meta")
        return whole

    def write(self, folder: Path, tensors: dict[str, Tensor]) -> None:
        """The pairs among `tensors`, and what they were learnt beside, into `folder`/lora.safetensors."""
        pairs = {_stored(name): tensors[name] for name in self.pairs}
        settings = {"rank": str(self.settings.rank), "alpha": str(self.settings.alpha), "base": self.base}
        write_tensors(folder / LORA, pairs, metadata=settings)

    def read(self, folder: Path) -> dict[str, Tensor]:
        """A checkpoint's tensors under present names, without the wrapped matrices, which the run's init brings.

        Raises ConfigError when that is no longer the model that the pairs were learnt beside.
        """
        pairs = read_tensors(folder / LORA)
        with safe_open(str(folder / LORA), framework="pt") as opened:
            said = opened.metadata()
        for key, now in (("rank", self.settings.rank), ("alpha", self.settings.alpha)):
            if said[key] != str(now):
                raise ConfigError(f"{folder / LORA}: lora.{key} was {said[key]}, now {now}; begin a new run from here")
        if said["base"] != self.base:
            raise ConfigError(
                f"{folder / LORA}: learnt beside other weights than init gives now (sha256 {said['base'][:12]}, now "
                f"{self.base[:12]}); bring back what init named, or begin a new run from {folder}"
            )
        tensors = {self.own.get(name, name): value for name, value in read_tensors(folder / MODEL).items()}
        tensors = {name: value for name, value in tensors.items() if name not in self.frozen()}
        present = {_stored(name): name for name in self.pairs}
        return tensors | {present.get(name, name): value for name, value in pairs.items()}


def add_lora(model: VisionSpeechModel, settings: LoraSettings, *, seed: int) -> Lora:
    """Wrap the matrices that `settings.targets` names: B is zero, so nothing changes yet. Raises ConfigError."""
    matrices = wrapped_names(model, settings)
    base = _hash(model, matrices)
    with torch.device("meta"):
        shell = VisionSpeechModel(model.config)
    usual = list(model.state_dict())
    torch.manual_seed(seed)
    _inject(model, settings, matrices)
    _inject(shell, settings, matrices)
    pairs = [name for name, _ in model.named_parameters() if ".lora_A." in name or ".lora_B." in name]
    places = {name.rpartition(".")[0] for name in matrices}
    own = {name: _own(name, places) for name in usual}
    return Lora(settings, matrices, pairs, own, base, shell)


def wrapped_names(model: VisionSpeechModel, settings: LoraSettings) -> list[str]:
    """Names of the matrices that `settings.targets` chooses. Raises ConfigError."""
    names, layers = lora_names(model, settings.targets), linear_layers(model)
    by_step = [name for name in names if isinstance(layers[name], StepLinear)]
    if by_step and settings.dropout:
        raise ConfigError(
            f"lora.dropout {settings.dropout}: not for {by_step[0]}, which is one matrix per codebook; "
            f"set it to 0, or add '!lm.depth.*' to lora.targets"
        )
    return names


def gather_together(model: nn.Module) -> None:
    """Let ZeRO-3 gather a matrix per codebook and its pair before peft adds them up, not one after the other."""
    from deepspeed.utils import set_z3_leaf_module
    from peft.tuners.lora import ParamWrapper

    for module in model.modules():
        if isinstance(module, ParamWrapper):
            set_z3_leaf_module(module, True)


def _inject(model: VisionSpeechModel, settings: LoraSettings, matrices: list[str]) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    able = linear_layers(model)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=[name.removesuffix(".weight") for name in matrices if isinstance(able[name], nn.Linear)],
        target_parameters=[name for name in matrices if isinstance(able[name], StepLinear)],
    )
    inject_adapter_in_model(config, model, adapter_name=ADAPTER)


def _own(name: str, places: set[str]) -> str:
    place, _, last = name.rpartition(".")
    return f"{place}.base_layer.{last}" if place in places else name


def _stored(pair: str) -> str:
    return pair.replace(f".{ADAPTER}.", ".")


def _hash(model: nn.Module, names: list[str]) -> str:
    digest, parameters = hashlib.sha256(), dict(model.named_parameters())
    for name in names:
        digest.update(name.encode())
        digest.update(parameters[name].detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()
