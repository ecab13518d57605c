"""Public sets as records: read in order, a row at a time, in chunks that are done or not (data_prep/steps.py).

All shards read all rows, so that each knows which came before; only those of its own chunks become records.
"""

import hashlib
import itertools
import json
import re
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from data_prep.importers import find
from data_prep.importers.base import MEDIA, Context
from data_prep.records import SPLITS, safe_id
from data_prep.steps import Outcome, Tally, attempt, claim, finish, read_part, write_part
from mmspeech.config import ConfigError

if TYPE_CHECKING:
    from datasets import IterableDataset

CHUNK_ROWS = 512
HUB = "hub:"
_MOST_REASON = 500  # characters: some libraries quote all that they were given
_HUB_NAME = re.compile(r"([\w.\-]+/[\w.\-]+)(?::([\w.\-]+))?")


def import_set(name: str, data: str, out: Path, *, media: Path | None = None, split: str = "train",
               shard: tuple[int, int] = (0, 1), licence: str | None = None) -> Tally:  # fmt: skip
    """The set `name`, from a local folder or file, or from hub:OWNER/NAME[:CONFIG], as records in `out`.

    media: the folder that the pictures, clips or recordings are in, where that is not the folder of the set; licence:
    what the records say instead of what the importer knows. Raises ConfigError for data that are not the set's.
    """
    importer = find(name)
    if split not in SPLITS:
        raise ConfigError(f"no split '{split}'; expected {', '.join(SPLITS)}")
    by_url = media is None and getattr(importer, "BY_URL", False)
    if data.startswith(HUB):
        if by_url:
            raise ConfigError(f"{name} has addresses of pictures only; download them, and give their folder as --media")
        rows, folder = hub_rows(open_hub(name, data, split)), out
    else:
        path = Path(data).resolve()
        if not path.exists():
            raise ConfigError(f"{path}: not there; expected the files of {name}, or {HUB}OWNER/NAME")
        rows, folder, data = importer.rows(path, split), path if path.is_dir() else path.parent, str(path)
    media = folder / MEDIA if by_url else media
    return import_rows(
        name, rows, out, folder=folder, media=media, split=split, shard=shard, licence=licence, data=data
    )


def import_rows(name: str, rows: Iterable[Any], out: Path, *, folder: Path, media: Path | None, split: str,
                shard: tuple[int, int], licence: str | None, data: str) -> Tally:  # fmt: skip
    """The same, of rows from wherever. `data`: where from, in words, which the output remembers."""
    importer, out, rows = find(name), out.resolve(), iter(rows)
    first = list(itertools.islice(rows, 1))  # before anything is written: files may be missing or broken
    if not first:
        raise ConfigError(f"{data}: no rows of split {split}; is it the whole of {name}?")
    if media is not None and not media.is_dir():
        raise ConfigError(f"{media}: not there; expected the folder that the files of {name} are in (--media)")
    packed = _holds_pictures(first[0])
    if packed and media is not None:
        raise ConfigError(f"--media {media}: the pictures of {data} are in its rows; leave it out")
    root = out if packed else (media or folder).resolve()
    context = Context(name, split, root, out, importer.LICENCE, licence)
    settings = {"set": name, "data": data, "split": split, "licence": licence, "chunk_rows": CHUNK_ROWS}
    claim(out, "import", settings, told={"media_root": "." if root == out else str(root)})
    seen, count = Seen(), 0
    for number, chunk in _chunks(itertools.chain(first, rows)):
        mine = number % shard[1] == shard[0] and _is_open(out, number)
        outcomes = []
        for place, row in chunk:
            key = _key(importer, row)
            again = key is not None and not seen.add(key)
            if mine:
                named = f"{name}/row-{place}" if key is None else safe_id(name, key)
                outcomes.append(_line(_outcome(importer, row, named, context, again=again)))
        if mine:
            write_part(out, number, outcomes)
        count += 1
    return finish(out, count)


