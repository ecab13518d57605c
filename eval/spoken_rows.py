"""Parquet files with a recording in each row, as sets of spoken questions lie on the hub: gigabytes, of which only the
words are read at once and each sound when it is needed."""

import io
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from mmspeech.audio.waveform import resample
from mmspeech.config import ConfigError
from mmspeech.frames import SAMPLE_RATE_HZ


class Place(NamedTuple):
    """Where a recording is."""

    file: Path
    group: int
    row: int
    column: str


def read_rows(file: Path, *, needed: set[str], column: str) -> Iterator[tuple[dict[str, Any], Place]]:
    """Every row without its sounds, and where the sound in `column` is. ConfigError for a file of another form."""
    import pyarrow
    import pyarrow.parquet

    try:
        opened = pyarrow.parquet.ParquetFile(file)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ConfigError(f"{file}: not a parquet file ({error}); download it again") from error
    names = opened.schema_arrow.names
    if missing := (needed | {column}) - set(names):
        raise ConfigError(f"{file}: no column {', '.join(sorted(missing))}; expected the set as it is on the hub")
    columns = [name for name in names if not name.endswith("audio")]
    for group in range(opened.num_row_groups):
        for number, row in enumerate(opened.read_row_group(group, columns=columns).to_pylist()):
            yield row, Place(file, group, number, column)


def read_sound(place: Place) -> np.ndarray:
    """A recording, [N] float32 at 24 kHz. ConfigError when it cannot be read."""
    import soundfile

    try:
        held = _sounds(place.file, place.group, place.column)[place.row]["bytes"]
        wave, rate_hz = soundfile.read(io.BytesIO(held), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, TypeError, KeyError) as error:
        raise ConfigError(f"{place.file}, group {place.group}, row {place.row}: no readable sound ({error})") from error
    return resample(torch.from_numpy(wave.mean(axis=1, keepdims=True).T.copy()), rate_hz, SAMPLE_RATE_HZ)[0].numpy()


@lru_cache(maxsize=4)
def _sounds(file: Path, group: int, column: str) -> list[Any]:
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(file).read_row_group(group, columns=[column]).column(column).to_pylist()
