"""What importers share: reading large files a row at a time, checks of texts, and where pictures are.

An importer is a module of this folder with
- a docstring: what the set is, its public files, its licence, where it is;
- LICENCE: of the set, as it is told in records that have none of their own;
- rows(folder, split): its rows from local files, one at a time (a ConfigError in place of a row that is none);
- key(row): what makes a row one of its own, cheaply: the id follows from it, and a row with a key that came before is
  dropped;
- record(row, context): the record of a row. ConfigError: it is broken (and is tried again by the next run);
  DroppedError: a rule leaves it out;
- HUB_SPLITS, if its public form is (also) rows of the hub: our name of a split -> the name there;
- BY_URL = True, if it has addresses of pictures only, which the user downloads (by_url.py).
"""

import hashlib
import json
import sqlite3
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.files import inside, write_atomic
from data_prep.records import MOST_CHARACTERS, Record, parse_record, safe_id
from data_prep.steps import DroppedError
from mmspeech.config import ConfigError

Row = dict[str, Any]
MEDIA = "media"  # folder of pictures that came inside rows
_KINDS = ((b"\x89PNG\r\n\x1a\n", "png"), (b"\xff\xd8\xff", "jpg"), (b"GIF8", "gif"))
_BATCH_ROWS = 64  # of a parquet file at once: rows may hold pictures


@dataclass(frozen=True)
class Context:
    """Of one import. `out`: where pictures that come inside rows go; `licence`: the user's word, which goes before the
    set's and the row's own."""

    source: str
    split: str
    media_root: Path
    out: Path
    set_licence: str
    licence: str | None = None

    def find(self, *paths: Any) -> str:
        """The first of several places where a file may be. ConfigError that names the first when it is in none."""
        for path in paths:
            if not isinstance(path, str) or not path:
                raise ConfigError(f"expected the path of a file, got {_shown(path)}")
            if inside(self.media_root, path).is_file():
                return path
        raise ConfigError(f"{paths[0]}: no such file in {self.media_root}")

    def picture(self, value: Any, *others: str) -> dict[str, Any]:
        """A picture as a record holds it, from its path (or one of several) or from {"bytes", "path"} of a parquet row,
        which are saved."""
        if isinstance(value, dict) and value.get("bytes"):
            return {"path": self.save(value["bytes"])}
        return {"path": self.find(value["path"] if isinstance(value, dict) else value, *others)}

    def save(self, data: Any) -> str:
        """Write a picture under a name that follows from its bytes, once; returns its path."""
        if self.media_root != self.out:
            raise ConfigError("the pictures of this set are in its rows, not in files; leave --media out")
        ending = picture_kind(data)
        name = hashlib.sha256(data).hexdigest()
        file = self.out / MEDIA / name[:2] / f"{name}.{ending}"
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            # Under a name of its own first: two shards may save the same picture at once.
            own = file.with_name(f"{uuid.uuid4().hex}.part")
            write_atomic(own, data)
            own.replace(file)
        return file.relative_to(self.out).as_posix()

    def record(self, key: str, *, licence: str | None = None, **values: Any) -> Record:
        """A record of the set; `values` as a line of a manifest holds them."""
        own = {
            "id": safe_id(self.source, key),
            "source": self.source,
            "licence": self.licence or licence or self.set_licence,
            "split": self.split,
        }
        return parse_record(own | values, where=key)

    def asked(self, key: str, picture: dict[str, Any], question: Any, answer: Any, **meta: Any) -> Record:
        """A picture, a question about it by the user, and the model's answer."""
        turns = [{"speaker": "user", "text": text(question)}, {"speaker": "main", "text": text(answer)}]
        return self.record(key, visuals=[picture], turns=turns, meta=told(meta))


def picture_kind(data: Any) -> str:
    """png, jpg, gif or webp, by how the bytes begin. ConfigError for anything else."""
    if not isinstance(data, bytes):
        raise ConfigError(f"expected the bytes of a picture, got {_shown(data)}")
    for beginning, kind in _KINDS:
        if data.startswith(beginning):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    raise ConfigError(f"expected a PNG, JPEG, GIF or WebP picture, got {len(data)} bytes that begin with {data[:8]!r}")


def text(value: Any) -> str:
    """A text that may be said or trained on, without space around it. DroppedError when it is empty or too long."""
    if not isinstance(value, str):
        raise ConfigError(f"expected a text, got {_shown(value)}")
    value = value.strip()
    if not value:
        raise DroppedError("empty text")
    if len(value) > MOST_CHARACTERS:
        raise DroppedError("too long")
    return value


