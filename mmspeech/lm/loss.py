"""The training loss: next text token and next own codes, each a weighted mean in float32."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mmspeech.config import LMConfig
from mmspeech.lm.model import DuplexLM, VisionSpeechModel
from mmspeech.lm.plan import coming_tokens, planned_layer
from mmspeech.lm.sight import see_calls
from mmspeech.lm.temporal import LMOut
from mmspeech.types import Batch, VisualContext
from mmspeech.vision.window import windowed

PIECE_LOGITS = 2**26  # a quarter of a GiB in float32, and its gradient as much again


@dataclass(frozen=True)
class LossWeights:
    """text_pad: weight of PAD and EPAD targets; first_codebook: of the semantic codebook against each other one.

    audio: of the audio loss in the sum. depth_frames_share: share of the frames with audio that the depth transformer
    trains on in a step, drawn at random; frames whose audio_weight is above 1 are always taken. depth_codebooks: it
    trains on the first so many codebooks (None: on all).

    pieces: what comes after the temporal transformer (text head, depth transformer and their cross-entropies) runs in
    so many pieces of the frames, again in the backward pass, so that the logits of one piece live at a time. The
    loss stays the same. A fixed number, as processes that share parameters meet in every piece.

    plan: of the loss on the coming words in the sum, where the model has a planner (see mmspeech.lm.plan). Only words
    count that are spoken: what stands in calls without sound need not be one utterance.
    """

    text_pad: float = 0.5
    first_codebook: float = 1.0
    audio: float = 1.0
    depth_frames_share: float = 1.0
    depth_codebooks: int | None = None
    pieces: int = 1
    plan: float = 0.0


def enough_pieces(
    lm: LMConfig, *, frames: int, depth_frames_share: float, depth_codebooks: int | None, plan_tokens: int = 0
) -> int:
    """`LossWeights.pieces` that keep the logits of a piece below `PIECE_LOGITS` in batches of `frames`."""
    codebooks = lm.num_codebooks if depth_codebooks is None else depth_codebooks
    text, audio = lm.text_card * max(1, plan_tokens), codebooks * lm.audio_card * depth_frames_share
    return math.ceil(frames * max(text, audio) / PIECE_LOGITS)


@dataclass
class LossOut:
    """loss = text_loss + audio weight * audio_loss (+ plan weight * plan_loss), scalars. metrics: detached scalars.

    Accuracies: `word_acc` over text targets that are words, `pad_acc` over PAD and EPAD, `semantic_acc` over the first
    codebook, `acoustic_acc` over the others (NaN where there is none). Over frames that see something: `gate`, its
    mean; `gate_open`, the share of gates beyond 0.5, over frames and layers; `gate_layer_NN`, the mean of each gated
    layer. `depth_frames`: how many frames the depth transformer saw. `plan_loss` and `plan_acc`: of the coming words.
    """

    loss: Tensor
    text_loss: Tensor
    audio_loss: Tensor
    metrics: dict[str, Tensor]

    def numbers(self) -> dict[str, float]:
        """All of it as floats; what a batch had none of is left out."""
        parts = {"loss": self.loss, "text_loss": self.text_loss, "audio_loss": self.audio_loss, **self.metrics}
        # One transfer: each of its own would wait for the device.
        device = self.loss.device
        values = torch.stack([value.detach().to(device, torch.float32) for value in parts.values()]).tolist()
        return {name: value for name, value in zip(parts, values, strict=True) if math.isfinite(value)}


def duplex_loss(
    model: VisionSpeechModel,
    batch: Batch,
    *,
    weights: LossWeights = LossWeights(),
    generator: torch.Generator | None = None,
) -> LossOut:
    """Teacher-forced loss of a batch (undelayed frames); `generator` (on the CPU) draws the depth frames."""
    visual = None if model.projector is None else see_batch(model, batch)
    lm = model.lm
    columns, held = lm.layout.delay(batch.codes)
    middle = _Middle(planned_layer(len(lm.temporal.transformer.layers)))
    out = lm(columns[..., :-1], visual=visual, logits=False, watch=None if model.planner is None else middle)
    target, held = columns[..., 1:], held[:, 1:]
    text_loss, metrics = _text_loss(lm, out.hidden, target[:, 0], batch.text_weight, weights)
    audio_loss, audio_metrics = _audio_loss(lm, out.hidden, target, held, batch.audio_weight, weights, generator)
    metrics |= audio_metrics
    metrics |= _gate_metrics(out, lm.temporal.gated_layers)
    loss = text_loss + weights.audio * audio_loss
    if model.planner is not None:
        spoken = batch.text_weight * (batch.audio_weight > 0)
        plan_loss, plan_metrics = _plan_loss(model, middle.held, target[:, 0], spoken, weights)
        loss, metrics = loss + weights.plan * plan_loss, metrics | plan_metrics
    return LossOut(loss, text_loss, audio_loss, metrics)


@dataclass
class _Middle:
    """Holds what one layer gives; see Transformer.forward's `watch`."""

    layer: int
    held: Tensor | None = None

    def __call__(self, layer: int, x: Tensor) -> None:
        if layer == self.layer:
            self.held = x


