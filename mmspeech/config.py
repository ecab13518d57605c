"""Configuration: frozen, strict models, read from YAML or JSON, with dotted overrides.

Every problem in a file is reported at once, each with its dotted key and, for an unknown key, the nearest valid name.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mmspeech.config_errors import describe
from mmspeech.frames import FRAME_SAMPLES, SAMPLE_RATE_HZ


class ConfigError(ValueError):
    """A configuration or input the user can mend; the message is one line or a short list."""


class Problems:
    """Collects what is wrong in several places, to tell it all at once."""

    def __init__(self):
        self._found: list[str] = []

    @contextmanager
    def noted(self, prefix: str = "") -> Iterator[None]:
        """A ConfigError inside is kept, with `prefix` in front, and the program goes on."""
        try:
            yield
        except ConfigError as error:
            self._found.append(f"{prefix}{error}")

    def tell(self) -> None:
        """Raise one ConfigError with everything that was found, if anything was."""
        if self._found:
            raise ConfigError("; ".join(self._found))


class StrictModel(BaseModel):
    """Base of every configuration: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


NormKind = Literal["rms", "rms_variance", "layer"]
GateKind = Literal["sigmoid", "tanh", "scalar_sigmoid", "scalar_tanh", "none"]


class TransformerConfig(StrictModel):
    """A causal transformer with a sliding attention window.

    `ffn_dim` is the inner width of the feed-forward layer (of each half, when gated). `context` counts steps.
    `max_period` is that of rotary positions; None means no positions.
    """

    dim: int = Field(gt=0)
    num_heads: int = Field(gt=0)
    num_layers: int = Field(gt=0)
    ffn_dim: int = Field(gt=0)
    context: int = Field(gt=0)
    norm: NormKind = "rms"
    norm_eps: float = 1e-8
    max_period: float | None = 10_000.0
    gated_ffn: bool = True
    layer_scale: float | None = None

    @model_validator(mode="after")
    def _heads_divide(self):
        if self.dim % self.num_heads:
            raise ValueError(f"dim {self.dim} is not a multiple of num_heads {self.num_heads}")
        return self


class FusionConfig(StrictModel):
    """Gated cross-attention from the temporal transformer to what is seen.

    `layers`: indices of layers that look (None: all). `shared`: one set of projections for all of them.
    `gate`: input-dependent (`sigmoid`, `tanh`), one number per layer (`scalar_*`) or `none`.
    `gate_shift`: a sigmoid gate is sigmoid(x + gate_shift). At -4 a new gate is almost closed, which spares a large
    speech model from untrained adapters; above 0 it begins open, and a small model learns to see much sooner.
    `source_dim`: width of the visual tokens the projections read (None: the model's width, one fused matrix in files).
    `shared_gate`: one gate for all layers, times a per-layer scalar.

    `memory_frames`: how many of the newest pictures or frames are seen; each new one takes the place of the oldest.
    `age_buckets`: keys carry how long ago their frame came, in so many steps that grow with the age (0: they do not).
    `summary_slots`: what leaves memory is not lost at once: each `summary_group` frames in turn become one, their mean,
    and the last `summary_slots` of these are seen beside the newest frames.
    """

    layers: tuple[int, ...] | None = None
    shared: bool = True
    gate: GateKind = "sigmoid"
    gate_hidden: int | None = None
    gate_shift: float = -4.0
    shared_gate: bool = False
    source_dim: int | None = None
    memory_frames: int = Field(1, gt=0)
    age_buckets: int = Field(0, ge=0)
    summary_slots: int = Field(0, ge=0)
    summary_group: int = Field(4, gt=0)

    @model_validator(mode="after")
    def _ages_differ(self):
        if self.age_buckets and self.memory_frames + self.summary_slots == 1:
            raise ValueError("age_buckets without memory: a single frame's age changes nothing; raise memory_frames")
        return self


class LMConfig(StrictModel):
    """The duplex language model: 1 text stream, `num_codebooks` own and `num_codebooks` user audio streams.

    `depth_codebooks`: how many of them the depth transformer has weights for (None: the own ones; more: the first of
    the user's, too, as in PersonaPlex; calls do not run them).
    """

    text_card: int = Field(gt=0)
    audio_card: int = Field(gt=0)
    num_codebooks: int = 8
    depth_codebooks: int | None = None
    delays: tuple[int, ...]
    text_pad_id: int = 3
    text_epad_id: int = 0
    temporal: TransformerConfig
    depth: TransformerConfig
    fusion: FusionConfig | None = None

    @model_validator(mode="after")
    def _streams_match(self):
        if len(self.delays) != self.num_streams:
            raise ValueError(
                f"delays has {len(self.delays)} entries, expected {self.num_streams} "
                f"(1 text + 2 x {self.num_codebooks} audio)"
            )
        if min(self.delays) != 0:
            raise ValueError(f"the smallest delay must be 0, got {min(self.delays)}")
        if not self.num_codebooks <= self.depth_steps <= 2 * self.num_codebooks:
            raise ValueError(f"depth_codebooks {self.depth_steps}: expected num_codebooks to twice as many")
        return self

    @property
    def num_streams(self) -> int:
        return 1 + 2 * self.num_codebooks

    @property
    def depth_steps(self) -> int:
        """Steps the depth transformer has weights for."""
        return self.num_codebooks if self.depth_codebooks is None else self.depth_codebooks


