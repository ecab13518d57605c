"""Rerun a checkpoint in Kyutai's layout against the outputs stored beside it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mmspeech.checkpoint import read_tensors
from mmspeech.config import GenerationConfig
from mmspeech.formats.groups import ConvertError
from mmspeech.formats.moshivis import read_moshivis
from mmspeech.lm.generate import FrameGenerator
from mmspeech.lm.model import VisionSpeechModel
from mmspeech.types import VisualContext

EXPECTED = "expected.safetensors"
TOLERANCE = 1e-3
FEATURES, USER_CODES = "image_features", "user_codes"


@dataclass(frozen=True)
class VerifyRow:
    """One stored tensor: the largest difference and what is allowed; tokens (limit 0) must be equal."""

    name: str
    shape: tuple[int, ...]
    difference: float
    limit: float

    @property
    def passed(self) -> bool:
        return self.difference <= self.limit


def verify(path: str | Path) -> list[VerifyRow]:
    """Read `path` (config.yaml, model.safetensors, expected.safetensors), run it in float32 and compare every tensor
    that the expected file holds. Raises ConvertError for files that cannot be read or lack the inputs.
    """
    path = Path(path)
    if not (path / EXPECTED).is_file():
        raise ConvertError(
            f"{path}: no {EXPECTED}; expected a checkpoint in Kyutai's layout with stored outputs beside it"
        )
    expected = read_tensors(path / EXPECTED)
    model = read_moshivis(path).build().float()
    _check_inputs(model, expected, source=path / EXPECTED)
    outputs = sorted(name for name in expected if name not in (FEATURES, USER_CODES))
    if not outputs:
        raise ConvertError(f"{path / EXPECTED}: holds no outputs, so nothing could be compared; store text_logits ...")
    computed = _compute(model, expected)
    unknown = [name for name in outputs if name not in computed]
    if unknown:
        raise ConvertError(f"{path / EXPECTED}: holds {', '.join(unknown)}, which this model does not compute")
    return [_compare(name, computed[name], expected[name]) for name in outputs]


def _check_inputs(model: VisionSpeechModel, expected: dict[str, Tensor], *, source: Path) -> None:
    """Raise ConvertError when what the run starts from is not there or not of the model's sizes."""
    lm, vision = model.config.lm, model.config.vision
    wanted = {USER_CODES: (1, lm.num_codebooks, None)}
    if vision is not None:
        wanted[FEATURES] = (1, None, vision.feature_dim)
    missing = [name for name in sorted(wanted) if name not in expected]
    if missing:
        raise ConvertError(f"{source}: lacks {', '.join(missing)}; expected the inputs of the run")
    for name, shape in wanted.items():
        found = tuple(expected[name].shape)
        fits = len(found) == len(shape) and all(want in (None, size) for size, want in zip(found, shape, strict=True))
        if not fits or 0 in found:
            shown = ", ".join("N" if size is None else str(size) for size in shape)
            raise ConvertError(f"{source}: {name} is {list(found)}, expected [{shown}] for this config.yaml")
    codes = expected[USER_CODES]
    if codes.is_floating_point() or int(codes.min()) < -1 or int(codes.max()) > lm.audio_card:
        raise ConvertError(f"{source}: {USER_CODES} must be whole numbers from -1 to {lm.audio_card}")


def _compare(name: str, computed: Tensor, stored: Tensor) -> VerifyRow:
    limit = TOLERANCE if stored.is_floating_point() else 0.0
    difference = float("inf")
    if computed.shape == stored.shape:
        difference = float((computed.double() - stored.double()).abs().max())
    return VerifyRow(name, tuple(stored.shape), difference if difference == difference else float("inf"), limit)


@torch.no_grad()
def _compute(model: VisionSpeechModel, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    user_codes = expected[USER_CODES]
    computed = {f"blind_{name}": value for name, value in _generate(model, user_codes, None)}
    if model.projector is None:
        return computed | {name.removeprefix("blind_"): value for name, value in computed.items()}
    features = expected[FEATURES].float()
    visual = model.see(features, torch.zeros(features.shape[0], dtype=torch.long))
    computed["xa_source"] = model.project(features)[0]
    if len(visual.keys) == 1:
        computed |= {"xa_keys": visual.keys[0], "xa_values": visual.values[0]}
    return computed | dict(_generate(model, user_codes, visual))


def _generate(
    model: VisionSpeechModel, user_codes: Tensor, visual: VisualContext | None
) -> Iterator[tuple[str, Tensor]]:
    """Greedy steps over user_codes [1, K, T]: every output of the golden form, by name."""
    greedy = GenerationConfig(text_temperature=0, audio_temperature=0)
    generator = FrameGenerator(model.lm, batch_size=1, sampling=greedy)
    generator.see(visual)
    tokens, traces = [], []
    for column in user_codes.unbind(dim=2):
        frame = generator.step(column)
        none = torch.full((1 + model.config.lm.num_codebooks,), -1)
        tokens.append(none if frame is None else torch.cat([frame.text_ids, frame.codes[0]]))
        traces.append(generator.trace)
    yield "hidden", torch.stack([trace.hidden for trace in traces], dim=1)
    yield "text_logits", torch.stack([trace.text_logits for trace in traces], dim=1)
    yield "depth_logits", torch.stack([torch.cat(trace.depth_logits) for trace in traces])
    yield "gate_mean", torch.cat([trace.gate for trace in traces])
    yield "output_tokens", torch.stack(tokens, dim=1)
