"""`pack`: codes, words and pictures of every call of a manifest -> one shard set."""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from data_prep.calls import Call, ManifestError, read_manifest, read_transcript
from data_prep.encode import codes_file, read_stamp
from mmspeech.config import ConfigError
from mmspeech.data.shards import ShardSetInfo, write_shards
from mmspeech.types import Sample


def main(argv: list[str] | None = None) -> int:
    """Command line; the exit status is 0, or 1 when a call had to be left out."""
    parser = argparse.ArgumentParser(prog="python -m data_prep pack", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of a manifest (manifest.jsonl), or the file")
    parser.add_argument("--codes", type=Path, required=True, help="output folder of encode")
    parser.add_argument("--out", type=Path, required=True, help="folder of the shard set; an earlier set is replaced")
    args = parser.parse_args(argv)
    info, problems = pack(data=args.data, codes=args.codes, out=args.out)
    print(f"{args.out}: {info.calls} calls, {info.frames} frames, {info.pictures} pictures, {len(problems)} left out")
    for problem in problems[:10]:
        print(f"left out: {problem}")
    return 1 if problems else 0


def pack(*, data: Path, codes: Path, out: Path) -> tuple[ShardSetInfo, list[str]]:
    """Write the shard set; also returns one line for each call left out (no codes, or a broken json or picture)."""
    from rich.progress import track

    stamp = read_stamp(codes)
    calls = read_manifest(data)
    problems: list[str] = []
    if not any(codes_file(codes, call.id).is_file() for call in calls):
        raise ConfigError(f"{codes}: no codes of the calls in {data}; run data_prep encode on it first")
    samples = _samples(track(calls, description="pack"), codes=codes, problems=problems)
    return write_shards(out, samples, codec=stamp), problems


def _samples(calls, *, codes: Path, problems: list[str]) -> Iterator[Sample]:
    for call in calls:
        try:
            yield _sample(call, codes)
        except ManifestError as error:
            problems.append(str(error))


def _sample(call: Call, codes: Path) -> Sample:
    file = codes_file(codes, call.id)
    if not file.is_file():
        raise ManifestError(f"{call.id}: not encoded; run data_prep encode again")
    transcript = read_transcript(call)
    rows = torch.from_numpy(np.load(file, allow_pickle=False))
    meta = {key: value for key, value in transcript.meta.items() if key != "phones"}  # large, and for the codec only
    return Sample(call.id, rows, transcript.words, transcript.visuals, meta)
