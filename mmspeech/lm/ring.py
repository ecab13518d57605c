"""What calls see while they go on: the last frames of each row, and summaries of those before them, in fixed memory.

Offline the same is laid side by side for a whole call; `mmspeech.vision.memory` says for both what is seen when.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmspeech.nn.streaming import State
from mmspeech.types import VisualContext
from mmspeech.vision.memory import Memory

NEVER = VisualContext.NEVER


@dataclass
class Pair(State):
    """Keys and values of one set of projections, [B, P * S, D] for P places, and the sums [B, S, D] float32 of the
    group of frames that is leaving (of no size where there are no summaries)."""

    keys: Tensor
    values: Tensor
    key_sums: Tensor
    value_sums: Tensor


@dataclass
class RingState(State):
    """onset_frames [B, P * S] long: from when a token is seen (NEVER: empty); stamp_frames: what its age counts from.

    counts [B] long: frames that came; members [B, S] long: how many frames of the leaving group had this token.
    """

    pairs: list[Pair]
    onset_frames: Tensor = field(metadata={"reset_value": NEVER})
    stamp_frames: Tensor
    counts: Tensor
    members: Tensor


class VisualRing:
    """The memory of B calls. Its tensors are made once, for `tokens` [S] a frame; `context` looks at them."""

    def __init__(self, like: VisualContext, *, batch_size: int, memory: Memory):
        """`like`: any one frame of a model's `see`, for widths, dtype and device."""
        self.memory, self.tokens = memory, like.onset_frames.shape[1]
        device = like.onset_frames.device
        size = (batch_size, memory.places * self.tokens)
        summed = (batch_size, self.tokens if memory.slots else 0)

        def pair_like(keys: Tensor, values: Tensor) -> Pair:
            rings = (torch.zeros(*size, x.shape[2], device=device, dtype=x.dtype) for x in (keys, values))
            return Pair(*rings, *(torch.zeros(*summed, x.shape[2], device=device) for x in (keys, values)))

        pairs = [pair_like(keys, values) for keys, values in zip(like.keys, like.values, strict=True)]
        onset, stamp, members = (torch.zeros(shape, dtype=torch.long, device=device) for shape in (size, size, summed))
        counts = torch.zeros(batch_size, dtype=torch.long, device=device)
        self.state = RingState(pairs, onset, stamp, counts, members)
        self.state.reset()
        self._came = [0] * batch_size  # counts, known without waiting for the device
        self._whole, self._first = self._looking_at(size[1]), self._looking_at(self.tokens)

    def _looking_at(self, width: int) -> VisualContext:
        """What lies in the first `width` tokens of all tensors."""
        state = self.state
        keys, values = (tuple(getattr(pair, name)[:, :width] for pair in state.pairs) for name in ("keys", "values"))
        return VisualContext(keys, values, state.onset_frames[:, :width], stamp_frames=state.stamp_frames[:, :width])

    @property
    def context(self) -> VisualContext:
        """What is seen: the whole ring, or, as long as no row was shown more than one picture, its first place, which
        is all that a model without memory has. Both are always the same objects on the same tensors."""
        return self._first if max(self._came) <= 1 else self._whole

    def forget(self, rows: Tensor | None = None) -> None:
        """See nothing any more: all rows, or those where `rows` [B] bool is true."""
        self.state.reset(rows)
        for row in range(len(self._came)) if rows is None else rows.nonzero()[:, 0].tolist():
            self._came[row] = 0

    @torch.no_grad()
    def add(self, frame: VisualContext, rows: Sequence[int], positions: Tensor) -> None:
        """A new frame for each of `rows`: keys and values [R, S, D], seen from `positions` [R] long on.

        Tokens whose onset is NEVER are not there. Raises ValueError when frames have more tokens than the first had.
        """
        state, memory = self.state, self.memory
        width = frame.onset_frames.shape[1]
        if width > self.tokens:
            raise ValueError(f"a frame of {width} visual tokens came to a ring made for {self.tokens}")
        at = torch.as_tensor(rows, device=positions.device)
        index = state.counts[at]
        place = memory.place(index)
        if memory.slots:
            self._summarise(at, memory.leaving(index), place, positions)
        for pair, keys, values in zip(state.pairs, frame.keys, frame.values, strict=True):
            self._places(pair.keys)[at, place, :width] = keys.to(pair.keys.dtype)
            self._places(pair.values)[at, place, :width] = values.to(pair.values.dtype)
        there = torch.full((len(rows), self.tokens), NEVER, device=positions.device)
        there[:, :width] = positions[:, None].expand(-1, width).masked_fill(frame.onset_frames == NEVER, NEVER)
        self._places(state.onset_frames)[at, place] = there
        self._places(state.stamp_frames)[at, place] = positions[:, None].expand_as(there)
        state.counts[at] = index + 1
        for row in rows:
            self._came[row] += 1

    def _summarise(self, at: Tensor, leaving: Tensor, place: Tensor, positions: Tensor) -> None:
        """Add the frames that leave to their groups; a group that is complete becomes a summary. No number of this
        waits for the device: what does not apply to a row is written as it was."""
        state, memory = self.state, self.memory
        onset, stamp = self._places(state.onset_frames), self._places(state.stamp_frames)
        leaves = (leaving >= 0)[:, None] & (onset[at, place] != NEVER)
        begins = memory.begins_summary(leaving)[:, None]
        ends = ((leaving >= 0) & memory.ends_summary(leaving))[:, None]
        target = memory.summary_place(leaving.clamp(min=0))
        members = state.members[at].masked_fill(begins, 0) + leaves
        state.members[at] = members
        for pair in state.pairs:
            for tokens, sums in ((pair.keys, pair.key_sums), (pair.values, pair.value_sums)):
                tokens = self._places(tokens)
                own = tokens[at, place].masked_fill(~leaves[..., None], 0)
                total = sums[at].masked_fill(begins[..., None], 0) + own
                sums[at] = total
                mean = (total / members.clamp(min=1)[..., None]).to(tokens.dtype)
                tokens[at, target] = torch.where(ends[..., None], mean, tokens[at, target])
        seen = torch.where(members > 0, positions[:, None], NEVER)
        onset[at, target] = torch.where(ends, seen, onset[at, target])
        stamp[at, target] = torch.where(ends, stamp[at, place], stamp[at, target])

    def _places(self, tensor: Tensor) -> Tensor:
        """[B, P * S, ...] -> [B, P, S, ...], the same memory."""
        return tensor.unflatten(1, (self.memory.places, self.tokens))
