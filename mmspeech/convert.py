"""Kyutai's MoshiVis layout (config.yaml and model.safetensors) <-> ours; Mimi alone is for convert_codec.

Both layouts hold the same numbers in the same order; they differ in names and in what is packed into one tensor. So the
key table is a list of groups: the tensors of a group, laid end to end, are equal on both sides.
"""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from safetensors import safe_open
from torch import Tensor

from mmspeech import checkpoint
from mmspeech.checkpoint import PICKLES, build_empty, check_keys, load_weights, read_tensors, write_tensors
from mmspeech.config import ModelConfig, parse_config, read_mapping
from mmspeech.convert_codec import convert_mimi, holds_mimi, load_mimi, save_mimi
from mmspeech.convert_config import ConvertError, config_from_kyutai, config_to_kyutai
from mmspeech.lm.model import VisionSpeechModel, looking_layers, source_dim
from mmspeech.vision.weights import portable

CONFIG, WEIGHTS = "config.yaml", "model.safetensors"
MIMI, TOKENIZER = "tokenizer-e351c8d8-checkpoint125.safetensors", "tokenizer_spm_32k_3.model"
COPIES_MARK = "kyutai_copies"
TOWER_PREFIX = "image_prefix.enc."
LAYER = "llm.transformer.layers"

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Group:
    """ours: names in our state dict; theirs: their names with shapes; copies: their other names of the same tensors."""

    ours: tuple[str, ...]
    theirs: dict[str, Shape]
    copies: tuple[dict[str, str], ...] = ()


@dataclass
class Converted:
    """A checkpoint read from their layout.

    tower: weights of the vision tower, empty where the file has none. copies: the file holds shared tensors once per
    layer, not once in all.
    """

    model: VisionSpeechModel
    config: ModelConfig
    tower: dict[str, Tensor]
    copies: bool


def convert_directory(src: str | Path, dst: str | Path) -> list[str]:
    """Translate a checkpoint directory (or Mimi alone) into the other layout; returns notes on what was not there.

    The result appears whole or not at all. Raises ConvertError or CheckpointError, one line each.
    """
    src, dst = Path(src), Path(dst)
    if dst.exists() and (not dst.is_dir() or any(dst.iterdir())):
        raise ConvertError(f"{dst}: already there and not empty; choose a new directory")
    if (src / CONFIG).is_file():
        return _to_ours(src, dst)
    if holds_mimi(src):
        return convert_mimi(src, dst)
    if (src / checkpoint.CONFIG).is_file():
        return _to_kyutai(src, dst)
    raise ConvertError(
        f"{src}: neither {CONFIG} or tokenizer-*.safetensors (Kyutai's MoshiVis, Mimi) nor {checkpoint.CONFIG} "
        "(ours, transformers' Mimi) there; give a checkpoint directory or a Mimi file"
    )


def _to_ours(src: Path, dst: str | Path) -> list[str]:
    converted, settings = read_moshivis(src), read_mapping(src / CONFIG)
    mimi, tokenizer = src / settings.get("mimi_codec", MIMI), src / settings.get("text_tokenizer", TOKENIZER)
    notes = [] if converted.tower or converted.config.vision is None else ["no vision tower in the file"]
    with checkpoint.replacing_directory(dst) as folder:
        # Remembered so that the way back gives the same file.
        copies = {COPIES_MARK: "true"} if converted.copies else {}
        write_tensors(folder / checkpoint.MODEL, converted.model.state_dict(), metadata=copies)
        (folder / checkpoint.CONFIG).write_text(converted.config.model_dump_json(indent=1), encoding="utf-8")
        if converted.tower:
            write_tensors(folder / checkpoint.TOWER, portable(converted.tower))
        if mimi.is_file():
            write_tensors(folder / checkpoint.CODEC, load_mimi(mimi, converted.config.codec).state_dict())
        else:
            notes.append(f"no codec: {mimi.name} is not beside it")
        if tokenizer.is_file():
            shutil.copyfile(tokenizer, folder / checkpoint.TOKENIZER)
        else:
            notes.append(f"no tokenizer: {tokenizer.name} is not beside it")
    return notes