def field(row: Any, name: str, kind: type | tuple[type, ...] = str) -> Any:
    """What a row must have. ConfigError when it has not, or of another type."""
    if not isinstance(row, dict) or row.get(name) is None:
        raise ConfigError(f"no '{name}' in {_shown(row)}")
    value = row[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ConfigError(f"'{name}': got {_shown(value)}, expected {_named(kind)}")
    return value


def number(row: Any, name: str) -> str:
    """An id that is a number in some sets and a text in others."""
    return str(field(row, name, (int, str)))


def told(meta: dict[str, Any]) -> dict[str, Any]:
    """Metadata without what the set leaves open."""
    return {name: value for name, value in meta.items() if value not in (None, "", [], {})}


def short_hash(*values: Any) -> str:
    """16 hex digits that tell rows apart."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _named(kind: type | tuple[type, ...]) -> str:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    return " or ".join(one.__name__ for one in kinds)


def _shown(value: Any) -> str:
    if isinstance(value, dict):  # its values may be pictures
        return f"an object with {', '.join(map(str, value))[:60] or 'nothing'}"
    return f"{type(value).__name__} {str(value)[:60]!r}"


def files(folder: Path, *patterns: str) -> list[Path]:
    """The file itself, or those of a folder that the first pattern with any matches. ConfigError for none."""
    if folder.is_file():
        return [folder]
    for pattern in patterns:
        if found := sorted(file for file in folder.glob(pattern) if file.is_file()):
            return found
    raise ConfigError(f"{folder}: expected {' or '.join(patterns)} in this folder; found {_listed(folder)}")


def one_file(folder: Path, *patterns: str) -> Path:
    """The same where there is only one; ConfigError that says to name it when there are several."""
    found = files(folder, *patterns)
    if len(found) > 1:
        names = ", ".join(file.name for file in found[:8])
        raise ConfigError(f"{folder}: expected one file of this set, found {names}; give the file itself")
    return found[0]


def _listed(folder: Path) -> str:
    names = sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []
    return ", ".join(names[:8]) or "nothing"


def json_items(file: Path, path: str) -> Iterator[Any]:
    """The values at an ijson path of a JSON file, one at a time."""
    import ijson

    yield from _parsed(file, lambda opened: ijson.items(opened, path, use_float=True))


def json_pairs(file: Path, path: str = "") -> Iterator[tuple[str, Any]]:
    """(key, value) of an object in a JSON file, one at a time."""
    import ijson

    yield from _parsed(file, lambda opened: ijson.kvitems(opened, path, use_float=True))


def _parsed(file: Path, parse: Callable[[Any], Iterable[Any]]) -> Iterator[Any]:
    import ijson

    with file.open("rb") as opened:
        try:
            yield from parse(opened)
        except (ijson.JSONError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file}: not JSON ({error}); download it again") from error


def json_lines(file: Path) -> Iterator[Any]:
    """The values of a .jsonl, a ConfigError for a line that is not JSON."""
    with file.open("rb") as opened:
        for number, line in enumerate(opened, start=1):
            if not line.strip():
                continue
            try:
                yield json.loads(line)
            except ValueError as error:
                yield ConfigError(f"{file.name}:{number}: not JSON ({error})")


def json_or_lines(file: Path) -> Iterator[Any]:
    """The items of a .json that is a list, or of a .jsonl."""
    return json_lines(file) if file.suffix.startswith(".jsonl") else json_items(file, "item")


def parquet_rows(paths: list[Path]) -> Iterator[Row]:
    """The rows of parquet files."""
    import pyarrow
    import pyarrow.parquet

    for path in paths:
        try:
            for batch in pyarrow.parquet.ParquetFile(path).iter_batches(_BATCH_ROWS):
                yield from batch.to_pylist()
        except pyarrow.ArrowException as error:
            raise ConfigError(f"{path}: not a parquet file ({error}); download it again") from error


@contextmanager
def gathered(items: Iterable[Any], name: str) -> Iterator[Callable[[Any], list[Row]]]:
    """Items by their field `name`, for lists that are in one order in a file and needed in another: they wait on
    disk."""
    with tempfile.TemporaryDirectory() as folder:
        table = sqlite3.connect(f"{folder}/pairs.db")
        try:
            table.execute("PRAGMA journal_mode = OFF")
            table.execute("CREATE TABLE pairs (key TEXT, value TEXT)")
            lines = ((json.dumps(one.get(name)), json.dumps(one)) for one in items if isinstance(one, dict))
            table.executemany("INSERT INTO pairs VALUES (?, ?)", lines)
            table.execute("CREATE INDEX by_key ON pairs (key)")
            query = "SELECT value FROM pairs WHERE key = ? ORDER BY rowid"
            yield lambda key: [json.loads(value) for (value,) in table.execute(query, (json.dumps(key),))]
        finally:
            table.close()
