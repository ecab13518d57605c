"""`mmspeech quantize`: a checkpoint with weights in fewer bits, and how far that drifts from the whole one."""

import copy
import json
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from mmspeech.audio.waveform import read_audio
from mmspeech.checkpoint import (
    CARD,
    CODEC,
    CONFIG,
    MODEL,
    TOKENIZER,
    TOWER,
    TOWER_PREFIX,
    load_model,
    replacing_directory,
    write_tensors,
)
from mmspeech.commands.common import check_device, whole_file
from mmspeech.config import ConfigError, GenerationConfig
from mmspeech.frames import FRAME_SAMPLES
from mmspeech.lm.generate import FrameGenerator
from mmspeech.quantize import MARK, parse_kinds, quantize_model, stored, weight_bytes

if TYPE_CHECKING:
    from mmspeech.checkpoint import Bundle
    from mmspeech.lm.model import VisionSpeechModel
    from mmspeech.types import VisualContext

ANSWER_FRAMES = 50  # of silence after each question, while the model answers
_DRAWN_FRAMES = 250  # of random codes, where no questions are given


def run_quantize(model: str | None, out: Path, kinds: str) -> None:
    """Write a checkpoint whose matrices are quantised, and print it. It is loaded like any other."""
    wanted = parse_kinds(kinds)
    if "int4" in wanted.values():
        raise ConfigError("int4 is packed for the device it runs on: store the model whole and load it with --quantize")
    bundle = load_model(model)
    if out.resolve() == bundle.path.resolve():
        raise ConfigError(f"{out}: that is the model itself; choose another directory")
    before = weight_bytes(bundle.model)
    quantize_model(bundle.model, wanted)
    state = {k: v for k, v in bundle.model.state_dict().items() if not k.startswith(TOWER_PREFIX)}
    tensors, told = stored(state)
    with replacing_directory(out) as folder:
        write_tensors(folder / MODEL, tensors, metadata=told | {MARK: kinds})
        for name in (CONFIG, CODEC, TOKENIZER, TOWER, CARD):
            if (bundle.path / name).is_file():
                shutil.copyfile(bundle.path / name, folder / name)
    after = weight_bytes(bundle.model)
    Console(stderr=True).print(f"weights {before / 1e6:.1f} MB -> {after / 1e6:.1f} MB", highlight=False)
    print(out)


def run_bench_quantize(
    model: str | None, kinds: list[str], *, questions: list[Path], picture: Path | None, device: str, out: Path | None
) -> None:
    """Print, for the model whole and quantised in each way, its size, the time of a step, and the drift: over calls of
    the whole model's own, KL of text logits and how many of the likeliest text tokens and codes stay the same."""
    place = check_device(device)
    bundle = load_model(model, device=place)
    sight = _sight(bundle, picture)
    calls = [_call(bundle, codes, sight) for codes in _user_codes(bundle, questions)]
    rows = {"whole": _row(bundle.model, bundle.model, calls, sight)}
    for kind in track(kinds, "quantising", console=Console(stderr=True), transient=True):
        other = copy.deepcopy(bundle.model)
        quantize_model(other, parse_kinds(kind))
        rows[kind] = _row(other, bundle.model, calls, sight)
    table = Table(bundle.config.name, "MB", "ms/step p50", "p99", "KL of text", "text tokens", "codes")
    for name, row in rows.items():
        table.add_row(
            name, f"{row['mb']:.1f}", f"{row['ms']['p50']:.2f}", f"{row['ms']['p99']:.2f}", f"{row['kl']:.5f}",
            f"{100 * row['text']:.1f} %", f"{100 * row['codes']:.1f} %",
        )  # fmt: skip
    Console().print(table)
    if out is not None:
        with whole_file(out) as temporary:
            temporary.write_text(json.dumps({"model": str(bundle.path), "rows": rows}, indent=1) + "\n")