def open_hub(name: str, data: str, split: str) -> "IterableDataset":
    """The rows of hub:OWNER/NAME[:CONFIG], as a stream. ConfigError where the set has no rows there."""
    import datasets

    splits = getattr(find(name), "HUB_SPLITS", None)
    if splits is None:
        raise ConfigError(f"{name} is not rows on the hub; download its files and give their folder")
    found = _HUB_NAME.fullmatch(data.removeprefix(HUB))
    if not found:
        raise ConfigError(f"{data}: expected {HUB}OWNER/NAME or {HUB}OWNER/NAME:CONFIG")
    if split not in splits:
        raise ConfigError(f"{name} has no split {split} on the hub; expected {', '.join(splits)}")
    try:
        return datasets.load_dataset(found[1], found[2], split=splits[split], streaming=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{data}: {' '.join(str(error).split())[:300]}") from error


def hub_rows(dataset: "IterableDataset") -> Iterator[dict[str, Any]]:
    """Rows with pictures as the bytes that they are, not as what PIL makes of them."""
    import datasets

    for name, feature in (dataset.features or {}).items():
        if isinstance(feature, datasets.Image):
            dataset = dataset.cast_column(name, datasets.Image(decode=False))
    yield from dataset


class Seen:
    """Which keys came before, in 8 bytes of a hash for each (the table is half empty): sets have tens of millions."""

    def __init__(self):
        self._table, self._count = array("Q", bytes(8 << 10)), 0

    def add(self, key: str) -> bool:
        """Whether it is new."""
        if 2 * self._count >= len(self._table):
            old, self._table = self._table, array("Q", bytes(16 * len(self._table)))
            for number in filter(None, old):
                self._table[self._place(number)] = number
        digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        number = int.from_bytes(digest) or 1  # 0 is a free place
        place = self._place(number)
        new = not self._table[place]
        self._table[place] = number
        self._count += new
        return new

    def _place(self, number: int) -> int:
        """Where it is, or is to be."""
        size = len(self._table)
        place = number % size
        while self._table[place] not in (0, number):
            place = (place + 1) % size
        return place


def _chunks(rows: Iterable[Any]) -> Iterator[tuple[int, Iterator[tuple[int, Any]]]]:
    """(number, rows with their place in the set), one row in memory at a time; a chunk is to be read to its end."""
    placed = enumerate(rows)
    for number in itertools.count():
        first = list(itertools.islice(placed, 1))
        if not first:
            return
        yield number, itertools.chain(first, itertools.islice(placed, CHUNK_ROWS - 1))


def _holds_pictures(row: Any) -> bool:
    values = row.values() if isinstance(row, dict) else ()
    return any(isinstance(one.get("bytes") if isinstance(one, dict) else one, bytes) for one in values)


def _is_open(out: Path, number: int) -> bool:
    """Not done, or with something in it to try again."""
    part = read_part(out, number)
    return part is None or any("failed" in one for one in part)


def _key(importer: ModuleType, row: Any) -> str | None:
    """None for a row that is too broken to have one: what is wrong is said when its record is made."""
    try:
        return importer.key(row)
    except (ConfigError, KeyError, TypeError, AttributeError, ValueError):
        return None


def _outcome(importer: ModuleType, row: Any, named: str, context: Context, *, again: bool) -> Outcome:
    if again:
        return Outcome(named, dropped="duplicate id")

    def make() -> dict[str, Any]:
        if isinstance(row, ConfigError):
            raise row
        if not isinstance(row, dict):
            raise ConfigError(f"expected a row with named fields, got {str(row)[:60]}")
        entry = importer.record(row, context).line()
        # What a manifest cannot hold (half a character, not-a-number) is a fault of this row, not of the whole set.
        json.dumps(entry, ensure_ascii=False, allow_nan=False).encode()
        return entry

    return attempt(named, make)


def _line(outcome: Outcome) -> dict[str, Any]:
    if outcome.entry is not None:
        return {"entry": outcome.entry}
    if outcome.dropped:
        return {"id": outcome.id, "dropped": outcome.dropped}
    # A reason may quote what is no valid text.
    return {"id": outcome.id, "failed": outcome.failed[:_MOST_REASON].encode("utf-8", "backslashreplace").decode()}
