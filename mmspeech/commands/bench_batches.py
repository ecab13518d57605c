"""`mmspeech bench --batches 1,32,64`: how long a step of so many calls takes, in process, each with a picture; with
`--random-weights` for a model of which only the configuration is here."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table

from mmspeech.commands.bench import PARTS, call_with_pictures, sound, summarise, timed_frame
from mmspeech.commands.bench_reference import moshi_installed, roofline, time_beside_moshi
from mmspeech.commands.common import check_device, check_output, recorder, whole_file
from mmspeech.config import ConfigError, ModelConfig, parse_config, read_mapping
from mmspeech.frames import FRAME_RATE_HZ
from mmspeech.nn.cuda_graph import Record
from mmspeech.serve.engine import settle_threads

if TYPE_CHECKING:
    from mmspeech.checkpoint import Bundle


def run_bench_batches(
    model: str | None, *, batches: str, random_weights: bool, num_frames: int, device: str, cuda_graphs: bool,
    out: Path | None,
) -> None:  # fmt: skip
    """Print the times of a step for each number of calls, and write JSON. ConfigError for numbers that are none.

    `cuda_graphs`: see mmspeech.nn.cuda_graph.
    """
    if out is not None:
        check_output(out, (".json",))
    sizes, place = _sizes(batches), check_device(device)
    record = recorder(cuda_graphs, place)
    bundle = _with_random_weights(model, place) if random_weights else _loaded(model, place)
    settle_threads(bundle.model)
    rows = [_measure(bundle, size, num_frames, record) for size in sizes]
    weight = next(bundle.model.parameters())
    where = torch.cuda.get_device_name(place) if place.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    how = {
        "model": bundle.config.name,
        "weights": "random" if random_weights else "the checkpoint's",
        "dtype": str(weight.dtype).removeprefix("torch."),
        "where": where,
        "cuda_graphs": cuda_graphs,
        "frames": num_frames,
        "budget_ms": 1000 / FRAME_RATE_HZ,
    }
    console = Console()
    told = f"{bundle.config.name}, {how['weights']} weights, {how['dtype']}, {where}, {num_frames} frames"
    console.print(told, highlight=False)
    console.print(_table(rows))
    how |= _against(bundle, sizes[0], rows[0], num_frames, console)
    if out is not None:
        with whole_file(out) as temporary:
            temporary.write_text(json.dumps({"how": how, "rows": rows}, indent=1) + "\n", encoding="utf-8")


def _against(bundle: "Bundle", size: int, row: dict[str, Any], num_frames: int, console: Console) -> dict[str, Any]:
    """Print and return what the first row's step of the language model is measured against."""
    bound = roofline(bundle.model)
    share = bound.least_ms / row["ms"]["think"]["p50"]
    console.print(
        f"think reads {bound.weights_gb:.3f} GB of weights; a copy runs at {bound.copy_gb_per_sec:.1f} GB/s here: at "
        f"least {bound.least_ms:.2f} ms a step, {100 * share:.0f} % of what {size} calls take",
        highlight=False,
    )
    told: dict[str, Any] = {"roofline": {**asdict(bound), "least_ms": bound.least_ms, "share": share}}
    if not moshi_installed():
        console.print("(with the package moshi installed, its LMGen is timed here, too)", style="dim")
        return told
    try:
        times = time_beside_moshi(bundle.model, batch_size=size, num_steps=num_frames)
    except ConfigError as error:
        console.print(f"not timed beside moshi's LMGen: {error}", highlight=False, soft_wrap=True)
        return told
    told["beside_moshi_ms"] = {name: summarise(values) for name, values in times.items()}
    ours, theirs = (told["beside_moshi_ms"][name] for name in ("ours", "moshi"))
    console.print(
        f"language model alone, {size} calls, in turns: ours p50 {ours['p50']:.2f} ms, p99 {ours['p99']:.2f}; "
        f"moshi's LMGen p50 {theirs['p50']:.2f}, p99 {theirs['p99']:.2f}; {theirs['p50'] / ours['p50']:.2f} times ours",
        highlight=False,
    )
    return told


def _sizes(batches: str) -> list[int]:
    try:
        sizes = [int(part) for part in batches.split(",")]
    except ValueError as error:
        raise ConfigError(f"--batches {batches!r}: expected numbers of calls, such as 1,32,64") from error
    if min(sizes) < 1:
        raise ConfigError(f"--batches {batches!r}: a batch has one call at least")
    return sizes


def _loaded(model: str | None, device: torch.device) -> "Bundle":
    from mmspeech.checkpoint import load_model

    return load_model(model, device=device, dtype=_dtype(device))


def _with_random_weights(path: str | None, device: torch.device) -> "Bundle":
    """The model of a configuration, drawn where it stays. It has no tokenizer: nobody reads what it says."""
    from mmspeech.audio.codec import build_codec
    from mmspeech.checkpoint import Bundle
    from mmspeech.lm.model import VisionSpeechModel
    from mmspeech.vision.encoder import build_tower

    if path is None or not Path(path).is_file():
        raise ConfigError(f"--random-weights needs the file of a configuration in --model, not {path or 'none'}")
    config = parse_config(ModelConfig, read_mapping(Path(path)), source=path)
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(_dtype(device))
    try:
        with device:
            model = VisionSpeechModel(config)
            if config.vision is not None:
                model.tower = build_tower(config.vision, pretrained=False)
    finally:
        torch.set_default_dtype(before)
    codec = build_codec(config.codec).to(device)
    return Bundle(model.eval(), codec.eval(), None, config, Path(path))


def _dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def _measure(bundle: "Bundle", size: int, num_frames: int, record: Record | None) -> dict[str, Any]:
    """Times of a step of `size` calls in ms, by part, and the most memory of the device, if it tells."""
    calls = call_with_pictures(bundle, size, record=record)
    if calls.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(calls.device)
    times: dict[str, list[float]] = {name: [] for name in PARTS}
    for pcm in sound(num_frames, size):
        parts, _ = timed_frame(calls, pcm)
        for name, value in parts.items():
            times[name].append(value)
    row: dict[str, Any] = {
        "calls": size,
        "ms": {name: summarise(values[-num_frames:]) for name, values in times.items()},
    }
    if calls.device.type == "cuda":
        row["memory_gb"] = round(torch.cuda.max_memory_allocated(calls.device) / 1e9, 2)
    return row


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table("calls", *(f"{name} ms" for name in PARTS), "GB", caption="p50 / p99 of a step of all calls")
    for row in rows:
        times = (f"{row['ms'][name]['p50']:.2f} / {row['ms'][name]['p99']:.2f}" for name in PARTS)
        table.add_row(str(row["calls"]), *times, str(row.get("memory_gb", "")))
    return table
