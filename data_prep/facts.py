"""`facts`: pictures with written sentences that are true of them, and no sound: what there is to see, at little cost.

A spoken question with its answer takes five seconds of a call; the sentence alone takes one when nobody speaks it. A
model whose answers say again what was asked learns from such sentences what to look for.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from data_prep.dialogue import visual_turn
from data_prep.encode import codec_stamp
from data_prep.render import render_png
from data_prep.scenes import item_rng
from data_prep.world import random_scene
from mmspeech.checkpoint import load_codec
from mmspeech.data.shards import ShardSetInfo, write_shards
from mmspeech.frames import frames_to_seconds
from mmspeech.types import Sample, Visual, Word

WORD_FRAMES = (1, 3)  # how long a word lasts; spoken ones take about four
GAP_FRAMES = (1, 4)  # between sentences


def make_facts(
    out: Path, *, codec_dir: Path, count: int, seed: int, split: str = "train", size_px: int = 96, num_facts: int = 12
) -> ShardSetInfo:
    """Write a set of `count` calls without sound, each a picture and up to `num_facts` different sentences about it.

    Raises ConfigError for a codec that can not be loaded, whose stamp the set bears.
    """
    from rich.progress import track

    stamp = codec_stamp(load_codec(codec_dir))
    numbers = track(range(count), description="facts")
    return write_shards(out, _samples(numbers, stamp.num_codebooks, seed, split, size_px, num_facts), codec=stamp)


def _samples(
    numbers: Iterable[int], num_codebooks: int, seed: int, split: str, size_px: int, num_facts: int
) -> Iterator[Sample]:
    for number in numbers:
        rng = item_rng(seed, split, number, "facts")
        scene = random_scene(rng, split=split)
        # As many draws as facts: what is often asked is often told.
        sentences = list(dict.fromkeys(visual_turn(scene, rng).answer for _ in range(num_facts)))
        words, num_frames = _lay_out(sentences, rng)
        codes = torch.full((2 * num_codebooks, num_frames), -1, dtype=torch.int16)
        picture = Visual(render_png(scene, size_px=size_px))
        yield Sample(f"{number:06d}", codes, words, [picture], {"kind": "facts", "split": split})


def _lay_out(sentences: list[str], rng: np.random.Generator) -> tuple[list[Word], int]:
    """Words one after the other, and the frames they take."""
    words, now_frames = [], 1
    for sentence in sentences:
        now_frames += int(rng.integers(*GAP_FRAMES, endpoint=True))
        pace = int(rng.integers(*WORD_FRAMES, endpoint=True))
        for text in sentence.split():
            words.append(Word(text, frames_to_seconds(now_frames), frames_to_seconds(now_frames + pace)))
            now_frames += pace
    return words, now_frames + 1
