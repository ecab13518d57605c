"""`pack`: codes, words and pictures of every call of a manifest -> one shard set."""

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from data_prep.calls import Call, ManifestError, Transcript, parse_entry, read_transcript
from data_prep.encode import codes_file, read_stamp
from data_prep.steps import ERRORS, MANIFEST, PARTS, STEP, How, Item, Outcome, fingerprint, read_step, run_step
from mmspeech.config import ConfigError
from mmspeech.data.shards import (
    CodecStamp,
    ShardFile,
    ShardSetInfo,
    check_codes,
    check_place,
    finish_set,
    shard_name,
    write_file,
)
from mmspeech.types import Sample

Clips = Literal["bytes", "reference"]
_NOT_KEPT = ("phones",)  # large, and for the codec only


def pack(
    *, data: Path, codes: Path, out: Path, how: How, clips: Clips = "bytes", calls_per_file: int = 512
) -> tuple[ShardSetInfo | None, list[str]]:
    """Write the shard set; also returns one line for each call left out (no codes, or a broken json or picture).

    It grows in a folder beside `out` and takes its place when all of it is there: None where shards of the work are
    still to be done. `clips`: inside the set, or as paths to the files in `data`, which then must stay there.
    """
    stamp = read_stamp(codes)
    if not (codes / MANIFEST).is_file():
        raise ConfigError(f"{codes}: encode is not done; run `python -m data_prep encode` on it again")
    check_place(out)
    folder = data if data.is_dir() else data.parent
    building = out.with_name(f".{out.name}.packing")
    settings = {"codes": fingerprint(codes), "codec": stamp.hash, "clips": clips}
    if building.is_dir() and _is_other(building, settings | {"input": fingerprint(data)}):
        shutil.rmtree(building)
    work = PackWork(folder, codes, building, stamp, clips)
    tally = run_step("pack", data, building, work, settings=settings, how=how, chunk_items=calls_per_file)
    if not tally.complete:
        return None, []
    entries = [json.loads(line) for line in (building / MANIFEST).read_text(encoding="utf-8").splitlines()]
    problems = []
    if tally.failed:
        problems = (building / ERRORS).read_text(encoding="utf-8").splitlines()
    if not entries:
        raise ConfigError(f"{data}: none of its calls could be packed; the first: {problems[0]}")
    for leftover in (building / name for name in (MANIFEST, ERRORS, STEP, PARTS)):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
    files = [ShardFile.model_validate(one["file"]) for one in entries]
    root = str(folder.resolve()) if clips == "reference" else None
    return finish_set(building, out, files, codec=stamp, media_root=root), problems


def _is_other(building: Path, settings: dict[str, Any]) -> bool:
    """Whether an earlier pack of other calls was left there."""
    there = read_step(building).get("settings", {})
    return any(there.get(key) != value for key, value in settings.items())


@dataclass(frozen=True)
class PackWork:
    """See steps.Work: a chunk of calls is a parquet file."""

    folder: Path
    codes: Path
    out: Path
    stamp: CodecStamp
    clips: Clips

    def open(self):
        return self._chunk

    def _chunk(self, number: int, items: list[Item]) -> Iterable[Outcome]:
        samples, clip_paths, outcomes = [], {}, []
        for where, data in items:
            try:
                if isinstance(data, ConfigError):
                    raise data
                call = parse_entry(data, where=where, folder=self.folder)
                transcript = read_transcript(call)
                samples.append(self._sample(call, transcript))
                if self.clips == "reference":
                    clip_paths |= {
                        (call.id, place): path
                        for place, (visual, path) in enumerate(zip(transcript.visuals, transcript.paths, strict=True))
                        if visual.kind == "clip"
                    }
            except ConfigError as error:
                outcomes.append(Outcome(where, failed=str(error)))
        if samples:
            file = write_file(self.out / shard_name(number), samples, clip_paths=clip_paths)
            outcomes.append(Outcome(file.name, {"path": file.name, "file": file.model_dump()}))
        return outcomes

    def _sample(self, call: Call, transcript: Transcript) -> Sample:
        file = codes_file(self.codes, call.id)
        if not file.is_file():
            raise ManifestError(f"{call.id}: not encoded; run data_prep encode again")
        rows = torch.from_numpy(np.load(file, allow_pickle=False))
        meta = {key: value for key, value in transcript.meta.items() if key not in _NOT_KEPT}
        sample = Sample(call.id, rows, transcript.words, transcript.visuals, meta)
        check_codes(sample, self.stamp)
        return sample
