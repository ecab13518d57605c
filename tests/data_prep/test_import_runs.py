"""Imports from the hub, imports that are killed and gone on with, shards, and what cannot be imported."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from public_sets import outcomes, page, png, put

from data_prep.import_sets import CHUNK_ROWS, Seen, hub_rows, import_rows, import_set
from mmspeech.config import ConfigError


def test_rows_of_the_hub(tmp_path):
    import datasets

    shown = {"bytes": png(3), "path": "a.png"}
    rows = [page(1, image=shown), page(2, image=shown, answers=None), page(3, image={"bytes": b"GIF?", "path": None})]
    table = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image(decode=False))
    table.cast_column("image", datasets.Image()).to_parquet(tmp_path / "docvqa.parquet")
    stream = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "docvqa.parquet"), split="train", streaming=True
    )
    out = tmp_path / "out"
    how = {"folder": out, "media": None, "split": "test", "shard": (0, 1), "licence": "mine", "data": "hub:a/b"}
    import_rows("docvqa", hub_rows(stream), out, **how)
    records, others = outcomes("docvqa", out)
    name = hashlib.sha256(png(3)).hexdigest()
    assert records["1"].visuals[0].path == f"media/{name[:2]}/{name}.png" and records["1"].licence == "mine"
    assert (out / "media" / name[:2] / f"{name}.png").read_bytes() == png(3)
    assert json.loads((out / "step.json").read_text())["media_root"] == "."
    assert others["2"] == "no answer" and "expected a PNG, JPEG, GIF or WebP picture, got 4 bytes" in others["3"]
    assert [file.suffix for file in out.rglob("media/*/*")] == [".png"]
    with pytest.raises(ConfigError, match="are in its rows; leave it out"):
        import_rows("docvqa", hub_rows(stream), tmp_path / "other", **how | {"media": tmp_path})


@pytest.mark.parametrize(
    ("name", "data", "split", "message"),
    [
        ("coco", "hub:a/b", "train", "coco is not rows on the hub; download its files"),
        ("docvqa", "hub:alone", "test", "expected hub:OWNER/NAME or hub:OWNER/NAME:CONFIG"),
        ("docvqa", "hub:lmms-lab/DocVQA", "train", "docvqa has no split train on the hub; expected valid, test"),
        ("pixmo-cap", "hub:allenai/pixmo-cap", "train", "download them, and give their folder as --media"),
        ("docvqa", "nowhere", "test", "nowhere: not there; expected the files of docvqa, or hub:"),
        ("docvqa", ".", "dev", "no split 'dev'; expected train, valid, test"),
        ("webvid", ".", "test", "WebVid has no split test"),
    ],
)
def test_what_cannot_be_imported(tmp_path, name, data, split, message):
    with pytest.raises(ConfigError, match=message):
        import_set(name, data, tmp_path / "out", split=split)
    assert not (tmp_path / "out").exists()


def test_a_run_that_is_killed_and_shards_come_to_the_same(tmp_path):
    rows = [{"example_id": f"t{n % 1100}", "split": "train", "image_file": "a.jpg", "description": f"Number {n}."}
            for n in range(2 * CHUNK_ROWS + 200)]  # fmt: skip
    rows[3]["image_file"], rows[4]["description"] = "late.jpg", "half \ud83d"
    data = put(tmp_path / "docci_descriptions.jsonlines", rows)
    put(tmp_path / "images" / "a.jpg")

    def run(out: Path, **how):
        return import_set("docci", str(data), out, **how)

    def held(out: Path) -> dict:
        return {file.relative_to(out): file.read_bytes() for file in out.rglob("*") if file.is_file()}

    tally = run(tmp_path / "one")
    assert tally.complete and (tally.entries, tally.failed) == (1098, 2)
    assert tally.dropped == {"duplicate id": 2 * CHUNK_ROWS + 200 - 1100}  # some in another chunk than the first
    wanted, part = held(tmp_path / "one"), tmp_path / "one" / "parts" / "000002.jsonl"
    part.unlink(), (tmp_path / "one" / "manifest.jsonl").unlink()
    untouched = (tmp_path / "one" / "parts" / "000001.jsonl").stat().st_mtime_ns
    run(tmp_path / "one")
    assert held(tmp_path / "one") == wanted
    assert (tmp_path / "one" / "parts" / "000001.jsonl").stat().st_mtime_ns == untouched
    assert not run(tmp_path / "two", shard=(1, 2)).complete and not (tmp_path / "two" / "manifest.jsonl").exists()
    assert run(tmp_path / "two", shard=(0, 2)).complete and held(tmp_path / "two") == wanted
    shutil.copy(tmp_path / "images" / "a.jpg", tmp_path / "images" / "late.jpg")
    assert (again := run(tmp_path / "one")).failed == 1 and again.entries == 1099  # what failed is tried again
    with pytest.raises(ConfigError, match="gone: not there; expected the folder that the files of docci are in"):
        run(tmp_path / "three", media=tmp_path / "gone")
    with pytest.raises(ConfigError, match="holds the output of another run .different licence"):
        run(tmp_path / "one", licence="CC0")


def test_keys_are_remembered():
    seen, keys = Seen(), [str(number) for number in range(5000)]
    assert all(seen.add(key) for key in keys) and not any(seen.add(key) for key in keys) and seen.add("more")