def _gate_metrics(out: LMOut, layers: tuple[int, ...]) -> dict[str, Tensor]:
    """Gate statistics over the frames that see something; no number of them waits for the device."""
    seeing = (out.layer_gates != 0).any(dim=-1).sum()
    share = (out.layer_gates.abs() > 0.5).float().mean(dim=-1).sum() if layers else seeing * math.nan
    means = _ratio(out.layer_gates.sum(dim=(0, 1)), seeing).unbind()
    named = {f"gate_layer_{layer:02d}": mean for layer, mean in zip(layers, means, strict=True)}
    return {"gate": _ratio(out.gate.sum(), seeing), "gate_open": _ratio(share, seeing), **named}


def see_batch(model: VisionSpeechModel, batch: Batch) -> VisualContext:
    """What each row of a batch sees: its pictures side by side in the order they come; rows without one see nothing.

    A batch without any picture gets one token that no frame ever sees, so that every batch runs through the same
    modules: processes that share their gradients or parameters wait for each other in each of them.
    """
    if batch.pixels is None:
        nothing = torch.zeros(batch.codes.shape[0], 1, model.config.vision.feature_dim, device=batch.codes.device)
        return model.see(nothing, torch.full(nothing.shape[:1], VisualContext.NEVER, device=nothing.device))
    features, mask = batch.features, batch.features_mask
    if features is None:
        if model.tower is None:
            raise ValueError("the batch has pictures but the model has no vision tower: load one, or drop the pictures")
        with torch.no_grad():
            features, mask = model.tower(windowed(batch.pixels, batch.windows))
    rows, onset = batch.picture_rows, batch.onset_frames
    return see_calls(model, features, rows, onset, batch_size=batch.codes.shape[0], mask=mask)


