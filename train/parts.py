"""Puts together what a run trains: from a checkpoint, or fresh from a model configuration."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mmspeech.audio.codec import Codec
from mmspeech.checkpoint import TOKENIZER, check_keys, check_streams, load_codec, load_model, read_codec_config
from mmspeech.config import ConfigError, ModelConfig, load_config
from mmspeech.data.visuals import PictureFormat
from mmspeech.hub import HUB_ID
from mmspeech.lm.loss import LossOut, LossWeights, duplex_loss, enough_pieces
from mmspeech.lm.model import VisionSpeechModel
from mmspeech.tokens.text import TextTokenizer
from mmspeech.types import Batch
from mmspeech.vision.memory import Memory
from train.settings import InitConfig, LossConfig, TrainConfig

if TYPE_CHECKING:
    from mmspeech.vision.encoder import VisionTower
    from train.lora import Lora


@dataclass
class Origin:
    """What a run begins with. `tokenizer_file` is copied into every checkpoint; `lora`: what was added to the model.

    The tower stands beside the model (whose own is None): it never trains, so nothing that shards or wraps a model for
    training has to know it.
    """

    model: VisionSpeechModel
    tower: "VisionTower | None"
    codec: Codec
    tokenizer: TextTokenizer
    tokenizer_file: Path
    config: ModelConfig
    lora: "Lora | None" = None

    @property
    def pictures(self) -> PictureFormat | None:
        """What calls have to look like for the model's eyes; None without any."""
        tower = self.tower
        if tower is None:
            return None
        memory = Memory.of(self.config.lm.fusion)
        return PictureFormat(tower.image_size_px, tower.mean, tower.std, memory, tower.window)


class Objective(nn.Module):
    """Model and loss in one forward, as wrappers for several processes need it.

    `batch_frames`: of the largest batch to come; it decides how many pieces the loss runs in, where `config` does not.
    """

    def __init__(self, model: VisionSpeechModel, config: LossConfig, *, batch_frames: int):
        super().__init__()
        self.model = model
        lm = model.config.lm
        codebooks = lm.num_codebooks if config.depth_codebooks is None else config.depth_codebooks
        if codebooks > lm.num_codebooks:
            raise ConfigError(f"loss.depth_codebooks {codebooks}: the model has {lm.num_codebooks}; set at most that")
        draws = {
            "depth_frames_share": config.depth_frames_share,
            "depth_codebooks": config.depth_codebooks,
            "plan_tokens": config.planned_tokens,
        }
        pieces = enough_pieces(lm, frames=batch_frames, **draws) if config.pieces is None else config.pieces
        self.weights = LossWeights(**config.model_dump(exclude={"plan_tokens"}) | {"pieces": pieces})

    def forward(self, batch: Batch) -> LossOut:
        generator = None if batch.seed is None else torch.Generator().manual_seed(batch.seed)
        return duplex_loss(self.model, batch, weights=self.weights, generator=generator)


def build_origin(config: TrainConfig, device: torch.device) -> Origin:
    """The model, codec and tokenizer that `config.init` names, codec and tower on `device`; fresh weights are seeded by
    `config.seed`."""
    torch.manual_seed(config.seed)
    init = config.init
    if init.checkpoint is None:
        origin = _fresh(_model_config(init), config.at(init.codec), config.at(init.tokenizer))
    else:
        bundle = load_model(_begun_from(config))
        tower, bundle.model.tower = bundle.model.tower, None
        origin = Origin(bundle.model, tower, bundle.codec, bundle.tokenizer, bundle.path / TOKENIZER, bundle.config)
        if init.model is not None or init.fresh_adapters:
            wanted = origin.config if init.model is None else _model_config(init)
            _give_adapters(origin, wanted, fresh=init.fresh_adapters)
    check_streams(origin.config, origin.codec, origin.tokenizer, source="init")
    if init.tower is not None:
        _give_tower(origin, config.at(init.tower))
    origin.codec.to(device)
    if origin.tower is not None:
        origin.tower.to(device)
    return origin


def lower_frozen(model: nn.Module) -> None:
    """Keep the matrices that do not learn in bfloat16 only: no float32 copy, and nothing to cast in each step."""
    for parameter in model.parameters():
        if not parameter.requires_grad and parameter.ndim >= 2:
            parameter.data = parameter.data.to(torch.bfloat16)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on `device`, in place."""
    for name, value in vars(batch).items():
        if isinstance(value, Tensor):
            setattr(batch, name, value.to(device, non_blocking=True))
    return batch


def _begun_from(config: TrainConfig) -> Path | str | None:
    """What `init.checkpoint` means to `load_model`."""
    name = config.init.checkpoint
    path = config.at(name)
    if path.exists():
        return path
    if name == "embedded":
        return None
    return name if HUB_ID.fullmatch(name) else path


def _model_config(init: InitConfig) -> ModelConfig:
    config = load_config(ModelConfig, init.model)
    if not init.blind:
        return config
    return config.model_copy(update={"vision": None, "lm": config.lm.model_copy(update={"fusion": None})})


def _fresh(config: ModelConfig, codec_dir: Path, tokenizer_file: Path) -> Origin:
    config = config.model_copy(update={"codec": read_codec_config(codec_dir)})
    tokenizer = TextTokenizer(tokenizer_file)
    return Origin(VisionSpeechModel(config), None, load_codec(codec_dir), tokenizer, tokenizer_file, config)


def _give_adapters(origin: Origin, config: ModelConfig, *, fresh: bool) -> None:
    """Replace the model by that of `config`, with the same speech weights; adapters that it did not have, or with
    `fresh` all of them, are new."""
    config = config.model_copy(update={"codec": origin.config.codec})
    model = VisionSpeechModel(config)
    own, old = model.state_dict(), origin.model.state_dict()
    if fresh:
        left_out = set(origin.model.adapter_names())
        old = {name: value for name, value in old.items() if name not in left_out}
    added = set(model.adapter_names()) - set(old)
    check_keys({name: value for name, value in own.items() if name not in added}, old, source="init.checkpoint")
    model.load_state_dict(old, strict=False)
    origin.model, origin.config = model, config


def _give_tower(origin: Origin, weights: Path) -> None:
    if origin.config.vision is None:
        raise ConfigError(f"init.tower is {weights}, but the model's configuration has no vision")
    from mmspeech.vision.encoder import build_tower

    origin.tower = build_tower(origin.config.vision, weights)