def _to_kyutai(src: Path, dst: str | Path) -> list[str]:
    config = parse_config(ModelConfig, read_mapping(src / checkpoint.CONFIG), source=str(src / checkpoint.CONFIG))
    model = build_empty(lambda: VisionSpeechModel(config))
    load_weights(model, read_tensors(src / checkpoint.MODEL), source=src / checkpoint.MODEL)
    parts = {name: (src / name).is_file() for name in (checkpoint.TOWER, checkpoint.CODEC, checkpoint.TOKENIZER)}
    parts[checkpoint.CODEC] &= config.codec.kind == "mimi"
    tower = {}
    if parts[checkpoint.TOWER]:
        tower = {f"{TOWER_PREFIX}model.{k}": v for k, v in read_tensors(src / checkpoint.TOWER).items()}
    with checkpoint.replacing_directory(dst) as folder:
        write_moshivis(folder, model, tower=tower, copies=_has_copies_mark(src / checkpoint.MODEL))
        if parts[checkpoint.CODEC]:
            save_mimi(folder / MIMI, checkpoint.load_codec(src), config.codec, layout="kyutai")
        if parts[checkpoint.TOKENIZER]:
            shutil.copyfile(src / checkpoint.TOKENIZER, folder / TOKENIZER)
    return [f"no {name}, or of a kind that their layout cannot hold" for name, there in parts.items() if not there]


def _has_copies_mark(file: Path) -> bool:
    with safe_open(str(file), framework="pt") as opened:
        return COPIES_MARK in (opened.metadata() or {})


def read_moshivis(path: str | Path) -> Converted:
    """Read a directory in their layout; weights keep the precision they are stored in. Raises ConvertError."""
    path = Path(path)
    source = path / CONFIG
    if not source.is_file():
        raise ConvertError(f"{path}: no {CONFIG}; expected a directory in Kyutai's layout ({CONFIG} and safetensors)")
    data = read_mapping(source)
    config = config_from_kyutai(data, source=str(source))
    file = path / str(data.get("model", WEIGHTS))
    if file.suffix != ".safetensors" or not file.is_file():
        pickles = sorted(found.name for pattern in PICKLES for found in path.glob(pattern))
        hint = f" ({pickles[0]} is a pickle, which can run code)" if pickles else ""
        raise ConvertError(f"{file}: not there or not a safetensors file; expected {WEIGHTS}{hint}")
    tensors = read_tensors(file)
    tower = {key: tensors.pop(key) for key in list(tensors) if key.startswith(TOWER_PREFIX)}
    model = build_empty(lambda: VisionSpeechModel(config))
    load_weights(model, import_moshivis(tensors, config, source=file), source=file)
    copies = any(other in tensors for group in key_table(config) for copy in group.copies for other in copy.values())
    return Converted(model.eval(), config, tower, copies)


def write_moshivis(
    path: str | Path, model: VisionSpeechModel, *, tower: dict[str, Tensor] | None = None, copies: bool = False
) -> None:
    """Write config.yaml and model.safetensors in their layout; `copies`: shared tensors once per layer.

    Raises ConvertError for what their layout cannot hold.
    """
    path = Path(path)
    theirs = config_to_kyutai(model.config)
    tensors = export_moshivis(model.state_dict(), model.config, copies=copies) | dict(tower or {})
    path.mkdir(parents=True, exist_ok=True)
    write_tensors(path / WEIGHTS, tensors)
    (path / CONFIG).write_text(yaml.safe_dump(theirs), encoding="utf-8")


def import_moshivis(tensors: dict[str, Tensor], config: ModelConfig, *, source: str | Path) -> dict[str, Tensor]:
    """Their tensors (without the tower) -> our state dict; a CheckpointError names every key that does not fit."""
    groups = list(key_table(config))
    tensors = _without_copies(tensors, groups, source=source)
    theirs = {key: torch.empty(shape, device="meta") for group in groups for key, shape in group.theirs.items()}
    check_keys(theirs, tensors, source=source)
    shapes = _our_shapes(config)
    ours: dict[str, Tensor] = {}
    for group in groups:
        ours |= _repack([tensors[key] for key in group.theirs], {name: shapes[name] for name in group.ours})
    return ours


def export_moshivis(state: dict[str, Tensor], config: ModelConfig, *, copies: bool = False) -> dict[str, Tensor]:
    """Our state dict -> their tensors (without the tower); `copies`: shared tensors once per layer."""
    theirs: dict[str, Tensor] = {}
    for group in key_table(config):
        theirs |= _repack([state[name] for name in group.ours], group.theirs)
        for copy in group.copies if copies else ():
            theirs |= {other: theirs[name] for name, other in copy.items()}
    return theirs


