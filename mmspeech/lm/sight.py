"""What whole calls see, frame by frame laid side by side, each with the time it comes and goes."""

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmspeech.types import VisualContext
from mmspeech.vision.memory import NEVER, Memory

if TYPE_CHECKING:
    from mmspeech.lm.model import VisionSpeechModel


def see_calls(
    model: "VisionSpeechModel",
    features: Tensor,
    rows: Tensor,
    onset_frames: Tensor,
    *,
    batch_size: int,
    mask: Tensor | None = None,
) -> VisualContext:
    """Pictures of B calls -> what each call sees: the last ones of the model's memory, and summaries of earlier ones.

    features [P, S, Dv] of the tower with mask [P, S] bool or None; rows [P] long: whose picture it is; onset_frames [P]
    long: from when it is seen. Of pictures that come at once the later one in P is the newer. Tokens of the result lie
    in the order their frames come, [B, F * S]; those of summaries behind them.
    """
    order = torch.argsort(onset_frames, stable=True)
    order = order[torch.argsort(rows[order], stable=True)]
    rows, onset_frames = rows[order], onset_frames[order]
    tokens, mask = model.project(features[order], None if mask is None else mask[order])
    # The n-th picture of its row goes to place n.
    same = rows[:, None] == rows
    place = (same & torch.ones_like(same).tril(-1)).sum(dim=1)
    count = int(place.max()) + 1 if len(rows) else 1
    laid = tokens.new_zeros(batch_size, count, *tokens.shape[1:])
    laid[rows, place] = tokens
    onset = torch.full((batch_size, count), NEVER, device=features.device)
    onset[rows, place] = onset_frames
    there = (onset != NEVER)[..., None].repeat(1, 1, tokens.shape[1])
    if mask is not None:
        there[rows, place] = mask
    keys, values = model.lm.temporal.fusion.keys_values(laid.flatten(1, 2))
    memory = Memory.of(model.config.lm.fusion)
    seen = VisualContext(keys, values, _per_token(onset, there), at_once=count == 1 and mask is None)
    if count <= memory.frames:
        return seen
    seen.until_frames = _per_token(memory.until(onset), there)
    if memory.slots and count > memory.group:
        return _with_summaries(seen, onset, there, memory)
    seen.frame_tokens = tokens.shape[1]
    return seen


def _with_summaries(seen: VisualContext, onset: Tensor, there: Tensor, memory: Memory) -> VisualContext:
    """Behind the frames, the mean of each whole group; onset [B, F], there [B, F, S]."""
    shown, until = memory.summaries(onset)
    groups = (slice(None), slice(0, shown.shape[1] * memory.group))
    members = there[groups].unflatten(1, (-1, memory.group))
    counts = members.sum(dim=2)

    def mean(tokens: Tensor) -> Tensor:
        parts = tokens.unflatten(1, there.shape[1:])[groups].unflatten(1, (-1, memory.group))
        total = parts.masked_fill(~members[..., None], 0).sum(dim=2)
        return torch.cat([tokens, (total / counts.clamp(min=1)[..., None]).to(tokens.dtype).flatten(1, 2)], dim=1)

    known = counts > 0
    stamp = onset[:, memory.group - 1 :: memory.group]
    return replace(
        seen,
        keys=tuple(map(mean, seen.keys)),
        values=tuple(map(mean, seen.values)),
        onset_frames=torch.cat([seen.onset_frames, _per_token(shown, known)], dim=1),
        until_frames=torch.cat([seen.until_frames, _per_token(until, known)], dim=1),
        stamp_frames=torch.cat([seen.onset_frames, _per_token(stamp, known)], dim=1),
    )


def _per_token(times: Tensor, there: Tensor) -> Tensor:
    """times [B, F] of frames -> [B, F * S] of their tokens; NEVER where `there` [B, F, S] is false."""
    return torch.where(there, times[..., None], NEVER).flatten(1)
