"""Shards: calls as parquet files beside `shards.json`, which says how to read them. One writer, one reader.

A set is a directory: `shard-00000.parquet` ... and `shards.json` (ShardSetInfo). The writer builds the whole set beside
its place and moves it there at the end, so a reader finds the old set or the new one, never half of either.
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmspeech.config import ConfigError, StrictModel, parse_config
from mmspeech.types import Sample, Visual, Word

SCHEMA_VERSION = 3
SIDECAR = "shards.json"
HUB = "hub:"


class ShardError(ConfigError):
    """A shard set that cannot be read or written; the message is one line that names the directory."""


class CodecStamp(StrictModel):
    """Which codec made the codes.

    `hash` is `mmspeech.checkpoint.codec_hash`; `silence_codes` [K] is what the codec makes of digital silence.
    """

    hash: str
    num_codebooks: int
    codebook_size: int
    silence_codes: tuple[int, ...]


class ShardFile(StrictModel):
    """One parquet file of the set. pictures: with clips. licences, sources: how many calls have which."""

    name: str
    calls: int
    frames: int
    pictures: int = 0
    licences: dict[str, int] = {}
    sources: dict[str, int] = {}


class ShardSetInfo(StrictModel):
    """What `shards.json` holds: the version, the codec and the counts (`pictures`: with clips).

    media_root: where clips lie that the calls only refer to (None: all are inside).
    """

    schema_version: int = SCHEMA_VERSION
    codec: CodecStamp
    calls: int
    frames: int
    pictures: int
    files: tuple[ShardFile, ...]
    media_root: str | None = None

    @property
    def licences(self) -> dict[str, int]:
        """How many calls are under which licence; calls that name none are "unknown"."""
        return _summed(file.licences for file in self.files)

    @property
    def sources(self) -> dict[str, int]:
        """How many calls come from which set."""
        return _summed(file.sources for file in self.files)


class ShardWriter:
    """Writes samples into a new set at `path`; use as a context manager. An exception inside leaves no trace."""

    def __init__(self, path: str | Path, *, codec: CodecStamp, calls_per_file: int = 512):
        self.path = Path(path)
        check_place(self.path)
        self.codec = codec
        self.calls_per_file = calls_per_file
        self._building = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        self._samples: list[Sample] = []
        self._files: list[ShardFile] = []

    def __enter__(self) -> "ShardWriter":
        shutil.rmtree(self._building, ignore_errors=True)
        self._building.mkdir(parents=True)
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is None:
            self._flush()
            finish_set(self._building, self.path, self._files, codec=self.codec)
        shutil.rmtree(self._building, ignore_errors=True)

    def write(self, sample: Sample) -> None:
        """Append one call. Its codes are [2K, T] with values -1 .. codebook_size - 1."""
        check_codes(sample, self.codec)
        self._samples.append(sample)
        if len(self._samples) >= self.calls_per_file:
            self._flush()

    def _flush(self) -> None:
        if self._samples:
            self._files.append(write_file(self._building / shard_name(len(self._files)), self._samples))
            self._samples = []


def shard_name(number: int) -> str:
    """The name of the set's parquet file of that number."""
    return f"shard-{number:05d}.parquet"


def check_place(path: Path) -> None:
    """ShardError where there is something that is no shard set: it would be lost."""
    if path.is_file() or (path.is_dir() and any(path.iterdir()) and not _is_set(path)):
        raise ShardError(f"{path}: not empty and not a shard set; expected a new folder or an earlier set")


def check_codes(sample: Sample, codec: CodecStamp) -> None:
    """ShardError for codes that are not [2K, T] of that codec."""
    codes, rows = sample.codes, 2 * codec.num_codebooks
    if codes.ndim != 2 or codes.shape[0] != rows or not codes.shape[1]:
        raise ShardError(f"call {sample.id}: codes of shape {tuple(codes.shape)}, expected [{rows}, T] with T > 0")
    if int(codes.min()) < -1 or int(codes.max()) >= codec.codebook_size:
        raise ShardError(f"call {sample.id}: codes outside -1 .. {codec.codebook_size - 1}")


