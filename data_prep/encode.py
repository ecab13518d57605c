"""`encode`: both channels of every call of a manifest -> codes, one file per call. Can be killed and run again."""

import argparse
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from data_prep.calls import Call, read_manifest
from mmspeech.audio.codec import Codec
from mmspeech.audio.waveform import AudioError, resample
from mmspeech.checkpoint import codec_hash, load_codec
from mmspeech.config import ConfigError
from mmspeech.data.shards import CodecStamp

STAMP = "codec_stamp.json"
SILENCE_FRAMES = 50


@dataclass
class EncodeReport:
    """How many calls were encoded now, had been done before, and failed (each failure beside it in a .err file)."""

    encoded: int = 0
    skipped: int = 0
    failed: int = 0


def main(argv: list[str] | None = None) -> int:
    """Command line; the exit status is 0, or 1 when a call could not be encoded."""
    parser = argparse.ArgumentParser(prog="python -m data_prep encode", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of a manifest (manifest.jsonl), or the file")
    parser.add_argument("--codec", type=Path, required=True, help="codec or checkpoint directory")
    parser.add_argument("--out", type=Path, required=True, help="folder for the codes")
    parser.add_argument("--batch-sec", type=float, default=30.0, help="seconds of stereo audio encoded at once")
    parser.add_argument("--shard", default="0/1", help="do every n-th call only: i/n, for several processes")
    args = parser.parse_args(argv)
    report = encode(data=args.data, codec_dir=args.codec, out=args.out, batch_sec=args.batch_sec, shard=args.shard)
    print(f"{args.out}: {report.encoded} calls encoded, {report.skipped} were there, {report.failed} failed")
    return 1 if report.failed else 0


def encode(*, data: Path, codec_dir: Path, out: Path, batch_sec: float = 30.0, shard: str = "0/1") -> EncodeReport:
    """Encode the calls of `data` into `out`/ID.npy, int16 [2K, T], the model's rows first, then the user's."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    calls = _take_shard(read_manifest(data), shard)
    codec = load_codec(codec_dir)
    out.mkdir(parents=True, exist_ok=True)
    _claim(out, codec_stamp(codec))
    report = EncodeReport()
    todo = [call for call in calls if not codes_file(out, call.id).is_file()]
    report.skipped = len(calls) - len(todo)
    columns = (TextColumn("encode"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"))
    with Progress(*columns, TimeRemainingColumn()) as progress:
        task = progress.add_task("encode", total=len(todo), speed="")
        for batch in _batches(todo, batch_sec):
            _encode_batch(batch, codec=codec, out=out, report=report)
            elapsed = progress.tasks[task].elapsed or 1e-9
            speed = f"{(report.encoded + report.failed) / elapsed:.1f} calls/s"
            progress.update(task, advance=len(batch), speed=speed)
    return report


def codes_file(out: Path, call_id: str) -> Path:
    """Where the codes of a call lie."""
    return out / f"{call_id}.npy"


def read_stamp(out: Path) -> CodecStamp:
    """Which codec made the codes in `out`."""
    file = out / STAMP
    if not file.is_file():
        raise ConfigError(f"{out}: no {STAMP}; expected the output folder of data_prep encode")
    return CodecStamp.model_validate_json(file.read_text(encoding="utf-8"))


def read_stereo(path: Path, sample_rate_hz: int) -> Tensor:
    """A stereo file as [2, N] float32: the model's channel, then the user's. Raises AudioError."""
    try:
        wave, rate_hz = soundfile.read(str(path), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise AudioError(f"{path}: not readable as audio ({error})") from error
    if wave.shape[1] != 2 or not len(wave):
        got = f"{wave.shape[1]} channels, {len(wave)} samples"
        raise AudioError(f"{path}: {got}; expected stereo, the model left and the user right")
    if not np.isfinite(wave).all():
        raise AudioError(f"{path}: samples that are NaN or infinite")
    return resample(torch.from_numpy(np.ascontiguousarray(wave.T)), rate_hz, sample_rate_hz)


def codec_stamp(codec: Codec) -> CodecStamp:
    """Which codec it is, and what it makes of silence."""
    silence = codec.encode(torch.zeros(1, 1, SILENCE_FRAMES * codec.frame_samples))
    return CodecStamp(
        hash=codec_hash(codec),
        num_codebooks=codec.num_codebooks,
        codebook_size=codec.codebook_size,
        silence_codes=tuple(silence[0, :, -1].tolist()),
    )


def _claim(out: Path, stamp: CodecStamp) -> None:
    """Write the stamp, or refuse a folder that holds another codec's codes."""
    file = out / STAMP
    if file.is_file():
        earlier = read_stamp(out)
        if earlier.hash != stamp.hash:
            raise ConfigError(
                f"{out}: holds codes of codec {earlier.hash}, not {stamp.hash}; choose a new --out folder"
            )
        return
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    temporary.write_text(stamp.model_dump_json(), encoding="utf-8")
    os.replace(temporary, file)


def _take_shard(calls: list[Call], shard: str) -> list[Call]:
    index, separator, count = shard.partition("/")
    if not separator or not index.isdigit() or not count.isdigit() or int(index) >= int(count):
        raise ConfigError(f"--shard {shard}: expected i/n with 0 <= i < n, e.g. 0/2")
    return calls[int(index) :: int(count)]


def _batches(calls: list[Call], batch_sec: float) -> Iterator[list[Call]]:
    """Calls of like length together, so that little is padded."""
    batch: list[Call] = []
    for call in sorted(calls, key=lambda c: c.duration_sec):
        if batch and call.duration_sec * (len(batch) + 1) > batch_sec:
            yield batch
            batch = []
        batch.append(call)
    if batch:
        yield batch


def _encode_batch(calls: list[Call], *, codec: Codec, out: Path, report: EncodeReport) -> None:
    waves, read = [], []
    for call in calls:
        try:
            waves.append(read_stereo(call.audio, codec.sample_rate_hz))
            read.append(call)
        except AudioError as error:
            codes_file(out, call.id).with_suffix(".err").write_text(f"{error}\n", encoding="utf-8")
            report.failed += 1
    if not read:
        return
    samples = max(wave.shape[1] for wave in waves)
    batch = torch.stack([torch.nn.functional.pad(wave, (0, samples - wave.shape[1])) for wave in waves])
    codes = codec.encode(batch.flatten(0, 1)[:, None])  # the codec is causal: padding does not touch what is before it
    codes = codes.unflatten(0, (len(read), 2)).flatten(1, 2).to(torch.int16).numpy()
    for call, wave, rows in zip(read, waves, codes, strict=True):
        num_frames = -(-wave.shape[1] // codec.frame_samples)
        _save(codes_file(out, call.id), rows[:, :num_frames])
        report.encoded += 1


def _save(file: Path, codes: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as handle:
        np.save(handle, np.ascontiguousarray(codes))
    os.replace(temporary, file)
    file.with_suffix(".err").unlink(missing_ok=True)
