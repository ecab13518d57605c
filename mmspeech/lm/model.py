"""The duplex language model, and the vision-speech model around it."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from mmspeech.config import ConfigError, FusionConfig, GenerationConfig, LMConfig, ModelConfig, TransformerConfig
from mmspeech.lm.depth import DepthTransformer
from mmspeech.lm.generate import FrameGenerator
from mmspeech.lm.plan import TextPlanner
from mmspeech.lm.temporal import LMOut, TemporalTransformer, build_temporal
from mmspeech.nn.cross_attention import Fusion
from mmspeech.nn.cuda_graph import Record
from mmspeech.nn.transformer import TransformerState, Watch
from mmspeech.tokens.streams import StreamLayout
from mmspeech.types import VisualContext
from mmspeech.vision.projector import build_projector


class DuplexLM(nn.Module):
    """Listens and speaks at once: `temporal` runs over frames, `depth` over the codebooks of one frame."""

    def __init__(self, config: LMConfig):
        super().__init__()
        self.config = config
        self.layout = StreamLayout(config.num_codebooks, config.delays, config.text_card, config.audio_card)
        self.temporal = _build_temporal(config)
        self.depth = _build_depth(config)
        self._most = self.layout.initial_ids("cpu")[:, None]  # the largest ids

    def init_state(self, batch_size: int, *, max_steps: int = 1, device=None, dtype=None) -> TransformerState:
        """State for `forward`, empty, for chunks of up to `max_steps` columns."""
        return self.temporal.transformer.init_state(batch_size, max_steps=max_steps, device=device, dtype=dtype)

    def forward(
        self,
        codes: Tensor,
        *,
        visual: VisualContext | None = None,
        state: TransformerState | None = None,
        logits: bool = True,
        watch: Watch | None = None,
    ) -> LMOut:
        """Columns [B, 1 + 2K, T] (delays applied, see StreamLayout) -> LMOut for the columns that follow, with text
        logits if `logits`. `watch`: see Transformer.forward.

        Ids: -1 (nothing here) up to the card of the stream (the initial token). They are checked where that costs no
        wait for the device: offline, and on CPU; a ValueError names the row.
        """
        if state is None or codes.device.type == "cpu":
            self._check(codes)
        return self.temporal(codes, visual=visual, state=state, logits=logits, watch=watch)

    def depth_logits(self, hidden: Tensor, text: Tensor, codes: Tensor) -> Tensor:
        """hidden [B, T, D], text [B, T] and own codes [B, K, T] of the predicted columns -> logits [B, T, K, card]."""
        return self.depth(hidden, text, codes.transpose(1, 2))

    def _check(self, codes: Tensor) -> None:
        if codes.dim() != 3 or codes.shape[1] != self.layout.num_streams:
            raise ValueError(f"codes are {list(codes.shape)}, expected [B, {self.layout.num_streams}, T]")
        wrong = (codes < -1) | (codes > self._most.to(codes.device))
        if wrong.any():
            row = int(wrong.any(dim=2).any(dim=0).nonzero()[0])
            limit = self.config.audio_card if row else self.config.text_card
            found = int(codes[:, row][wrong[:, row]][0])
            raise ValueError(f"codes row {row} holds id {found}, expected -1 (nothing) to {limit} (initial token)")


class VisionSpeechModel(nn.Module):
    """A duplex LM with eyes: `lm`, `projector` (None without vision) and a frozen `tower` that a loader puts in place.

    The projector and the cross-attention inside the LM are the adapters; without vision there are none. `planner`: put
    in place by a training run that has a loss on the coming words (see mmspeech.lm.plan); no checkpoint's model has it.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        if (config.vision is None) != (config.lm.fusion is None):
            raise ConfigError("vision and lm.fusion belong together: give both, or neither")
        self.config = config
        self.lm = DuplexLM(config.lm)
        self.projector = None
        self.tower: nn.Module | None = None
        self.planner: TextPlanner | None = None
        self.origin: Path | None = None  # the checkpoint directory, where codec and tokenizer lie
        if config.vision is not None:
            width = source_dim(config.lm.fusion, config.lm.temporal)
            self.projector = build_projector(config.vision, dim=width)

    def see(self, features: Tensor, onset_frames: Tensor, mask: Tensor | None = None) -> VisualContext:
        """Tower features [B, S, Dv] of one picture for each row -> keys and values for the LM, seen from frame
        `onset_frames` [B] on. `mmspeech.lm.sight.see_calls` does it for rows with several pictures.

        Tokens where `mask` [B, S] is false are never seen. Raises ValueError for a model without vision.
        """
        tokens, mask = self.project(features, mask)
        keys, values = self.lm.temporal.fusion.keys_values(tokens)
        onset = onset_frames[:, None].expand(tokens.shape[:2])
        if mask is not None:
            onset = onset.masked_fill(~mask, VisualContext.NEVER)
        return VisualContext(keys, values, onset)

    def project(self, features: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Tower features [B, S, Dv] of single pictures -> visual tokens [B, S', D] and which of them are there [B, S']
        (None: all). Raises ValueError for a model without vision."""
        if self.projector is None:
            raise ValueError("this model has no vision; give its configuration `vision` and `lm.fusion`")
        return self.projector(features, mask)

    def generator(
        self,
        batch_size: int,
        *,
        sampling: GenerationConfig | Sequence[GenerationConfig],
        seed: int | Sequence[int] = 0,
        record: Record | None = None,
    ) -> FrameGenerator:
        """Frame by frame generation for `batch_size` calls in lockstep."""
        return FrameGenerator(self.lm, batch_size, sampling, seed, record=record)

    def adapter_names(self) -> list[str]:
        """Names of the parameters that vision adds to a speech LM: projector, cross-attention, gates, norms."""
        prefixes = ("projector.", "lm.temporal.fusion.")
        return [name for name, _ in self.named_parameters() if name.startswith(prefixes)]

    def adapter_parameters(self) -> list[nn.Parameter]:
        """The parameters of `adapter_names`, in the same order."""
        named = dict(self.named_parameters())
        return [named[name] for name in self.adapter_names()]

    @classmethod
    def from_pretrained(
        cls, path_or_id: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> "VisionSpeechModel":
        """The model of a checkpoint directory or hub id; `mmspeech.checkpoint.load_model` also gives its codec."""
        from mmspeech.checkpoint import load_model

        bundle = load_model(path_or_id, device=device, dtype=dtype)
        bundle.model.origin = bundle.path
        return bundle.model

    def save_pretrained(self, path: str | Path) -> Path:
        """Write a complete checkpoint directory: these weights, with the codec, tokenizer and card of their origin.

        Raises ValueError for a model that was not made by `from_pretrained`; use `mmspeech.checkpoint.save_model`.
        """
        from mmspeech.checkpoint import CARD, TOKENIZER, load_codec, save_model

        if self.origin is None:
            raise ValueError("this model has no codec and tokenizer of its own: save it with checkpoint.save_model")
        card = self.origin / CARD
        return save_model(
            path,
            model=self,
            codec=load_codec(self.origin),
            tokenizer_file=self.origin / TOKENIZER,
            config=self.config,
            card=card.read_text(encoding="utf-8") if card.is_file() else "",
        )

    def push_to_hub(self, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
        """Save to the Hugging Face hub under `repo_id`; returns the address of the commit."""
        with tempfile.TemporaryDirectory() as folder:
            path = self.save_pretrained(Path(folder) / "model")
            return push_directory(path, repo_id, private=private, token=token)


def build_adapters(config: ModelConfig) -> dict[str, Tensor]:
    """Fresh adapters for a speech LM, under the names of a VisionSpeechModel's state dict, without building the LM.

    Their last projections are zero: what is seen changes nothing, bit for bit, until they are trained.
    """
    fusion = _build_fusion(config.lm.fusion, config.lm.temporal)
    for projections in fusion.projections:
        nn.init.zeros_(projections.out_proj.weight)
    projector = build_projector(config.vision, dim=source_dim(config.lm.fusion, config.lm.temporal))
    parts = {"lm.temporal.fusion.": fusion, "projector.": projector}
    return {prefix + name: value for prefix, part in parts.items() for name, value in part.state_dict().items()}


def push_directory(path: Path, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
    """Upload the files of a directory to the Hugging Face hub; returns the address of the commit."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    return str(api.upload_folder(repo_id=repo_id, folder_path=path))


def _build_temporal(config: LMConfig) -> TemporalTransformer:
    fusion = None if config.fusion is None else _build_fusion(config.fusion, config.temporal)
    cards = {"text_card": config.text_card, "audio_card": config.audio_card}
    return build_temporal(config.temporal, num_audio_streams=2 * config.num_codebooks, fusion=fusion, **cards)


def _build_fusion(config: FusionConfig, temporal: TransformerConfig) -> Fusion:
    layers = looking_layers(config, temporal)
    return Fusion(
        dim=temporal.dim,
        num_heads=temporal.num_heads,
        layers=layers,
        source_dim=source_dim(config, temporal),
        shared=config.shared,
        gate=config.gate,
        gate_hidden=temporal.dim // 8 if config.gate_hidden is None else config.gate_hidden,
        gate_shift=config.gate_shift,
        shared_gate=config.shared_gate,
        age_buckets=config.age_buckets,
        norm=temporal.norm,
        norm_eps=temporal.norm_eps,
    )


def _build_depth(config: LMConfig) -> DepthTransformer:
    options = config.depth
    for wrong, text in (
        (options.context < config.depth_steps, f"context {options.context} < {config.depth_steps} codebooks"),
        (options.max_period is not None, "max_period must be null: steps have their own weights"),
        (not options.gated_ffn, "gated_ffn must be true"),
        (options.layer_scale is not None, "layer_scale must be null"),
    ):
        if wrong:
            raise ConfigError(f"lm.depth: {text}")
    return DepthTransformer(
        text_card=config.text_card,
        audio_card=config.audio_card,
        num_codebooks=config.depth_steps,
        source_dim=config.temporal.dim,
        dim=options.dim,
        num_heads=options.num_heads,
        num_layers=options.num_layers,
        ffn_dim=options.ffn_dim,
        norm=options.norm,
        norm_eps=options.norm_eps,
    )


def looking_layers(config: FusionConfig, temporal: TransformerConfig) -> tuple[int, ...]:
    """Indices of the layers with cross-attention, in order."""
    layers = tuple(range(temporal.num_layers)) if config.layers is None else tuple(sorted(set(config.layers)))
    if not layers or layers[0] < 0 or layers[-1] >= temporal.num_layers:
        raise ConfigError(f"lm.fusion.layers {list(layers)}: expected indices from 0 to {temporal.num_layers - 1}")
    return layers


def source_dim(config: FusionConfig, temporal: TransformerConfig) -> int:
    """Width of the visual tokens that cross-attention reads."""
    return temporal.dim if config.source_dim is None else config.source_dim
