"""A checkpoint is a directory: config.json, model.safetensors (speech LM and projector), codec.safetensors,
tower.safetensors (optional), tokenizer.model and README.md (the card).

Also here: codec directories (config.json, codec.safetensors) and adapter files (adapters.safetensors). Only safetensors
are read, never pickles. Weights may be stored in half precision; they are cast when they are loaded.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from rich.console import Console
from rich.progress import track
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mmspeech.audio.codec import Codec, build_codec
from mmspeech.config import CodecConfig, ModelConfig, StrictModel, parse_config, read_mapping
from mmspeech.hub import CheckpointError, fetched
from mmspeech.quantize import MARK, parse_kinds, quantize_model, restored, shape_for

if TYPE_CHECKING:
    from mmspeech.lm.model import VisionSpeechModel
    from mmspeech.tokens.text import TextTokenizer
    from mmspeech.vision.encoder import VisionTower

EMBEDDED = Path(__file__).parent / "pretrained" / "tiny"
CONFIG, MODEL, CODEC, TOWER = "config.json", "model.safetensors", "codec.safetensors", "tower.safetensors"
TOKENIZER, CARD, ADAPTERS = "tokenizer.model", "README.md", "adapters.safetensors"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
TOWER_PREFIX = "tower."

SHOWN_BYTES = 500_000_000  # files of this size and more are read with a progress bar

ModuleT = TypeVar("ModuleT", bound=nn.Module)


@dataclass
class Bundle:
    """Everything a conversation needs. `path` is the directory it was loaded from."""

    model: "VisionSpeechModel"
    codec: Codec
    tokenizer: "TextTokenizer"
    config: ModelConfig
    path: Path


def load_model(
    path_or_id: str | Path | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    quantize: str | None = None,
) -> Bundle:
    """Load a checkpoint directory, a run directory (its newest checkpoint), a hub id, or (None) the embedded model.

    The model is in `dtype` and in eval mode; the codec stays in float32. `quantize`: see mmspeech.quantize.parse_kinds.
    Raises CheckpointError.
    """
    from mmspeech.tokens.text import TextTokenizer

    path = resolve(path_or_id)
    config = parse_config(ModelConfig, read_mapping(path / CONFIG), source=str(path / CONFIG))
    kinds = None if quantize is None else parse_kinds(quantize)
    model = load_speech_model(path, config, device=device, dtype=dtype)
    if kinds is not None:
        quantize_model(model, kinds)
    codec = load_codec(path).to(device)
    if not (path / TOKENIZER).is_file():
        raise CheckpointError(f"{path}: no {TOKENIZER}; expected a complete checkpoint directory")
    tokenizer = TextTokenizer(path / TOKENIZER)
    check_streams(config, codec, tokenizer, source=path)
    return Bundle(model, codec, tokenizer, config, path)


def check_streams(config: ModelConfig, codec: Codec, tokenizer: "TextTokenizer", *, source: str | Path) -> None:
    """Raise CheckpointError when the speech LM does not speak its codec's codes and its tokenizer's pieces."""
    lm, problems = config.lm, []
    if lm.num_codebooks != codec.num_codebooks:
        problems.append(f"lm.num_codebooks is {lm.num_codebooks}, the codec has {codec.num_codebooks}")
    if lm.audio_card != codec.codebook_size:
        problems.append(f"lm.audio_card is {lm.audio_card}, the codec's codebooks have {codec.codebook_size}")
    if lm.text_card < tokenizer.vocab_size:
        problems.append(f"lm.text_card is {lm.text_card}, the tokenizer has {tokenizer.vocab_size} pieces")
    if problems:
        raise CheckpointError(f"{source}: model, codec and tokenizer do not fit: " + "; ".join(problems))


def load_speech_model(
    path: Path, config: ModelConfig, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> "VisionSpeechModel":
    """The speech LM, the projector and (when the configuration has vision) the tower of a checkpoint directory."""
    from mmspeech.lm.model import VisionSpeechModel

    model = build_empty(lambda: VisionSpeechModel(config))
    told = read_metadata(path / MODEL)
    kinds = parse_kinds(told[MARK]) if MARK in told else {}
    tensors = read_tensors(path / MODEL, dtype=None if kinds else dtype, device=device)
    if kinds:
        shape_for(model, kinds)
        tensors = restored(tensors, told)
    load_weights(model, tensors, source=path / MODEL)
    model.to(device)  # tables that are not stored
    if config.vision is not None:
        from mmspeech.vision.encoder import build_tower

        weights = path / TOWER if (path / TOWER).is_file() else None
        model.tower = build_tower(config.vision, weights).to(device=device, dtype=dtype)
        quantize_model(model, {part: kind for part, kind in kinds.items() if part == "tower"})
    return model.eval()


def save_model(
    path: str | Path,
    *,
    model: "VisionSpeechModel",
    codec: Codec,
    tokenizer_file: str | Path,
    config: ModelConfig,
    card: str = "",
    dtype: torch.dtype | None = None,
) -> Path:
    """Write a checkpoint directory; it appears whole or not at all, in the place of an earlier one.

    `dtype` (e.g. torch.float16) sets the stored precision of all but the codec's quantiser (whose codebooks are ratios
    of running sums); None keeps what they have.
    """
    with replacing_directory(path) as building:
        write_model(
            building, model=model, codec=codec, tokenizer_file=tokenizer_file, config=config, card=card, dtype=dtype
        )
    return Path(path)


def write_model(
    folder: Path,
    *,
    model: "VisionSpeechModel",
    codec: Codec,
    tokenizer_file: str | Path,
    config: ModelConfig,
    card: str = "",
    dtype: torch.dtype | None = None,
) -> None:
    """The files of `save_model`, into a folder that the caller puts in place."""
    own = {key: value for key, value in model.state_dict().items() if not key.startswith(TOWER_PREFIX)}
    parts = {"codec": codec, "tokenizer_file": tokenizer_file, "config": config, "card": card, "dtype": dtype}
    write_parts(folder, tensors=own, tower=model.tower, **parts)


def write_parts(
    folder: Path,
    *,
    tensors: dict[str, Tensor],
    tower: "VisionTower | None",
    codec: Codec,
    tokenizer_file: str | Path,
    config: ModelConfig,
    card: str = "",
    dtype: torch.dtype | None = None,
) -> None:
    """`write_model` for a model whose weights (`tensors`, without the tower's) were gathered from several processes."""
    write_tensors(folder / MODEL, tensors, dtype=dtype)
    if tower is not None:
        write_tensors(folder / TOWER, tower.weights(), dtype=dtype)
    write_tensors(folder / CODEC, codec.state_dict(), dtype=dtype, exact=("quantizer.",))
    (folder / CONFIG).write_text(config.model_dump_json(indent=1), encoding="utf-8")
    shutil.copyfile(tokenizer_file, folder / TOKENIZER)
    (folder / CARD).write_text(card or f"# {config.name}\n\nA checkpoint of mmspeech.\n", encoding="utf-8")


def save_adapters(path: str | Path, model: "VisionSpeechModel", *, base: str) -> None:
    """Write only the vision adapters (projector, cross-attention, gates) to `path`/adapters.safetensors.

    `base` names the checkpoint they belong to; it is kept in the file.
    """
    names = set(model.adapter_names())
    tensors = {name: value for name, value in model.state_dict().items() if name in names}
    if not tensors:
        raise CheckpointError(f"{path}: this model has no vision adapters to save; its configuration has no fusion")
    Path(path).mkdir(parents=True, exist_ok=True)
    write_tensors(Path(path) / ADAPTERS, tensors, metadata={"base": base})


def load_adapters(path: str | Path, model: "VisionSpeechModel") -> None:
    """Read adapters.safetensors of directory `path` into `model`; every adapter must be there and fit."""
    file = Path(path) / ADAPTERS
    tensors = read_tensors(file)
    names = set(model.adapter_names())
    own = {name: value for name, value in model.state_dict().items() if name in names}
    check_keys(own, tensors, source=file)
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(tensors[name])


class _CodecHolder(StrictModel):
    codec: CodecConfig


def save_codec(path: str | Path, codec: Codec, config: CodecConfig) -> None:
    """Write a codec directory: codec.safetensors and config.json (the codec's own configuration)."""
    with replacing_directory(path) as building:
        write_tensors(building / CODEC, codec.state_dict())
        (building / CONFIG).write_text(config.model_dump_json(indent=1), encoding="utf-8")


def read_codec_config(path: str | Path) -> CodecConfig:
    """The codec's configuration in a codec directory or in a checkpoint directory."""
    file = Path(path) / CONFIG
    if not file.is_file():
        raise CheckpointError(f"{path}: no {CONFIG}; expected a codec or a checkpoint directory")
    data = read_mapping(file)
    if "kind" in data:
        return parse_config(_CodecHolder, {"codec": data}, source=str(file)).codec
    return parse_config(ModelConfig, data, source=str(file)).codec


def load_codec(path: str | Path) -> Codec:
    """The codec of a codec directory or a checkpoint directory: float32, eval mode, without gradients."""
    path = Path(path)
    config = read_codec_config(path)
    codec = build_empty(lambda: build_codec(config))
    load_weights(codec, read_tensors(path / CODEC, dtype=torch.float32), source=path / CODEC)
    return codec.eval().requires_grad_(False)


def resolve(path_or_id: str | Path | None) -> Path:
    """The checkpoint directory meant by a path, a run directory, a hub id or None; raises CheckpointError."""
    if path_or_id is None:
        path_or_id = EMBEDDED
    path = fetched(path_or_id)
    if not path.is_dir():
        found = "a file" if path.exists() else "nothing"
        raise CheckpointError(f"{path}: {found} there; expected a checkpoint directory, a run directory or a hub id")
    if (path / CONFIG).is_file():
        return path
    newest = newest_checkpoint(path)
    if newest is not None:
        return newest
    pickles = sorted(file.name for pattern in PICKLES for file in path.glob(pattern))
    if pickles:
        raise CheckpointError(f"{path}: {pickles[0]} is a pickle, which can run code; expected {CONFIG} and {MODEL}")
    raise CheckpointError(f"{path}: no {CONFIG}; expected a checkpoint directory (see `mmspeech info`)")


def newest_checkpoint(run: Path) -> Path | None:
    """The newest complete checkpoint of a training run directory, or None."""
    steps = sorted(run.glob("checkpoints/step_*/" + CONFIG))
    return steps[-1].parent if steps else None


def build_empty(build: Callable[[], ModuleT]) -> ModuleT:
    """Build a module with parameters on the meta device (no memory, no initialisation) and real buffers.

    `load_weights` then puts tensors in their place.
    """
    register = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None:
            param = nn.Parameter(param.detach().to("meta"), requires_grad=param.requires_grad)
        register(module, name, param)

    nn.Module.register_parameter = register_on_meta
    try:
        return build()
    finally:
        nn.Module.register_parameter = register


def load_weights(module: nn.Module, tensors: dict[str, Tensor], *, source: str | Path) -> None:
    """Put `tensors` into `module` by assignment; raises CheckpointError listing every key that does not fit."""
    own = module.state_dict()
    check_keys(own, tensors, source=source)
    module.load_state_dict(tensors, strict=True, assign=True)


def check_keys(own: dict[str, Tensor], tensors: dict[str, Tensor], *, source: str | Path) -> None:
    """Raise CheckpointError naming missing, unexpected and misshaped keys of `tensors` against `own`."""
    problems = {
        "missing": [key for key in own if key not in tensors],
        "unexpected": [key for key in tensors if key not in own],
        "misshaped": [
            f"{key} {list(value.shape)} (expected {list(own[key].shape)})"
            for key, value in tensors.items()
            if key in own and value.shape != own[key].shape
        ],
    }
    found = [f"{len(keys)} {kind}: {_shorten(keys)}" for kind, keys in problems.items() if keys]
    if found:
        raise CheckpointError(f"{source}: the weights do not fit the configuration; " + "; ".join(found))


def _shorten(keys: list[str], limit: int = 8) -> str:
    return ", ".join(keys[:limit]) + (f" and {len(keys) - limit} more" if len(keys) > limit else "")


def read_tensors(
    file: Path, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> dict[str, Tensor]:
    """All tensors of a safetensors file, floating ones cast to `dtype`, with a progress bar for a large file.

    What needs no cast stays mapped from the file on the CPU; what does is cast tensor by tensor, so that no more than
    one is held twice.
    """
    with _opened(file, device) as opened:
        names = track(
            list(opened.keys()), f"reading {file.name}", console=Console(stderr=True), transient=True,
            disable=file.stat().st_size < SHOWN_BYTES,
        )  # fmt: skip
        return {name: _cast(opened.get_tensor(name), dtype) for name in names}


@contextmanager
def _opened(file: Path, device: str | torch.device) -> Iterator[safe_open]:
    if not file.is_file():
        raise CheckpointError(f"{file}: not there; expected a complete checkpoint directory")
    try:
        with safe_open(str(file), framework="pt", device=str(device)) as opened:
            yield opened
    except SafetensorError as error:
        raise CheckpointError(f"{file}: not a readable safetensors file ({error}); copy or save it again") from error


def _cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


def read_metadata(file: Path) -> dict[str, str]:
    """What a safetensors file says of itself; nothing for a file that is not there."""
    if not file.is_file():
        return {}
    with _opened(file, "cpu") as opened:
        return opened.metadata() or {}


def write_tensors(
    file: Path,
    tensors: dict[str, Tensor],
    *,
    dtype: torch.dtype | None = None,
    exact: tuple[str, ...] = (),
    metadata: dict[str, str] | None = None,
) -> None:
    """Write a safetensors file atomically; tensors that share memory are stored separately, others are not copied.

    `dtype` is for floating tensors, but for those whose names begin with one of `exact`.
    """
    stored: dict[str, Tensor] = {}
    seen: set[int] = set()
    for key, value in tensors.items():
        value = _cast(value.detach().cpu(), None if key.startswith(exact) else dtype).contiguous()
        stored[key] = value.clone() if value.data_ptr() in seen else value
        seen.add(value.data_ptr())
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        save_file(stored, str(temporary), metadata={"format": "pt", **(metadata or {})})
        temporary.chmod(0o644)  # safetensors keeps new files to their owner
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_directory(path: str | Path) -> Iterator[Path]:
    """A fresh directory beside `path` that takes its place when the block ends without an error.

    Only an empty directory or an earlier checkpoint is replaced; anything else at `path` raises CheckpointError.
    """
    path = Path(path)
    if path.exists() and not (path.is_dir() and ((path / CONFIG).is_file() or not any(path.iterdir()))):
        raise CheckpointError(f"{path}: already there and not a checkpoint, so not replaced; choose a new directory")
    building = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        yield building
        if path.exists():
            path.rename(old)
        building.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(building, ignore_errors=True)
        if old.exists() and not path.exists():
            old.rename(path)
