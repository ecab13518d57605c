"""Foresight: a training loss that makes a model know what it is about to say when it begins to say it.

From the middle of the temporal transformer all the coming words are read, not the next token only, as in multi-token
prediction (Gloeckle et al. 2024, arXiv:2404.19737). There, and not at the end, because later frames attend to what
earlier layers made of earlier frames: an answer that was known when it began is still known when the world has moved
on. What reads the words (`TextPlanner`) is for training only.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from mmspeech.lm.model import VisionSpeechModel

PLANNER_PREFIX = "planner."  # of the planner's parameters among the model's
LEAD_FRAMES = 6  # before its first word an answer is known: what is asked about has been seen and heard by then
GAP_FRAMES = 8  # between two words of what is said in one go


class TextPlanner(nn.Module):
    """What a middle layer holds [M, D] -> for each of the next `num_tokens` tokens of words what the model's text head
    reads it from [M, N, D].

    It begins at nothing, so that it does not disturb what it reads before it has learnt to.
    """

    def __init__(self, *, dim: int, num_tokens: int):
        super().__init__()
        self.num_tokens = num_tokens
        self.norm = nn.RMSNorm(dim, eps=1e-6)
        self.ahead = nn.Linear(dim, num_tokens * dim, bias=False)
        nn.init.zeros_(self.ahead.weight)

    def forward(self, middle: Tensor) -> Tensor:
        return self.ahead(self.norm(middle)).unflatten(-1, (self.num_tokens, -1))


def add_planner(model: "VisionSpeechModel", *, num_tokens: int) -> list[str]:
    """Put a fresh planner into the model (0 tokens: none); returns its parameters' names."""
    if not num_tokens:
        return []
    model.planner = TextPlanner(dim=model.config.lm.temporal.dim, num_tokens=num_tokens)
    return [PLANNER_PREFIX + name for name, _ in model.planner.named_parameters()]


def planned_layer(num_layers: int) -> int:
    """Index of the layer whose output is read: a third of the layers comes after it and can use what it holds."""
    return max(0, 2 * num_layers // 3 - 1)


def coming_tokens(text: Tensor, is_word: Tensor, *, num_tokens: int) -> Tensor:
    """text [B, T] long and which of it is of words [B, T] bool -> the tokens of words that are said from each frame on
    [B, T, num_tokens] long, in order; -1 from where there is none in time."""
    num_frames = text.shape[1]
    frames = is_word.int().argsort(dim=1, descending=True, stable=True)  # those of words first, in order
    said_before = is_word.cumsum(dim=1) - is_word.int()
    number = said_before[..., None] + torch.arange(num_tokens, device=text.device)
    frame = frames.gather(1, number.clamp(max=num_frames - 1).flatten(1)).view(number.shape)
    now = torch.arange(num_frames, device=text.device).expand(text.shape)
    waits = frame.diff(dim=2, prepend=now[..., None])
    limits = torch.full((num_tokens,), GAP_FRAMES, device=text.device)
    limits[0] = LEAD_FRAMES
    there = (number < is_word.sum(dim=1)[:, None, None]) & (waits <= limits)
    words = text.gather(1, frame.flatten(1)).view(number.shape)
    return words.masked_fill(there.int().cumprod(dim=2) == 0, -1)
