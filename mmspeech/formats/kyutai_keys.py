"""Names of Kyutai's tensors: in MoshiVis's files, in those of the moshi package, and in candle's."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace

from mmspeech.config import ModelConfig, TransformerConfig
from mmspeech.formats.groups import Group, Shape, same
from mmspeech.lm.listener import ListenerConfig
from mmspeech.lm.model import looking_layers, source_dim

LAYER = "llm.transformer.layers"
# (MoshiVis, moshi package): the first rule that fits a name is applied.
PLAIN_RULES = ((r"^llm\.", ""), (r"^audio_emb\.", "emb."), (r"^audio_linears\.", "linears."))
# (moshi package, candle): one slice of the depth transformer for each step.
CANDLE_RULES = (
    (r"^depformer_in\.(\d+)\.", r"depformer.\1.linear_in."),
    (r"^depformer_text_emb\.", "depformer.0.emb."),
    (r"^linears\.(\d+)\.", r"depformer.\1.linear_out."),
    (r"^depformer\.(layers\.\d+\.gating)\.(\d+)\.", r"depformer.\2.transformer.\1."),
    (r"^(transformer\..*\.cross_attention)\.mha\.", r"\1."),
)


def moshi_groups(config: ModelConfig) -> Iterator[Group]:
    """The table of the moshi package's files: the language model alone."""
    return (_renamed(group, PLAIN_RULES) for group in moshivis_groups(config))


def candle_groups(config: ModelConfig) -> Iterator[Group]:
    """The table of candle's files, with adapters and projector where the configuration has them."""
    steps = config.lm.depth_steps
    for group in moshi_groups(config):
        yield _renamed(_sliced(group, steps), CANDLE_RULES)


def _renamed(group: Group, rules: tuple[tuple[str, str], ...]) -> Group:
    theirs = {_rename(name, rules): shape for name, shape in group.theirs.items()}
    copies = tuple({_rename(a, rules): _rename(b, rules) for a, b in copy.items()} for copy in group.copies)
    return Group(group.ours, theirs, copies)


