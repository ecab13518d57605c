"""How much memory a training step holds, found by running the real model on tensors without storage.

A fake tensor has a shape, a dtype and a storage size but no bytes: a 7B model runs its forward and backward pass on a
laptop in seconds, and what is alive at each moment is known.
"""

import weakref
from collections.abc import Collection
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmspeech.config import ModelConfig
from mmspeech.flops import Work
from mmspeech.lm.loss import in_pieces, score_of
from mmspeech.lm.model import DuplexLM, VisionSpeechModel
from mmspeech.lm.plan import add_planner


@dataclass(frozen=True)
class Footprint:
    """Bytes on the device, beside weights, gradients and optimiser.

    Kept from the forward pass for the backward pass: by the projector, by the temporal transformer with its
    cross-attention, by the text logits and their loss, by the depth transformer with its logits. `weight_copies`: of
    weights in the type of the products, kept while a step runs. `workspace`: what the backward pass needs on top.
    """

    projector: int
    temporal: int
    text_logits: int
    depth: int
    weight_copies: int
    workspace: int

    @property
    def activations(self) -> int:
        return self.projector + self.temporal + self.text_logits + self.depth

    @property
    def total(self) -> int:
        return self.activations + self.weight_copies + self.workspace


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors made inside that are alive: `now`, and `peak`. Casts of the tensors in `weights` are
    counted apart, in `copies`."""

    def __init__(self, weights: Collection[Tensor]):
        super().__init__()
        self.now = self.peak = self.copies = 0
        self._known = {id(storage): storage for storage in (weight.untyped_storage() for weight in weights)}
        self._weights = set(self._known)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        copied = func is torch.ops.aten._to_copy.default and id(args[0].untyped_storage()) in self._weights
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._watch(tensor.untyped_storage(), copied=copied)
        return out

    def _watch(self, storage: torch.UntypedStorage, *, copied: bool) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._known:
            return
        self._known[key] = weakref.ref(storage, lambda _: self._forget(key, size, copied))
        self.copies += size if copied else 0
        self.now += 0 if copied else size
        self.peak = max(self.peak, self.now)

    def _forget(self, key: int, size: int, copied: bool) -> None:
        del self._known[key]
        self.copies -= size if copied else 0
        self.now -= 0 if copied else size


@dataclass(frozen=True)
class Numbers:
    """In what type frozen and trained weights are held, and whether products run in bf16 whatever these are."""

    frozen: torch.dtype
    trained: torch.dtype
    autocast: bool


def measure_step(
    config: ModelConfig,
    *,
    trainable: Collection[str],
    work: Work,
    numbers: Numbers,
    recompute: bool,
    wrapped: Collection[str] = (),
    pieces: int = 1,
    depth_codebooks: int | None = None,
    plan_tokens: int = 0,
) -> Footprint:
    """The footprint of a step on `work`; `recompute`: layers of the temporal transformer are computed again in the
    backward pass. `wrapped`: matrices that learn through LoRA, which keeps their inputs as if they learnt themselves
    (the pairs' own products are small beside those, and left out). `pieces` and `depth_codebooks`: see
    mmspeech.lm.loss.LossWeights; `plan_tokens`: mmspeech.lm.plan, as if every frame came before so many."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        model = VisionSpeechModel(config)
        trainable = {*trainable, *add_planner(model, num_tokens=plan_tokens)}
        for prefix, module in model.named_modules():
            for name, parameter in module.named_parameters(prefix, recurse=False):
                held = parameter.detach().to(numbers.trained if name in trainable else numbers.frozen)
                held = nn.Parameter(held, requires_grad=name in trainable or name in wrapped)
                held.grad = torch.zeros_like(held) if held.requires_grad else None
                setattr(module, name.rpartition(".")[2], held)
        model.lm.temporal.transformer.recompute = recompute
        codebooks = config.lm.num_codebooks if depth_codebooks is None else depth_codebooks
        return _run(model, work, autocast=numbers.autocast, pieces=pieces, codebooks=codebooks)


def _run(model: VisionSpeechModel, work: Work, *, autocast: bool, pieces: int, codebooks: int) -> Footprint:
    lm, kept = model.lm, {}
    codes = torch.zeros(work.rows, lm.layout.num_streams, work.steps, dtype=torch.long)
    frames = max(1, round(work.depth_frames))
    if model.projector is not None:
        model.projector.pool = None  # the work counts the tokens that come out of it
    features = torch.zeros(work.rows, max(1, work.visual_tokens), 1 if model.projector is None else _width(model))
    held = [*model.parameters(), *model.buffers()]
    held += [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    with LiveBytes([*held, codes, features]) as live:
        with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
            visual = None
            if model.projector is not None:
                visual = replace(model.see(features, torch.zeros(work.rows, dtype=torch.long)), at_once=True)
            kept["projector"] = live.now
            hidden = lm.temporal(codes, visual=visual, logits=False).hidden.flatten(0, 1)
            kept["temporal"] = live.now
            loss = _text_loss(lm, hidden, pieces)
            if model.planner is not None:  # it reads a layer that is as wide, and is kept anyway
                loss = loss + _plan_loss(model, hidden, pieces)
            kept["text_logits"] = live.now
            loss = loss + _depth_loss(lm, hidden[torch.zeros(frames, dtype=torch.long)], pieces, codebooks)
        copies = live.copies
        del hidden  # the loss keeps what it needs of it
        kept["depth"] = before = live.now
        if loss.requires_grad:
            loss.backward()
        ordered = [0, *kept.values()]
        parts = {name: ordered[i + 1] - ordered[i] for i, name in enumerate(kept)}
        return Footprint(**parts, weight_copies=copies, workspace=max(0, live.peak - before))


def _text_loss(lm: DuplexLM, hidden: Tensor, pieces: int) -> Tensor:
    """Of all frames, each picked as the loss picks those that count."""
    every = torch.zeros(hidden.shape[0], dtype=torch.long)
    entropy, _ = in_pieces(lambda h, ids: score_of(lm.temporal.text_linear(h), ids), pieces, hidden[every], every)
    return entropy.sum()


def _plan_loss(model: VisionSpeechModel, hidden: Tensor, pieces: int) -> Tensor:
    ids = torch.zeros(hidden.shape[0], model.planner.num_tokens, dtype=torch.long)
    head = model.lm.temporal.text_linear
    entropy, _ = in_pieces(lambda h, ids: score_of(head(model.planner(h)), ids), pieces, hidden, ids)
    return entropy.sum()


def _depth_loss(lm: DuplexLM, hidden: Tensor, pieces: int, codebooks: int) -> Tensor:
    ids = torch.zeros(hidden.shape[0], codebooks, dtype=torch.long)
    entropy, _ = in_pieces(lambda h, text, ids: score_of(lm.depth(h, text, ids), ids), pieces, hidden, ids[:, 0], ids)
    return entropy.sum()


def _width(model: VisionSpeechModel) -> int:
    first = model.projector.hidden or model.projector.proj
    return first.in_features if isinstance(first, nn.Linear) else model.config.vision.feature_dim
