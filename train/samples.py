"""Hear what a model has learnt: it answers the user's side of validation calls, frame by frame."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mmspeech.audio.waveform import write_wav
from mmspeech.config import ConfigError
from mmspeech.data.collate import NOTHING
from mmspeech.data.shards import ShardSet, speaker_rows
from mmspeech.data.visuals import SeenFrame, lay_pictures, see_visuals
from mmspeech.frames import frames_to_seconds
from mmspeech.lm.sight import see_calls
from mmspeech.serve.session import SpokenWord, Transcript
from mmspeech.types import FrameOut, Sample, VisualContext, Word
from mmspeech.vision.window import windowed
from train.boards import Shown
from train.sample_figure import CallFigure, draw_call
from train.sample_page import write_contents, write_page
from train.settings import TrainConfig

if TYPE_CHECKING:
    from PIL.Image import Image

    from train.parts import Origin


@dataclass
class SampledCall:
    """A call the model has answered.

    wave [2, N]: the model, the user. words: the model's; heard: the user's; expected: the model's in the recording.
    said: its text pieces. gate [T] and layer_gates [T, L] of the frames, L as in `layers` (indices; none: it does not
    look), below 0 too where `signed_gates`. pictures: each with the second from which it is seen.
    """

    id: str
    wave: Tensor
    words: list[SpokenWord]
    heard: list[Word]
    expected: list[Word]
    said: list[dict[str, Any]]
    gate: np.ndarray
    layer_gates: np.ndarray
    layers: tuple[int, ...]
    signed_gates: bool
    pictures: list[tuple["Image", float]] = field(default_factory=list)

    @property
    def text(self) -> str:
        return " ".join(word.text for word in self.words if word.text)


@dataclass
class Samples:
    """numbers: to log. shown: for the boards. problems: one line for each call that could not be sampled."""

    numbers: dict[str, float]
    shown: list[Shown]
    problems: list[str]


def write_samples(origin: "Origin", shards: ShardSet, folder: Path, config: TrainConfig) -> Samples:
    """The first `sample_calls` calls, each at most `data.max_frames` long, into `folder`: a stereo wav (left the model,
    right the user), a json of words and gates, a picture of it all, what was seen, and a page to browse them. Numbers:
    the share of frames with a word and the mean gate over words."""
    if folder.exists():
        shutil.rmtree(folder)  # of a run that was killed after it and began again before it
    folder.mkdir(parents=True)
    calls: dict[str, tuple[SampledCall, CallFigure]] = {}
    problems = []
    for index in range(min(config.sample_calls, len(shards))):
        try:
            call = sample_call(origin, shards[index], max_frames=config.data.max_frames)
        except ConfigError as error:
            problems.append(f"call {index} not sampled: {error}")
            continue
        name = f"{index:03d}"
        calls[name] = call, draw_call(call)
        _write(call, calls[name][1], folder / name)
    write_page(folder, calls)
    write_contents(folder.parent)
    frames = sum(len(call.gate) for call, _ in calls.values())
    gates = [piece["gate"] for call, _ in calls.values() for piece in call.said]
    numbers = {"word_share": len(gates) / max(1, frames), "word_gate": sum(gates) / max(1, len(gates))}
    return Samples(numbers, [_shown(name, *drawn) for name, drawn in calls.items()], problems)


def sample_call(origin: "Origin", sample: Sample, *, max_frames: int) -> SampledCall:
    """What the model makes of the first `max_frames` frames of a call. Raises ConfigError for a picture that does not
    decode, or a call too short to answer."""
    seen = _seen(origin, sample, max_frames=max_frames)
    out = answer(origin, sample, seen, max_frames=max_frames)
    if not out:
        raise ConfigError(f"{sample.id}: {sample.codes.shape[1]} frames, shorter than the model's delays")
    own = torch.stack([frame.codes[0] for frame in out], dim=1)
    user = speaker_rows(sample.codes.long())[1][:, : own.shape[1]].to(own.device)
    end_sec = frames_to_seconds(len(out))
    words = [word for word in sample.words if word.start_sec < end_sec]
    said, transcript = [], Transcript()
    silent = (origin.config.lm.text_pad_id, origin.config.lm.text_epad_id)
    for frame in out:
        text_id = int(frame.text_ids[0])
        if text_id not in silent:
            piece, start_sec = origin.tokenizer.piece(text_id), frames_to_seconds(frame.frame)
            said.append({"piece": piece, "start_sec": start_sec, "gate": float(frame.gate[0])})
            transcript.add(piece, start_sec=start_sec, gate=said[-1]["gate"])
    fusion = origin.config.lm.fusion
    return SampledCall(
        id=sample.id,
        wave=_decode(origin, torch.stack([own, user])),
        words=transcript.words,
        heard=[word for word in words if word.speaker == "user"],
        expected=[word for word in words if word.speaker == "main"],
        said=said,
        gate=torch.cat([frame.gate for frame in out]).cpu().numpy(),
        layer_gates=torch.cat([frame.layer_gates for frame in out]).cpu().numpy(),
        layers=origin.model.lm.temporal.gated_layers,
        signed_gates=fusion is not None and fusion.gate.endswith("tanh"),
        pictures=[(frame.picture, frames_to_seconds(frame.onset_frame)) for frame in seen if not frame.in_windows_only],
    )


@torch.no_grad()
def answer(origin: "Origin", sample: Sample, seen: list[SeenFrame], *, max_frames: int) -> list[FrameOut]:
    """The model's frames while it hears the user's side of the call and sees what was seen in it."""
    from mmspeech.lm.generate import FrameGenerator

    lm = origin.model.lm
    device = next(lm.parameters()).device
    # Frozen parts may be in bfloat16 beside trained ones in float32.
    mixed = len({parameter.dtype for parameter in origin.model.parameters()}) > 1
    with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
        generator = FrameGenerator(lm, 1, origin.config.generation, seed=0)
        generator.see(_look(origin, seen, device))
        user = speaker_rows(sample.codes.long())[1][:, :max_frames].to(device)
        # In training the model predicts a frame from the user's frames before it: each is heard one step later.
        heard = torch.nn.functional.pad(user, (1, 0), value=NOTHING)
        steps = (generator.step(heard[None, :, frame]) for frame in range(user.shape[1]))
        return [out for out in steps if out is not None]


def _seen(origin: "Origin", sample: Sample, *, max_frames: int) -> list[SeenFrame]:
    form = origin.pictures
    if form is None:
        return []
    num_frames = min(max_frames, sample.codes.shape[1])
    return see_visuals(sample.visuals, num_frames=num_frames, form=form)


def _look(origin: "Origin", seen: list[SeenFrame], device: torch.device) -> VisualContext | None:
    if not seen:
        return None
    laid = lay_pictures([seen], origin.pictures)
    features, mask = origin.tower(windowed(laid.pixels, laid.windows).to(device))
    # Under DeepSpeed the model may be narrower than the tower beside it.
    features = features.to(next(origin.model.lm.parameters()).dtype)
    rows, onset_frames = laid.picture_rows.to(device), laid.onset_frames.to(device)
    return see_calls(origin.model, features, rows, onset_frames, batch_size=1, mask=mask)


def _decode(origin: "Origin", codes: Tensor) -> Tensor:
    """codes [2, K, T] -> wave [2, N]; a frame that holds nothing is decoded as code 0."""
    with torch.no_grad():
        return origin.codec.decode(codes.clamp(min=0))[:, 0].float().cpu()


def _write(call: SampledCall, figure: CallFigure, stem: Path) -> None:
    write_wav(stem.with_suffix(".wav"), call.wave)
    stem.with_suffix(".png").write_bytes(figure.png)
    described = {
        "call": call.id,
        "text": call.text,
        "said": call.said,
        "reference": [[word.speaker, word.start_sec, word.text] for word in [*call.heard, *call.expected]],
        "gate_layers": list(call.layers),
        "layer_gates": [[round(float(gate), 4) for gate in frame] for frame in call.layer_gates],
    }
    stem.with_suffix(".json").write_text(json.dumps(described, ensure_ascii=False), encoding="utf-8")
    for place, (picture, _) in enumerate(call.pictures):
        picture.save(stem.with_name(f"{stem.name}_seen{place}.png"))


def _shown(name: str, call: SampledCall, figure: CallFigure) -> Shown:
    heard, expected = (" ".join(word.text for word in words) for words in (call.heard, call.expected))
    rows = [("user", heard), ("model", call.text), ("expected", expected)]
    text = "\n".join(f"- **{who}**: {said.replace('*', '')}" for who, said in rows)
    picture = np.asarray(call.pictures[0][0].convert("RGB")) if call.pictures else None
    return Shown(name=name, wave=call.wave, text=text, figure=figure.pixels(), picture=picture)
