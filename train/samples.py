"""Hear what a model has learnt: it answers the user's side of validation calls, frame by frame."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmspeech.audio.waveform import write_wav
from mmspeech.data.collate import NOTHING
from mmspeech.data.shards import ShardSet, speaker_rows
from mmspeech.frames import frames_to_seconds, seconds_to_frames
from mmspeech.types import FrameOut, Sample, VisualContext

if TYPE_CHECKING:
    from train.parts import Origin


def write_samples(origin: "Origin", shards: ShardSet, folder: Path, count: int) -> dict[str, float]:
    """The first `count` calls: a stereo wav (left the model, right the user), a json of words with their gates, and the
    picture, in `folder`. Returns the share of frames with a word and the mean gate over words."""
    folder.mkdir(parents=True, exist_ok=True)
    words = frames = 0
    gates = 0.0
    for index in range(min(count, len(shards))):
        sample = shards[index]
        out = answer(origin, sample)
        spoken = _write(origin, sample, out, folder / f"{index:03d}")
        words, frames, gates = words + len(spoken), frames + len(out), gates + sum(word["gate"] for word in spoken)
    return {"word_share": words / max(1, frames), "word_gate": gates / max(1, words)}


@torch.no_grad()
def answer(origin: "Origin", sample: Sample) -> list[FrameOut]:
    """The model's frames while it hears the user's side of the call and sees its pictures."""
    from mmspeech.lm.generate import FrameGenerator

    lm = origin.model.lm
    device = next(lm.parameters()).device
    # Frozen parts may be in bfloat16 beside trained ones in float32.
    mixed = len({parameter.dtype for parameter in origin.model.parameters()}) > 1
    with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
        generator = FrameGenerator(lm, 1, origin.config.generation, seed=0)
        generator.see(_look(origin, sample, device))
        user = speaker_rows(sample.codes.long())[1].to(device)
        # In training the model predicts a frame from the user's frames before it: each is heard one step later.
        heard = torch.nn.functional.pad(user, (1, 0), value=NOTHING)
        steps = (generator.step(heard[None, :, frame]) for frame in range(user.shape[1]))
        return [out for out in steps if out is not None]


def _look(origin: "Origin", sample: Sample, device: torch.device) -> VisualContext | None:
    tower = origin.tower
    if tower is None or not sample.visuals:
        return None
    from mmspeech.vision.image import load_image, to_pixels

    images = [load_image(visual.image) for visual in sample.visuals]
    pixels = torch.stack([to_pixels(image, tower.image_size_px, tower.mean, tower.std) for image in images])
    features, mask = tower(pixels.to(device))
    onset = torch.tensor([seconds_to_frames(visual.start_sec) for visual in sample.visuals], device=device)
    onsets = onset[:, None].expand(features.shape[:2])
    joined_mask = None if mask is None else mask.flatten()[None]
    return origin.model.see(features.flatten(0, 1)[None], onsets.flatten()[None], joined_mask)


def _write(origin: "Origin", sample: Sample, out: list[FrameOut], stem: Path) -> list[dict]:
    own = torch.stack([frame.codes[0] for frame in out], dim=1)
    user = speaker_rows(sample.codes.long())[1][:, : own.shape[1]].to(own.device)
    write_wav(stem.with_suffix(".wav"), _decode(origin, torch.stack([own, user])))
    silent = (origin.config.lm.text_pad_id, origin.config.lm.text_epad_id)
    spoken = [
        {
            "piece": origin.tokenizer.piece(int(frame.text_ids[0])),
            "start_sec": frames_to_seconds(frame.frame),
            "gate": float(frame.gate[0]),
        }
        for frame in out
        if int(frame.text_ids[0]) not in silent
    ]
    expected = [[word.speaker, word.start_sec, word.text] for word in sample.words]
    described = {"call": sample.id, "said": spoken, "reference": expected}
    stem.with_suffix(".json").write_text(json.dumps(described, ensure_ascii=False, indent=1), encoding="utf-8")
    if sample.visuals:
        stem.with_suffix(".image").write_bytes(sample.visuals[0].image)
    return spoken


def _decode(origin: "Origin", codes: Tensor) -> Tensor:
    """codes [2, K, T] -> wave [2, N]; a frame that holds nothing is decoded as code 0."""
    return origin.codec.decode(codes.clamp(min=0))[:, 0].cpu()
