"""How likely a model finds each of several texts: its text stream alone, one token a frame, nothing heard or said.

So language understanding is asked of the inner monologue, as Kyutai asked it of Moshi's.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from eval.task import Prompt
from mmspeech.config import ConfigError
from mmspeech.frames import seconds_to_frames
from mmspeech.serve.eyes import check_sight, look
from mmspeech.types import VisualContext

if TYPE_CHECKING:
    from mmspeech.checkpoint import Bundle


@torch.no_grad()
def option_scores(bundle: "Bundle", prompt: Prompt) -> list[float]:
    """The log-probability (natural, summed over its tokens) of each of the prompt's options after its text, with its
    last picture in view. ConfigError for an option that has no token in this model's vocabulary."""
    context = bundle.tokenizer.encode(prompt.text)
    endings = [bundle.tokenizer.encode(option) for option in prompt.options]
    for option, ids in zip(prompt.options, endings, strict=True):
        if not ids:
            raise ConfigError(f"the option {option!r} has no token of this model's tokenizer")
    rows = _padded([context + ids for ids in endings])
    logits = _text_logits(bundle, rows, prompt)
    scores = logits.float().log_softmax(dim=-1).gather(2, rows.to(logits.device)[:, :, None])[:, :, 0]
    first = len(context)
    return [float(row[first : first + len(ids)].sum()) for row, ids in zip(scores, endings, strict=True)]


def _padded(texts: list[list[int]]) -> Tensor:
    longest = max(map(len, texts))
    return torch.tensor([text + [0] * (longest - len(text)) for text in texts])


def _text_logits(bundle: "Bundle", rows: Tensor, prompt: Prompt) -> Tensor:
    """Text ids [B, T] -> logits [B, T, V] of each of them given those before; all other streams are empty."""
    layout, device = bundle.model.lm.layout, next(bundle.model.lm.parameters()).device
    frames = torch.full((len(rows), layout.num_streams, rows.shape[1]), -1)
    frames[:, 0] = rows
    columns, _ = layout.delay(frames.to(device))
    return bundle.model.lm(columns[..., :-1], visual=_visual(bundle, prompt, len(rows))).text_logits


def _visual(bundle: "Bundle", prompt: Prompt, count: int) -> VisualContext | None:
    if not prompt.pictures:
        return None
    check_sight(bundle)
    state, seen = bundle.model.tower.init_state(1), None
    for at_sec, picture in prompt.pictures:
        seen = look(bundle, [picture], rows=[0], steps=[seconds_to_frames(at_sec)], state=state)
    keys, values = (tuple(tensor.expand(count, -1, -1) for tensor in pair) for pair in (seen.keys, seen.values))
    return VisualContext(keys, values, seen.onset_frames.expand(count, -1))
