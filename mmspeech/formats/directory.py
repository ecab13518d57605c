"""Which layout a directory is in, and the way from any of them to ours and from ours to any that can hold it."""

import shutil
from pathlib import Path
from typing import Literal

from mmspeech import checkpoint
from mmspeech.checkpoint import build_empty, load_weights, read_tensors, write_tensors
from mmspeech.config import ModelConfig, parse_config, read_mapping
from mmspeech.formats import moshi, moshivis
from mmspeech.formats.candle import find_candle, read_candle
from mmspeech.formats.groups import Converted, ConvertError
from mmspeech.formats.lora import LORA, export_lora
from mmspeech.formats.mimi import MIMI, convert_mimi, holds_mimi, save_mimi
from mmspeech.formats.moshi_transformers import (
    holds_transformers_moshi,
    read_transformers_moshi,
    write_transformers_moshi,
)
from mmspeech.lm.model import VisionSpeechModel
from mmspeech.vision.weights import portable

Layout = Literal["moshivis", "moshi", "transformers", "lora"]
_PARTS = (checkpoint.TOWER, checkpoint.CODEC, checkpoint.TOKENIZER)


def convert_directory(
    src: str | Path, dst: str | Path, *, layout: Layout | None = None, lora: Path | None = None
) -> list[str]:
    """Translate a checkpoint directory (or Mimi alone) into ours, or ours into `layout` (None: MoshiVis's for a model
    with eyes, else the moshi package's); returns notes on what was not there. `lora`: pairs of moshi-finetune to add.

    The result appears whole or not at all. Raises ConvertError or CheckpointError, one line each.
    """
    src, dst = Path(src), Path(dst)
    if dst.exists() and (not dst.is_dir() or any(dst.iterdir())):
        raise ConvertError(f"{dst}: already there and not empty; choose a new directory")
    if holds_ours(src):
        if lora is not None:
            raise ConvertError(f"{lora}: pairs of moshi-finetune belong to Kyutai's layout; {src} is in ours")
        return _to_theirs(src, dst, layout)
    if layout is not None:
        raise ConvertError(f"{src}: --layout is for a checkpoint of ours; what is in another layout becomes ours")
    found = read_any(src, lora=lora)
    if found is None and holds_mimi(src):
        return convert_mimi(src, dst)
    if found is None:
        raise ConvertError(
            f"{src}: neither config.yaml (MoshiVis), config.json or weights of the moshi package or of transformers' "
            f"Moshi, candle's files (*.gguf), a Mimi (tokenizer-*.safetensors), nor a checkpoint of ours"
        )
    return _write_ours(found, dst)


def holds_ours(path: Path) -> bool:
    """Whether `path` is a checkpoint directory of ours."""
    file = path / checkpoint.CONFIG
    return file.is_file() and {"lm", "codec"} <= read_mapping(file).keys()


def read_any(src: Path, *, lora: Path | None = None) -> Converted | None:
    """Read a model in any layout but ours; None when there is none. Raises ConvertError."""
    if (src / moshivis.CONFIG).is_file():
        found = moshivis.read_moshivis(src)
    elif src.is_dir() and moshi.holds_moshi(src):
        return moshi.read_moshi(src, lora=lora)
    elif holds_transformers_moshi(src):
        found = read_transformers_moshi(src)
    elif (file := find_candle(src)) is not None:
        found = read_candle(file)
    else:
        return None
    if lora is not None:
        raise ConvertError(f"{lora}: pairs of moshi-finetune belong to the moshi package's layout; {src} is in another")
    return found


def _write_ours(found: Converted, dst: Path) -> list[str]:
    notes = [] if found.tower or found.config.vision is None else ["no vision tower in the file"]
    with checkpoint.replacing_directory(dst) as folder:
        # Marks are remembered so that the way back gives the same file.
        write_tensors(folder / checkpoint.MODEL, found.build().state_dict(), metadata=found.marks)
        (folder / checkpoint.CONFIG).write_text(found.config.model_dump_json(indent=1), encoding="utf-8")
        if found.tower:
            write_tensors(folder / checkpoint.TOWER, portable(found.tower))
        if found.codec:
            write_tensors(folder / checkpoint.CODEC, found.codec)
        else:
            notes.append(f"no codec: {MIMI} is not beside it")
        if found.tokenizer is not None:
            shutil.copyfile(found.tokenizer, folder / checkpoint.TOKENIZER)
        else:
            notes.append(f"no tokenizer: {moshivis.TOKENIZER} is not beside it")
    return notes


def _to_theirs(src: Path, dst: Path, layout: Layout | None) -> list[str]:
    config = parse_config(ModelConfig, read_mapping(src / checkpoint.CONFIG), source=str(src / checkpoint.CONFIG))
    layout = layout or ("moshi" if config.lm.fusion is None else "moshivis")
    if layout == "lora":
        with checkpoint.replacing_directory(dst) as folder:
            export_lora(src, config, folder)
        return [f"only the pairs of {LORA}: they belong to the checkpoint that the run began from"]
    model = build_empty(lambda: VisionSpeechModel(config))
    load_weights(model, read_tensors(src / checkpoint.MODEL), source=src / checkpoint.MODEL)
    state, marks = model.state_dict(), checkpoint.read_metadata(src / checkpoint.MODEL)
    parts = {name: (src / name).is_file() for name in _PARTS}
    parts[checkpoint.CODEC] &= config.codec.kind == "mimi"
    parts[checkpoint.TOWER] &= layout == "moshivis"
    codec = checkpoint.load_codec(src) if parts[checkpoint.CODEC] else None
    with checkpoint.replacing_directory(dst) as folder:
        if layout == "moshivis":
            tower = read_tensors(src / checkpoint.TOWER) if parts[checkpoint.TOWER] else {}
            moshivis.write_moshivis(folder, state, config, tower=tower, copies=moshivis.COPIES_MARK in marks)
        elif layout == "moshi":
            moshi.write_moshi(folder, state, config, split=moshi.SPLIT_MARK in marks)
        else:
            write_transformers_moshi(folder, state, config, codec={} if codec is None else codec.state_dict())
        if codec is not None and layout != "transformers":
            save_mimi(folder / MIMI, codec, config.codec, layout="kyutai")
        if parts[checkpoint.TOKENIZER]:
            shutil.copyfile(src / checkpoint.TOKENIZER, folder / moshivis.TOKENIZER)
    wanted = _PARTS if config.vision is not None else _PARTS[1:]
    return [f"no {name}, or of a kind that their layout cannot hold" for name in wanted if not parts[name]]