def _repack(tensors: list[Tensor], shapes: dict[str, Shape]) -> dict[str, Tensor]:
    """The same numbers in the same order, cut into other shapes."""
    flat = tensors[0].reshape(-1) if len(tensors) == 1 else torch.cat([tensor.reshape(-1) for tensor in tensors])
    sizes = [torch.Size(shape).numel() for shape in shapes.values()]
    return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), flat.split(sizes), strict=True)}


def _without_copies(tensors: dict[str, Tensor], groups: list[Group], *, source: str | Path) -> dict[str, Tensor]:
    """Shared tensors under their first name only; raises ConvertError where a file holds different ones."""
    tensors = dict(tensors)
    for group in groups:
        for copy in group.copies:
            for name, other in copy.items():
                if other not in tensors:
                    continue
                again = tensors.pop(other)
                if not torch.equal(tensors.setdefault(name, again), again):
                    raise ConvertError(f"{source}: {name} and {other} differ, but config.yaml says they are shared")
    return tensors


def _our_shapes(config: ModelConfig) -> dict[str, Shape]:
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in VisionSpeechModel(config).state_dict().items()}


# --- the key table ---------------------------------------------------------------------------------------------------


def key_table(config: ModelConfig) -> Iterator[Group]:
    """Every tensor of the language model, the adapters and the projector."""
    lm = config.lm
    dim = lm.temporal.dim
    audio_rows = lm.audio_card + 1
    temporal = "lm.temporal"
    yield _same(f"{temporal}.text_emb.weight", "llm.text_emb.weight", (lm.text_card + 1, dim))
    yield Group(
        (f"{temporal}.audio_emb.weight",),
        {f"audio_emb.{k}.weight": (audio_rows, dim) for k in range(2 * lm.num_codebooks)},
    )
    yield from _norm(f"{temporal}.out_norm", "llm.out_norm", dim, lm.temporal.norm)
    yield _same(f"{temporal}.text_linear.weight", "llm.text_linear.weight", (lm.text_card, dim))
    for n in range(lm.temporal.num_layers):
        ours, theirs, inner = f"{temporal}.transformer.layers.{n}", f"{LAYER}.{n}", lm.temporal.ffn_dim
        yield from _norm(f"{ours}.norm1", f"{theirs}.norm1", dim, lm.temporal.norm)
        yield from _norm(f"{ours}.norm2", f"{theirs}.norm2", dim, lm.temporal.norm)
        yield _same(f"{ours}.self_attn.in_proj.weight", f"{theirs}.self_attn.in_proj_weight", (3 * dim, dim))
        yield _same(f"{ours}.self_attn.out_proj.weight", f"{theirs}.self_attn.out_proj.weight", (dim, dim))
        yield _same(f"{ours}.ffn.linear_in.weight", f"{theirs}.gating.linear_in.weight", (2 * inner, dim))
        yield _same(f"{ours}.ffn.linear_out.weight", f"{theirs}.gating.linear_out.weight", (dim, inner))
    yield from _depth_keys(config)
    if lm.fusion is not None:
        yield from _fusion_keys(config)
        yield from _projector_keys(config)


def _depth_keys(config: ModelConfig) -> Iterator[Group]:
    lm, dim, inner = config.lm, config.lm.depth.dim, config.lm.depth.ffn_dim
    steps = range(lm.num_codebooks)
    count, audio_rows = lm.num_codebooks, lm.audio_card + 1

    def each(pattern: str, shape: Shape, ks: range = steps) -> dict[str, Shape]:
        return {pattern.format(k): shape for k in ks}

    yield Group(("lm.depth.hidden_in.weight",), each("depformer_in.{}.weight", (dim, lm.temporal.dim)))
    yield _same("lm.depth.text_emb", "depformer_text_emb.weight", (lm.text_card + 1, dim))
    if count > 1:
        yield Group(("lm.depth.audio_emb",), each("depformer_emb.{}.weight", (audio_rows, dim), steps[:-1]))
    for n in range(lm.depth.num_layers):
        ours, theirs = f"lm.depth.layers.{n}", f"depformer.layers.{n}"
        yield from _norm(f"{ours}.norm1", f"{theirs}.norm1", dim, lm.depth.norm)
        yield from _norm(f"{ours}.norm2", f"{theirs}.norm2", dim, lm.depth.norm)
        yield _same(f"{ours}.in_proj.weight", f"{theirs}.self_attn.in_proj_weight", (count * 3 * dim, dim))
        yield _same(f"{ours}.out_proj.weight", f"{theirs}.self_attn.out_proj.weight", (count * dim, dim))
        gating = f"{theirs}.gating."
        yield Group((f"{ours}.ffn_in.weight",), each(gating + "{}.linear_in.weight", (2 * inner, dim)))
        yield Group((f"{ours}.ffn_out.weight",), each(gating + "{}.linear_out.weight", (dim, inner)))
    yield Group(("lm.depth.audio_linear.weight",), each("audio_linears.{}.weight", (lm.audio_card, dim)))