def _rename(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, to in rules:
        renamed, hits = re.subn(pattern, to, name)
        if hits:
            return renamed
    return name


def _sliced(group: Group, steps: int) -> Group:
    """What stands once for all steps in the depth transformer, once for each."""
    (name, shape), *others = group.theirs.items()
    if name.startswith("depformer_emb."):
        rows = (shape for shape in group.theirs.values())
        return replace(group, theirs={f"depformer.{k}.emb.weight": rows_k for k, rows_k in enumerate(rows, start=1)})
    found = re.match(r"^depformer\.(layers\.\d+\.(?:self_attn|norm\d)\..*)$", name)
    if found is None:
        return group
    names = [f"depformer.{k}.transformer.{found[1]}" for k in range(steps)]
    if ".norm" in name:
        return replace(group, theirs={names[0]: shape}, copies=tuple({names[0]: other} for other in names[1:]))
    return replace(group, theirs=dict.fromkeys(names, (shape[0] // steps, *shape[1:])))


def moshivis_groups(config: ModelConfig) -> Iterator[Group]:
    """Every tensor of the language model, the adapters and the projector."""
    lm = config.lm
    cards = {"text_card": lm.text_card, "audio_card": lm.audio_card, "num_streams": 2 * lm.num_codebooks}
    yield from temporal_groups(lm.temporal, ours="lm.temporal", **cards)
    yield from _depth_keys(config)
    if lm.fusion is not None:
        yield from _fusion_keys(config)
        yield from _projector_keys(config)


def listener_groups(config: ListenerConfig) -> Iterator[Group]:
    """The table of the moshi package's files of a model that only listens (see lm.listener)."""
    cards = {"text_card": config.text_card, "audio_card": config.audio_card, "num_streams": config.num_codebooks}
    for group in temporal_groups(config.temporal, ours="temporal", **cards):
        yield _renamed(group, PLAIN_RULES)
    shape = (config.extra_head_dim, config.temporal.dim)
    for k in range(config.num_extra_heads):
        yield same(f"extra_heads.{k}.weight", f"extra_heads.{k}.weight", shape)


def temporal_groups(
    options: TransformerConfig, *, ours: str, text_card: int, audio_card: int, num_streams: int
) -> Iterator[Group]:
    """The temporal transformer with its embeddings and text head; `ours`: what it is called in our state dict."""
    dim = options.dim
    yield same(f"{ours}.text_emb.weight", "llm.text_emb.weight", (text_card + 1, dim))
    streams = {f"audio_emb.{k}.weight": (audio_card + 1, dim) for k in range(num_streams)}
    yield Group((f"{ours}.audio_emb.weight",), streams)
    yield from norm_groups(f"{ours}.out_norm", "llm.out_norm", dim, options.norm)
    yield same(f"{ours}.text_linear.weight", "llm.text_linear.weight", (text_card, dim))
    yield from temporal_layer_groups(options, ours=f"{ours}.transformer.layers", theirs=LAYER)


def temporal_layer_groups(options: TransformerConfig, *, ours: str, theirs: str) -> Iterator[Group]:
    """The layers of the temporal transformer, called `ours`.0 and so on in our state dict."""
    dim, inner = options.dim, options.ffn_dim
    for n in range(options.num_layers):
        own, other = f"{ours}.{n}", f"{theirs}.{n}"
        yield from norm_groups(f"{own}.norm1", f"{other}.norm1", dim, options.norm)
        yield from norm_groups(f"{own}.norm2", f"{other}.norm2", dim, options.norm)
        yield same(f"{own}.self_attn.in_proj.weight", f"{other}.self_attn.in_proj_weight", (3 * dim, dim))
        yield same(f"{own}.self_attn.out_proj.weight", f"{other}.self_attn.out_proj.weight", (dim, dim))
        yield same(f"{own}.ffn.linear_in.weight", f"{other}.gating.linear_in.weight", (2 * inner, dim))
        yield same(f"{own}.ffn.linear_out.weight", f"{other}.gating.linear_out.weight", (dim, inner))


def _depth_keys(config: ModelConfig) -> Iterator[Group]:
    lm, dim, inner = config.lm, config.lm.depth.dim, config.lm.depth.ffn_dim
    count, audio_rows = lm.depth_steps, lm.audio_card + 1
    steps = range(count)

    def each(pattern: str, shape: Shape, ks: range = steps) -> dict[str, Shape]:
        return {pattern.format(k): shape for k in ks}

    yield Group(("lm.depth.hidden_in.weight",), each("depformer_in.{}.weight", (dim, lm.temporal.dim)))
    yield same("lm.depth.text_emb", "depformer_text_emb.weight", (lm.text_card + 1, dim))
    if count > 1:
        yield Group(("lm.depth.audio_emb",), each("depformer_emb.{}.weight", (audio_rows, dim), steps[:-1]))
    for n in range(lm.depth.num_layers):
        ours, theirs = f"lm.depth.layers.{n}", f"depformer.layers.{n}"
        yield from norm_groups(f"{ours}.norm1", f"{theirs}.norm1", dim, lm.depth.norm)
        yield from norm_groups(f"{ours}.norm2", f"{theirs}.norm2", dim, lm.depth.norm)
        yield same(f"{ours}.in_proj.weight", f"{theirs}.self_attn.in_proj_weight", (count * 3 * dim, dim))
        yield same(f"{ours}.out_proj.weight", f"{theirs}.self_attn.out_proj.weight", (count * dim, dim))
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
        yield from norm_groups(f"lm.temporal.fusion.norms.{i}", f"{LAYER}.{n}.norm_cross", dim, lm.temporal.norm)

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
        yield same("projector.proj.weight", "image_prefix.proj_xa.weight", (width, vision.tower_dim))
        yield same("projector.proj.bias", "image_prefix.proj_xa.bias", (width,))
    if vision.projector_norm is not None:
        yield from norm_groups("projector.norm", "image_prefix.norm_xa", width, vision.projector_norm)


def norm_groups(ours: str, theirs: str, dim: int, kind: str) -> Iterator[Group]:
    """The tensors of a norm of that kind (see nn.layers.build_norm)."""
    if kind == "layer":
        yield same(f"{ours}.weight", f"{theirs}.weight", (dim,))
        yield same(f"{ours}.bias", f"{theirs}.bias", (dim,))
    else:
        yield same(f"{ours}.alpha", f"{theirs}.alpha", (1, 1, dim))