def write_file(path: Path, samples: list[Sample], *, clip_paths: dict[tuple[str, int], str] | None = None) -> ShardFile:
    """Write calls (see check_codes) as one parquet file, whole or not at all; returns what shards.json says of it.

    clip_paths: for clips that are only referred to, (id of the call, number of its visual) -> path under media_root.
    """
    import pyarrow
    import pyarrow.parquet

    rows = [_to_row(sample, clip_paths or {}) for sample in samples]
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        table = pyarrow.Table.from_pylist(rows, schema=_arrow_schema())
        pyarrow.parquet.write_table(table, temporary, compression="zstd")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return ShardFile(
        name=path.name,
        calls=len(rows),
        frames=sum(row["num_frames"] for row in rows),
        pictures=sum(len(sample.visuals) for sample in samples),
        licences=dict(sorted(Counter(str(sample.meta.get("licence", "unknown")) for sample in samples).items())),
        sources=dict(sorted(Counter(str(sample.meta.get("source", "unknown")) for sample in samples).items())),
    )


def finish_set(
    building: Path, path: Path, files: Sequence[ShardFile], *, codec: CodecStamp, media_root: str | None = None
) -> ShardSetInfo:
    """Make the folder `building`, which holds those files, the set at `path`; an earlier set there is replaced."""
    if not files:
        raise ShardError(f"{path}: no call was written; expected at least one")
    info = ShardSetInfo(
        codec=codec,
        calls=sum(file.calls for file in files),
        frames=sum(file.frames for file in files),
        pictures=sum(file.pictures for file in files),
        files=tuple(files),
        media_root=media_root,
    )
    (building / SIDECAR).write_text(info.model_dump_json(indent=1), encoding="utf-8")
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    if path.exists():
        path.rename(old)
    building.rename(path)
    shutil.rmtree(old, ignore_errors=True)
    return info