def _user_codes(bundle: "Bundle", questions: list[Path]) -> list[Tensor]:
    """[K, T] of each question, with silence behind it; random codes where there is none."""
    if not questions:
        return [torch.randint(0, bundle.codec.codebook_size, (bundle.codec.num_codebooks, _DRAWN_FRAMES))]
    waves = [torch.nn.functional.pad(read_audio(file)[0], (0, ANSWER_FRAMES * FRAME_SAMPLES)) for file in questions]
    device = next(bundle.codec.parameters()).device
    return [bundle.codec.encode(wave[None, None].to(device))[0] for wave in waves]


def _sight(bundle: "Bundle", picture: Path | None) -> "VisualContext | None":
    if picture is None:
        return None
    from mmspeech.vision.image import load_image, to_pixels

    tower = bundle.model.tower
    pixels = to_pixels(load_image(picture), tower.image_size_px, tower.mean, tower.std)
    with torch.no_grad():
        features, mask = tower(pixels[None].to(next(bundle.model.parameters()).device))
        return bundle.model.see(features, torch.zeros(1, dtype=torch.long, device=features.device), mask)


def _call(bundle: "Bundle", user: Tensor, sight: "VisualContext | None") -> Tensor:
    """Columns [1, R, T] of a call in which the whole model says what is likeliest."""
    generator = FrameGenerator(bundle.model.lm, 1, GenerationConfig(text_temperature=0, audio_temperature=0))
    generator.see(sight)
    device = next(bundle.model.parameters()).device
    frames = [generator.step(user[None, :, t].to(device)) for t in range(user.shape[1])]
    own = [torch.cat([frame.text_ids[:, None], frame.codes], dim=1) for frame in frames if frame is not None]
    own = torch.stack(own, dim=2)
    codes = torch.cat([own, user[None, :, : own.shape[2]].to(device)], dim=1)
    return bundle.model.lm.layout.delay(codes)[0]


@torch.no_grad()
def _row(
    model: "VisionSpeechModel", whole: "VisionSpeechModel", calls: list[Tensor], sight: "VisualContext | None"
) -> dict[str, Any]:
    kl, same_text, same_codes, count = 0.0, 0.0, 0.0, 0
    for columns in calls:
        (text, codes), (other, others) = (_logits(one, columns, sight) for one in (whole, model))
        log_p, log_q = text.log_softmax(-1), other.log_softmax(-1)
        kl += float((log_p.exp() * (log_p - log_q)).sum())
        same_text += float((text.argmax(-1) == other.argmax(-1)).sum())
        same_codes += float((codes.argmax(-1) == others.argmax(-1)).float().mean(-1).sum())
        count += text.shape[1]
    shares = {"kl": kl / count, "text": same_text / count, "codes": same_codes / count}
    return {"mb": weight_bytes(model) / 1e6, "ms": _step_ms(model, sight), **shares}


def _logits(model: "VisionSpeechModel", columns: Tensor, sight: "VisualContext | None") -> tuple[Tensor, Tensor]:
    out = model.lm(columns[..., :-1], visual=sight)
    own = columns[:, model.lm.layout.own, 1:]
    return out.text_logits.float(), model.lm.depth_logits(out.hidden, columns[:, 0, 1:], own).float()


def _step_ms(model: "VisionSpeechModel", sight: "VisualContext | None", *, steps: int = 60) -> dict[str, float]:
    generator = FrameGenerator(model.lm, 1)
    generator.see(sight)
    weight = next(model.parameters())
    user = torch.zeros(1, model.lm.layout.num_codebooks, dtype=torch.long, device=weight.device)
    spent = []
    for _ in range(steps):
        began = time.perf_counter()
        generator.step(user)
        if weight.device.type == "cuda":
            torch.cuda.synchronize(weight.device)
        spent.append(1000 * (time.perf_counter() - began))
    kept = torch.tensor(spent[10:])
    return {"p50": float(kept.median()), "p99": float(kept.quantile(0.99))}