class VisionConfig(StrictModel):
    """A frozen tower and the projector behind it.

    `tower` is `timm:NAME`, `hf:ID_OR_DIR`, `vit` (this project's own small one) or a directory with a config.json.
    `tower_args`: for timm, arguments of `create_model`; for hf, a transformers vision configuration with `model_type`
    (none: the published one); for vit, its sizes. `mean`/`std` None: the tower's own statistics.
    `feature_layer` None: tokens after the final norm; -1, -2 ...: as that block leaves them, without the norm.
    `keep_prefix_tokens`: class and register tokens stay in front (they have no place in the picture).
    Clip encoders (hf: V-JEPA 2, VideoMAE; vit with `window_layers`) look at the last `window_frames` frames, taken
    `window_fps` times a second (None, for hf: as the encoder was trained). Where each step of time in the window has
    tokens of its own (hf), `window_tokens` makes of them the tokens of the newest frame: those of the newest step, or
    the mean over all steps.
    `pool`: fewer tokens a picture: `mean2x2` of a square grid, or a number of learned weighted means of all tokens.
    `projector_norm` comes after the projection, which `project` false leaves out (widths are equal then).
    """

    tower: str
    image_size_px: int = Field(gt=0)
    tower_dim: int = Field(gt=0)
    tower_args: dict[str, Any] = Field(default_factory=dict)
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    feature_layer: int | None = Field(None, lt=0)
    keep_prefix_tokens: bool = False
    window_frames: int | None = Field(None, gt=0)
    window_fps: float | None = Field(None, gt=0)
    window_tokens: Literal["newest", "mean"] = "newest"
    pool: Literal["mean2x2"] | Annotated[int, Field(gt=0)] | None = None
    project: bool = True
    projector_hidden: int | None = None
    projector_norm: NormKind | None = "rms"
    projector_norm_eps: float = 1e-5

    @property
    def feature_dim(self) -> int:
        """Width of what the projector reads."""
        return 2 * self.tower_dim if self.tower_args.get("window_layers") else self.tower_dim

    @model_validator(mode="after")
    def _pool_fits(self):
        if self.pool == "mean2x2" and self.keep_prefix_tokens:
            raise ValueError("pool mean2x2 with keep_prefix_tokens: class tokens have no place in the picture")
        return self


class MimiConfig(StrictModel):
    """Kyutai's Mimi: causal SEANet, transformers, split residual vector quantiser at 12.5 Hz.

    `num_codebooks` of the `total_codebooks` in its files are used. `ratios` are in the decoder's order.
    """

    kind: Literal["mimi"] = "mimi"
    sample_rate_hz: int = SAMPLE_RATE_HZ
    num_codebooks: int = Field(8, ge=2)
    total_codebooks: int = 32
    codebook_size: int = 2048
    codebook_dim: int = 256
    dim: int = 512
    num_filters: int = 64
    ratios: tuple[int, ...] = (8, 6, 5, 4)
    kernel: int = 7
    residual_kernel: int = 3
    last_kernel: int = 3
    compress: int = 2
    num_residual_layers: int = 1
    dilation_base: int = 2
    transformer: TransformerConfig = TransformerConfig(
        dim=512, num_heads=8, num_layers=8, ffn_dim=2048, context=250, norm="layer", norm_eps=1e-5,
        gated_ffn=False, layer_scale=0.01,
    )  # fmt: skip

    @model_validator(mode="after")
    def _sizes_match(self):
        if self.num_codebooks > self.total_codebooks:
            raise ValueError(f"num_codebooks {self.num_codebooks} is more than total_codebooks {self.total_codebooks}")
        if self.dim != self.transformer.dim:
            raise ValueError(f"dim {self.dim} and transformer.dim {self.transformer.dim} must be equal")
        return self


class SpectralConfig(StrictModel):
    """A small codec on log-mel frames with an inverse-STFT head; same 12.5 Hz contract as Mimi.

    `hop_samples` must divide the 1920 samples of a code frame. `dim` and `low_blocks` are those of the stack at
    12.5 Hz, `hidden` and `high_blocks` of the stacks at the hop's rate. `num_phones` > 0 adds the head that teaches
    the first `num_semantic` codebooks phones (training only).
    """

    kind: Literal["spectral"] = "spectral"
    sample_rate_hz: int = SAMPLE_RATE_HZ
    num_codebooks: int = Field(6, ge=2)
    codebook_size: int = 512
    codebook_dim: int = 64
    hop_samples: int = 240
    window_samples: int = 960
    num_mels: int = 80
    dim: int = 256
    hidden: int = 160
    low_blocks: int = 4
    high_blocks: int = 3
    kernel: int = 5
    num_phones: int = 0
    num_semantic: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _frames_divide(self):
        if self.num_semantic >= self.num_codebooks:
            raise ValueError(f"num_semantic {self.num_semantic} must be below num_codebooks {self.num_codebooks}")
        if FRAME_SAMPLES % self.hop_samples or self.window_samples % self.hop_samples:
            raise ValueError(f"hop_samples must divide {FRAME_SAMPLES} and window_samples")
        return self


