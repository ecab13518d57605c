"""How likely a model finds each of several texts: its text stream alone, one token a frame, nothing heard or said.

So language understanding is asked of the inner monologue, as Kyutai asked it of Moshi's.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from eval.task import Prompt
from mmspeech.config import ConfigError
from mmspeech.frames import seconds_to_frames
from mmspeech.lm.sight import see_calls
from mmspeech.serve.eyes import check_sight
from mmspeech.types import VisualContext
from mmspeech.vision.image import to_pixels

if TYPE_CHECKING:
    from mmspeech.checkpoint import Bundle


def option_scores(bundle: "Bundle", prompt: Prompt) -> list[float]:
    """The log-probability (natural, summed over its tokens) of each of the prompt's options after its text, with its
    pictures in view. ConfigError for an option that has no token in this model's vocabulary."""
    return [score for score, _ in judged_options(bundle, prompt)]


@torch.no_grad()
def judged_options(bundle: "Bundle", prompt: Prompt) -> list[tuple[float, bool]]:
    """The same, and whether each token of the option is the likeliest after those before it."""
    context = bundle.tokenizer.encode(prompt.text)
    endings = [bundle.tokenizer.encode(option) for option in prompt.options]
    for option, ids in zip(prompt.options, endings, strict=True):
        if not ids:
            raise ConfigError(f"the option {option!r} has no token of this model's tokenizer")
    rows = _padded([context + ids for ids in endings])
    logits = _text_logits(bundle, rows, prompt).float()
    rows = rows.to(logits.device)
    scores = logits.log_softmax(dim=-1).gather(2, rows[:, :, None])[:, :, 0]
    likeliest = logits.argmax(dim=-1) == rows
    places = [slice(len(context), len(context) + len(ids)) for ids in endings]
    return [
        (float(row[place].sum()), bool(best[place].all()))
        for row, best, place in zip(scores, likeliest, places, strict=True)
    ]


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
    """What `count` rows see: the last pictures that the model remembers, the newest of which comes with the first
    word."""
    if not prompt.pictures:
        return None
    check_sight(bundle)
    model, weight = bundle.model, next(bundle.model.lm.parameters())
    steps = torch.tensor([seconds_to_frames(at_sec) for at_sec, _ in prompt.pictures], device=weight.device)
    state, row = model.tower.init_state(1), torch.zeros(1, dtype=torch.long, device=weight.device)
    seen = []
    for step, (_, picture) in zip(steps, prompt.pictures, strict=True):
        pixels = to_pixels(picture, bundle.config.vision.image_size_px, model.tower.mean, model.tower.std)
        pixels = pixels[None].to(device=weight.device, dtype=weight.dtype)
        seen.append(model.tower(pixels, state=state, onset_frames=step[None], rows=row))
    features = torch.cat([features for features, _ in seen])
    mask = None if seen[0][1] is None else torch.cat([mask for _, mask in seen])
    context = see_calls(model, features, torch.zeros_like(steps), steps - steps[-1], batch_size=1, mask=mask)
    keys, values = (tuple(one.expand(count, -1, -1) for one in pair) for pair in (context.keys, context.values))
    times = (context.onset_frames, context.until_frames, context.stamp_frames)
    return VisualContext(
        keys, values, *(one if one is None else one.expand(count, -1) for one in times), context.at_once
    )