def _fusion_keys(config: ModelConfig) -> Iterator[Group]:
    lm, fusion = config.lm, config.lm.fusion
    dim, width = lm.temporal.dim, source_dim(fusion, lm.temporal)
    layers = looking_layers(fusion, lm.temporal)
    cross = [f"{LAYER}.{n}.cross_attention" for n in layers]
    for i, n in enumerate(layers):
        yield from _norm(f"lm.temporal.fusion.norms.{i}", f"{LAYER}.{n}.norm_cross", dim, lm.temporal.norm)

    def mha(ours: str, theirs: str) -> list[tuple[tuple[str, ...], dict[str, Shape]]]:
        query, key_value = (f"{ours}.q_proj.weight",), (f"{ours}.kv_proj.weight",)
        out = ((f"{ours}.out_proj.weight",), {f"{theirs}.mha.out_proj.weight": (dim, dim)})
        if width == dim:
            return [(query + key_value, {f"{theirs}.mha.in_proj_weight": (3 * dim, dim)}), out]
        return [
            (query, {f"{theirs}.mha.in_proj_weight_q": (dim, dim)}),
            (key_value, {f"{theirs}.mha.in_proj_weight_kv": (2 * dim, width)}),
            out,
        ]

    def gate(ours: str, theirs: str) -> list[tuple[tuple[str, ...], dict[str, Shape]]]:
        if fusion.gate.startswith("scalar_"):
            return [((f"{ours}.alpha",), {f"{theirs}.gate.alpha": (1, 1, 1)})]
        hidden = dim // 8
        return [
            ((f"{ours}.linear_in.weight",), {f"{theirs}.gate.alpha.0.weight": (hidden, dim)}),
            ((f"{ours}.linear_out.weight",), {f"{theirs}.gate.alpha.2.weight": (dim, hidden)}),
        ]

    yield from _per_layer("lm.temporal.fusion.projections", cross, mha, shared=fusion.shared)
    if fusion.gate != "none":
        yield from _per_layer("lm.temporal.fusion.gates", cross, gate, shared=fusion.shared_gate)
    if fusion.shared and fusion.shared_gate:
        yield Group(("lm.temporal.fusion.factors",), {f"{layer}.per_layer_alpha": (1, 1, 1) for layer in cross})


def _per_layer(ours: str, cross: list[str], keys: Callable, *, shared: bool) -> Iterator[Group]:
    """Groups of a part that stands in every looking layer, or, shared, in the first with copies in the others."""
    for i, theirs in enumerate(cross[:1] if shared else cross):
        for names, shapes in keys(f"{ours}.{i}", theirs):
            others = cross[1:] if shared else []
            copies = tuple({name: name.replace(theirs, other, 1) for name in shapes} for other in others)
            yield Group(names, shapes, copies)


def _projector_keys(config: ModelConfig) -> Iterator[Group]:
    vision, width = config.vision, source_dim(config.lm.fusion, config.lm.temporal)
    if vision.project:
        yield _same("projector.proj.weight", "image_prefix.proj_xa.weight", (width, vision.tower_dim))
        yield _same("projector.proj.bias", "image_prefix.proj_xa.bias", (width,))
    if vision.projector_norm is not None:
        yield from _norm("projector.norm", "image_prefix.norm_xa", width, vision.projector_norm)


def _same(ours: str, theirs: str, shape: Shape) -> Group:
    return Group((ours,), {theirs: shape})


def _norm(ours: str, theirs: str, dim: int, kind: str) -> Iterator[Group]:
    if kind == "layer":
        yield _same(f"{ours}.weight", f"{theirs}.weight", (dim,))
        yield _same(f"{ours}.bias", f"{theirs}.bias", (dim,))
    else:
        yield _same(f"{ours}.alpha", f"{theirs}.alpha", (1, 1, dim))