CodecConfig = Annotated[Union[MimiConfig, SpectralConfig], Field(discriminator="kind")]  # noqa: UP007


class GenerationConfig(StrictModel):
    """Sampling of the frame generator; temperature 0 is greedy, top_k 0 keeps all.

    `pad_mult` is added to the text stream's logit of PAD, before anything else (the name is that of Kyutai's Rust
    server): below 0 the model speaks up more readily, above 0 it rather waits.
    """

    text_temperature: float = Field(0.7, ge=0)
    text_top_k: int = Field(25, ge=0)
    audio_temperature: float = Field(0.8, ge=0)
    audio_top_k: int = Field(250, ge=0)
    pad_mult: float = Field(0.0, ge=-100, le=100)

    def greedy(self) -> "GenerationConfig":
        """The same, but always the likeliest text and codes."""
        return self.model_copy(update={"text_temperature": 0.0, "audio_temperature": 0.0})


class ModelConfig(StrictModel):
    """What a checkpoint directory's config.json holds."""

    schema_version: Literal[1] = 1
    name: str = "mmspeech"
    lm: LMConfig
    codec: CodecConfig
    vision: VisionConfig | None = None
    generation: GenerationConfig = GenerationConfig()


ConfigT = TypeVar("ConfigT", bound=BaseModel)


def load_config(cls: type[ConfigT], path: str | Path, overrides: list[str] | None = None) -> ConfigT:
    """Read a YAML or JSON file into `cls`, after dotted `key.sub=value` overrides (values are YAML).

    Raises ConfigError naming the file and every problem in it and in the overrides.
    """
    path, problems = Path(path), Problems()
    data = read_mapping(path)
    _override_all(data, overrides or [], problems)
    with problems.noted():
        config = parse_config(cls, data, source=str(path))
    problems.tell()
    return config


class _DuplicateKeyError(ValueError):
    """A key that stands twice in one mapping; readers usually keep the last one without a word."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _DuplicateKeyError(f"key {max(keys, key=keys.count)!r} stands there twice")
    return mapping


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML as safe_load reads it, but a key given twice is an error."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise _DuplicateKeyError(f"key {twice[0]!r} stands there twice, {node.start_mark}".replace("\n", " "))
        return super().construct_mapping(node, deep=deep)


def read_mapping(path: str | Path) -> dict[str, Any]:
    """The top-level mapping of a YAML or JSON file."""
    path = Path(path)
    if not path.is_file():
        siblings = sorted(p.name for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        hint = f"; files there: {', '.join(siblings)}" if siblings else ""
        raise ConfigError(f"{path}: no such configuration file{hint}")
    try:
        text = path.read_text(encoding="utf-8")
        as_json = path.suffix == ".json"
        data = json.loads(text, object_pairs_hook=_unique) if as_json else yaml.load(text, Loader=_UniqueKeyLoader)
    except (UnicodeDecodeError, json.JSONDecodeError, yaml.YAMLError, _DuplicateKeyError) as error:
        kind = path.suffix.lstrip(".") or "YAML"
        raise ConfigError(f"{path}: not valid {kind}: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a mapping of settings at the top, got {type(data).__name__}")
    return data


def apply_overrides(data: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """A copy of `data` with each `a.b=value` set, groups created. All that is wrong is told at once."""
    data, problems = json.loads(json.dumps(data)), Problems()
    _override_all(data, overrides, problems)
    problems.tell()
    return data


def _override_all(data: dict[str, Any], overrides: list[str], problems: Problems) -> None:
    for item in overrides:
        with problems.noted(f"override {item!r}: "):
            _override(data, item)


def _override(data: dict[str, Any], item: str) -> None:
    key, separator, value = item.partition("=")
    if not separator or not key:
        raise ConfigError("expected key.sub=value")
    *parents, leaf = key.split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            raise ConfigError(f"{parent!r} is a value, not a group of settings")
    try:
        data[leaf] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError("the value is not valid YAML; quote it") from error


def parse_config(cls: type[ConfigT], data: dict[str, Any], *, source: str) -> ConfigT:
    """Validate `data`; a ConfigError lists every problem with its dotted key."""
    try:
        return cls.model_validate(data)
    except ValidationError as error:
        lines = [describe(cls, problem) for problem in error.errors()]
        raise ConfigError(f"{source}: " + "; ".join(lines)) from error
