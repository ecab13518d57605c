"""What is counted of records, calls and shards, against hand-worked sets; the card, pushed to a hub on this machine."""

import json

import pytest
import soundfile
import torch
from PIL import Image

from data_prep.__main__ import main
from data_prep.card import card, push_set
from data_prep.records import Record, SaidRecord, SeenRecord, TextRecord, write_records
from data_prep.stats import Owners, items_of, stats
from mmspeech.config import ConfigError
from mmspeech.data.shards import CodecStamp, read_info, write_shards
from mmspeech.types import Sample, Visual, Word

STAMP = CodecStamp(hash="abc", num_codebooks=2, codebook_size=8, silence_codes=(0, 0))


def said(speaker, text, start_sec, end_sec, interrupted=False):
    times = {"start_sec": start_sec, "end_sec": end_sec, "interrupted": interrupted}
    return {"speaker": speaker, "text": text} | times


def calls(folder, *, split="train", colour="red", text="what is it", voice="anna"):
    """One call of 4 s: the user speaks from 0 to 1 s, the model from 0.8 to 2 s and from 3 to 3.5 s."""
    folder.mkdir()
    Image.new("RGB", (8, 8), colour).save(folder / "p.png")
    soundfile.write(folder / "c.wav", torch.zeros(4 * 24_000, 2).numpy(), 24_000)
    told = {
        "alignments": [
            ["w", [0.0, 1.0], "SPEAKER_USER"],
            ["v", [0.8, 2.0], "SPEAKER_MAIN"],
            ["x", [3.0, 3.5], "SPEAKER_MAIN"],
        ],
        "visuals": [{"kind": "image", "path": "p.png", "start_sec": 0.0}],
        "said": [said("user", text, 0.0, 1.0), said("main", "a red bus", 0.8, 2.0), said("main", "yes", 3.0, 3.5)],
        "voices": {"user": voice, "main": "m"},
        "source": "set",
        "licence": "CC0-1.0",
        "split": split,
        "meta": {"kind": "counts", "language": "en"},
    }
    (folder / "c.json").write_text(json.dumps(told))
    (folder / "manifest.jsonl").write_text('{"path": "c.wav", "duration": 4.0}\n')
    return folder


def test_a_call_by_hand(tmp_path):
    item = next(items_of(calls(tmp_path / "a")))
    assert item.numbers["seconds"] == [4.0] and item.numbers["turns"] == [3.0]
    assert item.numbers["words_per_turn"] == [3.0, 3.0, 1.0] and item.numbers["gap_sec"] == [pytest.approx(-0.2)]
    # Of 51 frames the user speaks in 0 to 12, the model in 10 to 25 and 37 to 43: both in 10, 11 and 12.
    assert item.numbers["user_share"] == [13 / 51] and item.numbers["main_share"] == [(16 + 7) / 51]
    assert item.numbers["overlap_share"] == [pytest.approx(3 / (13 + 23 - 3))]
    lines = "\n".join(stats([tmp_path / "a"], tmp_path / "out"))
    assert "1 items, 0.00 h" in lines and "kind: counts 1" in lines and "100.0% of turns begin before" in lines
    told = json.loads((tmp_path / "out" / "stats.json").read_text())
    assert told["counts"]["voice"] == {"anna": 1} and told["hours"] == pytest.approx(4 / 3600)
    assert Image.open(tmp_path / "out" / "stats.png").width > 800


def test_what_leaks_between_sets_is_counted(tmp_path, capsys):
    calls(tmp_path / "a")
    calls(tmp_path / "b", split="test", text="how many are there")
    calls(tmp_path / "c", split="test", colour="blue", voice="ben", text="What is it?")
    told = "\n".join(stats([tmp_path / "a", tmp_path / "b", tmp_path / "c"], None))
    assert "leakage, picture or clip: 1 of 2 stand in more than one split; 1 in a train and b test" in told
    assert "leakage, caller's voice: 1 of 2" in told
    assert (
        "leakage, text: 1 of 2 stand in more than one split; 1 in a train and c test" in told
    )  # but for case and marks
    assert main(["stats", "--data", str(tmp_path / "a"), "--data", str(tmp_path / "b")]) == 0
    assert "1 of 1 stand in more than one split" in capsys.readouterr().out
    assert main(["stats", "--data", str(tmp_path / "none")]) == 2


def test_records_and_shards_are_counted_too(tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "p.png")
    base = {"source": "s", "licence": "CC-BY-4.0", "visuals": (SeenRecord(path="p.png"),)}
    records = [
        Record(id="1", captions=(TextRecord(text="a red square"),), **base),
        Record(
            id="2", turns=tuple(SaidRecord(speaker=who, text="hi") for who in ("user", "main")), split="valid", **base
        ),
    ]
    write_records(tmp_path / "in", records, root=tmp_path)
    told = "\n".join(stats([tmp_path / "in"], None))
    assert "2 items" in told and "licence: CC-BY-4.0 2" in told and "picture or clip: 1 of 1 stand" in told
    words = [Word("a", 0.0, 0.2, "user"), Word("b", 0.3, 0.4)]
    sample = Sample("x", torch.zeros(4, 25, dtype=torch.int16), words, [Visual(b"png")], {"split": "test"})
    write_shards(tmp_path / "set", [sample], codec=STAMP)
    item = next(items_of(tmp_path / "set"))
    assert item.numbers["seconds"] == [2.0] and item.split == "test" and item.named["licence"] == ["unknown"]


def test_owners_of_many():
    owners = Owners()
    for number in range(3000):
        owners.add(f"{number % 1000}", "abc"[number // 1000] if number % 2 else "a")
    assert owners.leakage() == {"different": 1000, "in_several": 500, "a and b and c": 500}


def small_set(folder, licence="CC-BY-4.0"):
    samples = [
        Sample(str(n), torch.zeros(4, 25, dtype=torch.int16), [], [Visual(b"png")], {"licence": licence, "source": "s"})
        for n in range(3)
    ]
    return write_shards(folder, samples, codec=STAMP)


def test_the_card_names_sources_and_licences(tmp_path):
    told = card(small_set(tmp_path / "a"), "me/calls")
    assert "license: cc-by-4.0" in told and "| CC-BY-4.0 | 3 |" in told and "| s | 3 |" in told and "# calls" in told
    several = small_set(tmp_path / "b", licence="Own terms")
    assert "license: other" in card(several, "me/x") and 'license_name: "Own terms"' in card(several, "me/x")


def test_a_set_is_pushed_with_its_card(tmp_path, hub):
    small_set(tmp_path / "set")
    url = push_set(tmp_path / "set", "me/mine", public=False)
    assert "me/mine" in url and {"README.md", "shards.json", "shard-00000.parquet"} <= set(hub.files)
    assert hub.files["shard-00000.parquet"] == (tmp_path / "set" / "shard-00000.parquet").read_bytes()
    assert hub.created[0]["type"] == "dataset" and "private" in json.dumps(hub.created[0])
    assert read_info(tmp_path / "set").calls == 3  # it is still a set


def test_what_cannot_be_pushed(tmp_path):
    small_set(tmp_path / "set")
    with pytest.raises(ConfigError, match="expected OWNER/NAME"):
        push_set(tmp_path / "set", "mine", public=False)
    told = json.loads((tmp_path / "set" / "shards.json").read_text()) | {"media_root": "/somewhere"}
    (tmp_path / "set" / "shards.json").write_text(json.dumps(told))
    with pytest.raises(ConfigError, match="pack it again with --clips bytes"):
        push_set(tmp_path / "set", "me/mine", public=False)
