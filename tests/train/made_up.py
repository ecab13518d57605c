"""Calls that nobody made."""

import io

import torch
from PIL import Image

from mmspeech.types import Sample, Visual, Word


def made_up_call(index: int, seed: int, *, streams: int = 3, card: int = 32) -> Sample:
    """A call of 20 frames and more, with a picture and a few words; codes are drawn from 0 to card - 1."""
    generator = torch.Generator().manual_seed(1000 * seed + index)
    num_frames = 20 + 3 * index
    picture = io.BytesIO()
    Image.new("RGB", (40, 40), (20 * index, 255 - 20 * index, 99)).save(picture, "PNG")
    words = [Word("hello", 0.2, 0.5, "user"), Word("the", 0.7, 0.8), Word("circle", 0.9, 1.2)]
    codes = torch.randint(0, card, (2 * streams, num_frames), generator=generator).to(torch.int16)
    return Sample(f"{seed}-{index}", codes, words, [Visual(picture.getvalue(), 0.1)], {})