def _summed(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(sorted(total.items()))


class ShardSet:
    """Random access to the calls of a set; memory-mapped, so that it may be larger than memory.

    `info`: ShardSetInfo. `num_frames` [calls] int64: length of each call. `codec_hash`, when given, must be the set's.
    """

    def __init__(self, path: str | Path, *, codec_hash: str | None = None):
        self.path = Path(path)
        self.info = read_info(self.path)
        if codec_hash is not None and codec_hash != self.info.codec.hash:
            raise ShardError(
                f"{self.path}: encoded with codec {self.info.codec.hash}, but the model's codec is {codec_hash}; "
                "encode and pack again with the model's codec"
            )
        self._table = _open_table(self.path, self.info)
        self.num_frames = np.concatenate([chunk.to_numpy() for chunk in self._table.data.column("num_frames").chunks])
        if len(self.num_frames) != self.info.calls:
            raise ShardError(
                f"{self.path}: {len(self.num_frames)} calls found, {SIDECAR} promises {self.info.calls}; pack again"
            )

    def __len__(self) -> int:
        return self.info.calls

    def ids(self) -> Iterator[str]:
        """The ids of the calls, in order."""
        for chunk in self._table.data.column("id").chunks:
            yield from chunk.to_pylist()

    def __getitem__(self, index: int) -> Sample:
        """Call number `index`; raises ShardError for one whose content cannot be read."""
        row = self._table[int(index)]
        try:
            return _to_sample(row, self.info, self.path)
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise ShardError(f"{self.path}: call {row.get('id')!r} is broken ({error}); pack again") from error


def read_info(path: str | Path) -> ShardSetInfo:
    """The sidecar of the set at `path`; raises ShardError when it is absent, broken or of another version."""
    path = Path(path)
    sidecar = path / SIDECAR
    if not sidecar.is_file():
        raise ShardError(f"{path}: no shard set here (no {SIDECAR}); expected the output folder of data_prep pack")
    try:
        data = json.loads(sidecar.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ShardError(f"{sidecar}: not valid JSON ({error}); pack again") from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise ShardError(
            f"{path}: shard schema version {version!r}, this program reads {SCHEMA_VERSION}; "
            "pack the calls again (python -m data_prep pack; their codes can stay)"
        )
    info = parse_config(ShardSetInfo, data, source=str(sidecar))
    missing = [file.name for file in info.files if not (path / file.name).is_file()]
    if missing:
        raise ShardError(f"{path}: {len(missing)} files of the set are missing (first: {missing[0]}); copy it again")
    return info


def fetch_set(hub_path: str) -> Path:
    """The local copy of a shard set on the hub: `hub:OWNER/NAME[/FOLDER]`, a dataset repository or a folder of one.

    What was fetched before is not fetched again. Raises ShardError.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    owner, _, rest = hub_path.removeprefix(HUB).partition("/")
    name, _, folder = rest.partition("/")
    if not owner or not name:
        raise ShardError(f"{hub_path}: expected {HUB}OWNER/NAME or {HUB}OWNER/NAME/FOLDER")
    wanted = f"{folder}/*" if folder else None
    try:
        copy = snapshot_download(f"{owner}/{name}", repo_type="dataset", allow_patterns=wanted)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ShardError(f"{hub_path}: not to be had from the hub ({reason})") from error
    return Path(copy) / folder


def write_shards(path: str | Path, samples: Iterable[Sample], *, codec: CodecStamp) -> ShardSetInfo:
    """Write `samples` as one set and return its sidecar."""
    with ShardWriter(path, codec=codec) as writer:
        for sample in samples:
            writer.write(sample)
    return read_info(path)


def speaker_rows(codes: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [2K, T] -> the model's rows [K, T] and the user's rows [K, T]."""
    half = codes.shape[0] // 2
    return codes[:half], codes[half:]


def _is_set(path: Path) -> bool:
    return (path / SIDECAR).is_file()


def _to_row(sample: Sample, clip_paths: dict[tuple[str, int], str]) -> dict[str, Any]:
    words = [(w.text, round(w.start_sec, 4), round(w.end_sec, 4), w.speaker) for w in sample.words]
    visuals = [asdict(visual) | {"path": None} for visual in sample.visuals]
    for number, visual in enumerate(visuals):
        if (path := clip_paths.get((sample.id, number))) is not None:
            visual |= {"data": b"", "path": path}
    return {
        "id": sample.id,
        "codes": sample.codes.to(torch.int16).contiguous().numpy().astype("<i2").tobytes(),
        "num_frames": sample.codes.shape[1],
        "words": json.dumps(words, ensure_ascii=False),
        "visuals": visuals,
        "meta": json.dumps(sample.meta, ensure_ascii=False),
    }


def _to_sample(row: dict[str, Any], info: ShardSetInfo, folder: Path) -> Sample:
    codec = info.codec
    codes = np.frombuffer(row["codes"], dtype="<i2").reshape(2 * codec.num_codebooks, -1)
    if codes.shape[1] != row["num_frames"] or not codes.shape[1]:
        raise ValueError(f"{codes.shape[1]} frames, expected {row['num_frames']} and at least 1")
    if codes.min() < -1 or codes.max() >= codec.codebook_size:
        raise ValueError(f"codes outside -1 .. {codec.codebook_size - 1}")
    return Sample(
        id=row["id"],
        codes=torch.from_numpy(codes.copy()),
        words=[Word(*word) for word in json.loads(row["words"])],
        visuals=[_to_visual(visual, info, folder) for visual in row["visuals"]],
        meta=json.loads(row["meta"]),
    )


def _to_visual(row: dict[str, Any], info: ShardSetInfo, folder: Path) -> Visual:
    path = row.pop("path")
    if path is not None:
        row["data"] = (folder / str(info.media_root) / path).read_bytes()
    return Visual(**row)


def _arrow_schema():
    import pyarrow as pa

    times = [("start_sec", pa.float64()), ("kind", pa.string()), ("fps", pa.float64())]
    visual = pa.struct([("data", pa.large_binary()), *times, ("path", pa.string())])
    return pa.schema(
        [
            ("id", pa.string()),
            ("codes", pa.large_binary()),
            ("num_frames", pa.int64()),
            ("words", pa.large_string()),
            ("visuals", pa.list_(visual)),
            ("meta", pa.large_string()),
        ]
    )


def _open_table(path: Path, info: ShardSetInfo):
    import datasets
    import pyarrow

    files = [str(path / file.name) for file in info.files]
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset("parquet", data_files=files, split="train")
    except (datasets.exceptions.DatasetGenerationError, pyarrow.ArrowInvalid, OSError) as error:
        raise ShardError(
            f"{path}: a parquet file cannot be read ({' '.join(str(error).split())}); pack again"
        ) from error
    finally:
        if shown:
            datasets.enable_progress_bars()