def _text_loss(
    lm: DuplexLM, hidden: Tensor, target: Tensor, frame_weight: Tensor, weights: LossWeights
) -> tuple[Tensor, dict[str, Tensor]]:
    """hidden [B, T, D], target and frame_weight [B, T]; runs the text head on the frames that count."""
    weight, pad = _text_weight(lm, frame_weight, target), _is_pad(lm, target)
    weight = weight * torch.where(pad, weights.text_pad, 1.0)
    counted = weight > 0
    pad, weight = pad[counted], weight[counted]

    def score(hidden: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return score_of(lm.temporal.text_linear(hidden), target)

    entropy, correct = in_pieces(score, weights.pieces, hidden[counted], target[counted])
    metrics = {
        "word_acc": _ratio((correct & ~pad).sum(), (~pad).sum()),
        "pad_acc": _ratio((correct & pad).sum(), pad.sum()),
    }
    return _weighted_mean(entropy, weight), metrics


def _text_weight(lm: DuplexLM, frame_weight: Tensor, target: Tensor) -> Tensor:
    """frame_weight [B, T] of undelayed frames -> of the text targets [B, T]; 0 where there is none."""
    weight = F.pad(frame_weight, (lm.layout.delays[0], 0))[:, : target.shape[1]]
    return weight * ((target >= 0) & (target < lm.config.text_card))


def _is_pad(lm: DuplexLM, target: Tensor) -> Tensor:
    return (target == lm.config.text_pad_id) | (target == lm.config.text_epad_id)


def _plan_loss(
    model: VisionSpeechModel, middle: Tensor, target: Tensor, frame_weight: Tensor, weights: LossWeights
) -> tuple[Tensor, dict[str, Tensor]]:
    """middle [B, T, D], target and frame_weight [B, T]: mean over all words that come soon, of all frames."""
    lm, planner = model.lm, model.planner
    is_word = (_text_weight(lm, frame_weight, target) > 0) & ~_is_pad(lm, target)
    words = coming_tokens(target, is_word, num_tokens=planner.num_tokens)
    counted = words[..., 0] >= 0
    words = words[counted]

    def score(middle: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        return score_of(lm.temporal.text_linear(planner(middle)), words.clamp(min=0))

    entropy, correct = in_pieces(score, weights.pieces, middle[counted], words)
    there = words >= 0
    loss = _weighted_mean(entropy, there.float())
    return loss, {"plan_loss": loss.detach(), "plan_acc": _ratio((correct & there).sum(), there.sum())}


def _audio_loss(
    lm: DuplexLM,
    hidden: Tensor,
    target: Tensor,
    held: Tensor,
    frame_weight: Tensor,
    weights: LossWeights,
    generator: torch.Generator | None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """hidden [B, T, D], target [B, R, T], held [R, T], frame_weight [B, T]; runs the depth transformer."""
    count = lm.layout.num_codebooks if weights.depth_codebooks is None else weights.depth_codebooks
    own = slice(lm.layout.own.start, lm.layout.own.start + count)
    text, codes = target[:, 0], target[:, own].transpose(1, 2)
    per_code = frame_weight[:, None].expand(-1, codes.shape[2], -1)
    weight = lm.layout.shift(per_code, fill=0.0, rows=own)[0][..., 1:].transpose(1, 2)
    weight = weight * (held[own].t() & (codes >= 0))
    chosen = _choose_frames(weight.amax(dim=2), weights.depth_frames_share, generator)
    codes, weight = codes[chosen], weight[chosen]
    present = weight > 0

    def score(hidden: Tensor, text: Tensor, codes: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return score_of(lm.depth(hidden, text, codes), target)

    pieces = hidden[chosen], text[chosen], codes, codes * present
    entropy, correct = in_pieces(score, weights.pieces, *pieces)
    codebook_weight = torch.ones(codes.shape[1], device=weight.device)
    codebook_weight[0] = weights.first_codebook
    correct = correct & present
    metrics = {
        "semantic_acc": _ratio(correct[:, 0].sum(), present[:, 0].sum()),
        "acoustic_acc": _ratio(correct[:, 1:].sum(), present[:, 1:].sum()),
        "depth_frames": torch.tensor(float(codes.shape[0]), device=weight.device),
    }
    return _weighted_mean(entropy, weight * codebook_weight), metrics


def score_of(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """logits [..., V], target [...] -> cross-entropy in float32 and whether the likeliest id is the target, [...]."""
    entropy = F.cross_entropy(logits.float().flatten(0, -2), target.flatten(), reduction="none")
    return entropy.view(target.shape), logits.detach().argmax(dim=-1) == target


def in_pieces(score: Callable, count: int, *inputs: Tensor) -> tuple[Tensor, Tensor]:
    """`score` of inputs [M, ...], cut along M into `count` pieces that may be empty; each result is [M, ...] again."""
    if count == 1:
        return score(*inputs)
    # ZeRO-3 gives weights back between the two passes, which the check would take for a difference.
    results = [
        checkpoint(score, *piece, use_reentrant=False, determinism_check="none")
        for piece in zip(*(tensor.tensor_split(count) for tensor in inputs), strict=True)
    ]
    entropy, correct = (torch.cat(parts) for parts in zip(*results, strict=True))
    return entropy, correct


def _choose_frames(weight: Tensor, share: float, generator: torch.Generator | None) -> Tensor:
    """weight [B, T] -> bool [B, T]: the frames of weight > 1, and a random share of the others above 0."""
    present = weight > 0
    if share >= 1:
        return present
    drawn = torch.rand(weight.shape, generator=generator).to(weight.device) < share
    return present & (drawn | (weight > 1))


def _weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """sum(weight * values) / sum(weight); 0, still connected to the graph, where all weights are 0."""
    total = weight.sum()
    return (values * weight).sum() / torch.where(total > 0, total, 1.0)


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole, NaN for an empty whole."""
    return part.detach().float() / whole.float()
