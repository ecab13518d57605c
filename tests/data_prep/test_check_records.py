"""Faults of records and of the calls made of them; a million records in little memory."""

import json
import time
import tracemalloc

import pytest
from PIL import Image

from data_prep.__main__ import main
from data_prep.check import MOST_FAULTS, check
from data_prep.check_records import said_faults
from data_prep.records import Record, write_records
from mmspeech.types import Word


def write_lines(folder, lines):
    folder.mkdir()
    with (folder / "manifest.jsonl").open("w") as opened:
        opened.writelines(json.dumps(line) + "\n" for line in lines)
    return folder


def many(count):
    for number in range(count):
        turns = [{"speaker": "user", "text": f"what is number {number}"}, {"speaker": "main", "text": "a red bus"}]
        yield {"id": f"s/{number}", "source": "s", "licence": "CC0-1.0", "turns": turns}


def test_every_fault_of_a_record_is_named(tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "p.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    (tmp_path / "bad.wav").write_bytes(b"no sound")
    base = {"source": "s", "licence": "x"}
    user, main_turn = {"speaker": "user", "text": "hi"}, {"speaker": "main", "text": "hi"}
    lines = [
        {"id": "good", **base, "visuals": [{"path": "p.png"}], "turns": [user, main_turn]},
        {"id": "gone", **base, "visuals": [{"path": "gone.png"}]},
        {"id": "torn", **base, "visuals": [{"path": "bad.png"}]},
        {"id": "out", **base, "visuals": [{"path": "../p.png"}]},
        {"id": "deaf", **base, "audio": "bad.wav"},
        {"id": "alone", **base, "turns": [user]},
        {"id": "back", **base, "turns": [user | {"start_sec": 3.0}, main_turn, user | {"start_sec": 1.0}]},
        {"id": "late", **base, "captions": [{"text": "a", "start_sec": 3.0, "end_sec": 2.0}]},
        {"id": "a b", **base},
        {"id": "more", **base, "colour": "red"},
        {"id": "good", **base},
        {"source": "s"},
    ]
    write_records(tmp_path / "in", [Record(id="x", source="s", licence="x")], root=tmp_path)
    with (tmp_path / "in" / "manifest.jsonl").open("w") as opened:
        opened.writelines(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "in" / "manifest.err").write_text("lost: it was broken\n")
    told = "\n".join(check(tmp_path / "in").faults)
    for number, why in ((2, "gone.png is not there"), (3, "bad.png"), (4, "leads out of"), (5, "bad.wav"),
                        (6, "the model says nothing"), (7, "not in order"), (8, "before it begins"),
                        (9, "expected letters"), (10, "colour"), (11, "good stands in the manifest twice"),
                        (12, "expected an object with")):  # fmt: skip
        assert any(f"jsonl:{number}: " in line and why in line for line in told.splitlines()), (number, told)
    assert "manifest.jsonl:1: good stands" in told and "lost: it was broken" in told
    assert main(["check", "--data", str(tmp_path / "in")]) == 1


def test_what_a_call_tells_of_its_turns():
    words = [Word("A", 0.0, 0.2), Word("red,", 0.2, 0.4), Word("bus 42", 0.5, 0.8), Word("hm", 0.1, 0.3, "user")]
    turn = {"speaker": "main", "text": "A red, bus 42", "start_sec": 0.0, "end_sec": 0.8, "interrupted": False}
    assert list(said_faults([turn], words, 1.0)) == []
    assert "lasts from 0.0 to 2.0" in next(said_faults([turn | {"end_sec": 2.0}], words, 1.0))
    assert "not among the words of user" in next(said_faults([turn | {"speaker": "user"}], words, 1.0))
    assert list(said_faults([turn | {"text": "A green", "interrupted": True}], words, 1.0)) == []


def test_faults_are_counted_and_only_the_first_told(tmp_path, capsys):
    data = write_lines(tmp_path / "in", ({"id": f"s/{n}", "source": "s"} for n in range(MOST_FAULTS + 50)))
    report = check(data)
    assert report.num_faults == MOST_FAULTS + 50 and len(report.faults) == MOST_FAULTS
    assert main(["check", "--data", str(data)]) == 1
    assert "and 50 more" in capsys.readouterr().out


def peak_bytes(data, count):
    tracemalloc.start()
    report = check(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert report.entries == count and not report.faults
    return peak


def test_memory_does_not_grow_with_the_manifest(tmp_path):
    few, more = (peak_bytes(write_lines(tmp_path / str(n), many(n)), n) for n in (2_000, 12_000))
    assert more - few < 1_000_000  # eight bytes, several times over while they are sorted


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_million_records_are_checked_and_listed(tmp_path, capsys):
    import resource

    data = write_lines(tmp_path / "in", many(1_000_000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    assert main(["check", "--data", str(data)]) == 0
    checked = time.monotonic()
    assert main(["stats", "--data", str(data)]) == 0
    listed = time.monotonic()
    grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert "1000000 items" in capsys.readouterr().out
    with capsys.disabled():
        spent = f"checked in {checked - began:.0f} s, listed in {listed - checked:.0f} s"
        print(f"\n1,000,000 records: {spent}, {grown_mb:.0f} MB more")
    assert grown_mb < 400
