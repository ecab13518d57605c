"""Steps that are killed, split, and done by several: what comes out is what one undisturbed run makes."""

import json
import multiprocessing
import os
import random
import resource
import signal
import time
from dataclasses import dataclass

import pytest
from chain import make_records, run_chain, shards_of
from doubling import Doubling, doubled, numbers
from voices import needs_speech

from data_prep import encode as encode_module
from data_prep import speak as speak_module
from data_prep.__main__ import main
from data_prep.conversation import Manners
from data_prep.encode import encode
from data_prep.pack import pack
from data_prep.speak import SpeakSettings, speak
from data_prep.steps import How, chunks_of, read_chunk, read_step, run_step
from mmspeech.config import ConfigError

PRELOAD = ["scipy.signal", "pyloudnorm", "data_prep.speak", "data_prep.encode", "data_prep.pack"]
FORKS = multiprocessing.get_context("forkserver")  # forks of a process that has imported everything begin at once


@pytest.fixture(scope="module", autouse=True)
def forkserver():
    FORKS.set_forkserver_preload(PRELOAD)


def test_order_counts_and_what_is_left_out(tmp_path):
    data = numbers(tmp_path / "in", 30)
    (data / "manifest.jsonl").open("a").write('\n{"value": 30}\n{"torn\n\n')
    tally = doubled(data, tmp_path / "out")
    assert (tally.entries, tally.failed, dict(tally.dropped), tally.complete) == (28, 1, {"seven": 3}, True)
    values = [json.loads(line)["value"] for line in (tmp_path / "out" / "manifest.jsonl").open()]
    assert values == [2 * n for n in range(31) if n % 10 != 7]
    assert "manifest.jsonl:33: not JSON" in (tmp_path / "out" / "manifest.err").read_text()
    assert read_step(tmp_path / "out")["counts"] == {"entries": 28, "failed": 1, "dropped": {"seven": 3}}


def test_chunks_hold_every_line_once(tmp_path):
    data = numbers(tmp_path / "in", 10)
    for size in (1, 3, 10, 11):
        chunks = chunks_of(data, size)
        assert [item["value"] for chunk in chunks for _, item in read_chunk(chunk)] == list(range(10))
        assert [chunk.number for chunk in chunks] == list(range(-(-10 // size)))
        assert read_chunk(chunks[-1])[-1][0] == "manifest.jsonl:10"


def test_split_over_processes_and_shards_it_is_one(tmp_path):
    data = numbers(tmp_path / "in", 30)
    doubled(data, tmp_path / "one")
    doubled(data, tmp_path / "pool", how=How(jobs=2))
    for index in (2, 0, 1):
        tally = doubled(data, tmp_path / "shards", how=How(shard=(index, 3)))
        assert tally.complete == (index == 1) and (tmp_path / "shards" / "manifest.jsonl").exists() == (index == 1)
    made = [(tmp_path / name / "manifest.jsonl").read_bytes() for name in ("one", "pool", "shards")]
    assert made[0] == made[1] == made[2]


def test_a_worker_that_dies_is_replaced_and_nothing_is_done_twice(tmp_path):
    data = numbers(tmp_path / "in", 30)
    doubled(data, tmp_path / "one")
    (tmp_path / "out").mkdir()
    tally = doubled(data, tmp_path / "out", how=How(jobs=2), dies_at=13)
    assert (tmp_path / "out" / "died").exists() and tally.complete and tally.entries == 27
    assert (tmp_path / "out" / "manifest.jsonl").read_bytes() == (tmp_path / "one" / "manifest.jsonl").read_bytes()


@dataclass(frozen=True)
class Deadly(Doubling):
    """Dies every time."""

    def _chunk(self, number, items):
        os.kill(os.getpid(), signal.SIGKILL)


def test_workers_that_always_die_end_the_step_in_a_line(tmp_path):
    data = numbers(tmp_path / "in", 8)
    with pytest.raises(ConfigError, match="processes died 3 times, at the lines after manifest.jsonl:1"):
        run_step("d", data, tmp_path / "o", Deadly(tmp_path), settings={}, how=How(jobs=2), chunk_items=4)


def test_other_output_is_never_written_over(tmp_path):
    data = numbers(tmp_path / "in", 8)
    doubled(data, tmp_path / "out")
    (tmp_path / "in" / "manifest.jsonl").open("a").write('{"value": 9}\n')
    with pytest.raises(ConfigError, match="different input"):
        doubled(data, tmp_path / "out")
    with pytest.raises(ConfigError, match="not the output of a step"):
        doubled(data, tmp_path / "in")
    with pytest.raises(ConfigError, match="nothing in its manifest"):
        doubled(numbers(tmp_path / "none", 0), tmp_path / "new")


def _killed_again_and_again(tmp_path, small_checkpoint, *, kills: int) -> int:
    """Chains killed at random moments until there were so many kills; returns how many chains came to their end."""
    data = make_records(tmp_path / "in")
    began = time.monotonic()
    whole = FORKS.Process(target=run_chain, args=(data, small_checkpoint, tmp_path / "whole"))
    whole.start()
    whole.join()
    assert whole.exitcode == 0
    lasts_sec, rng = time.monotonic() - began, random.Random(0)
    expected, ended, done = shards_of(tmp_path / "whole"), 0, 0
    while done < kills:
        out = tmp_path / f"killed{ended}"
        process = FORKS.Process(target=run_chain, args=(data, small_checkpoint, out))
        process.start()
        process.join(rng.uniform(0.02, lasts_sec * 0.6))
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            done += 1
        if process.exitcode == 0:
            assert shards_of(out) == expected
            ended += 1
    last = FORKS.Process(target=run_chain, args=(data, small_checkpoint, tmp_path / f"killed{ended}"))
    last.start()
    last.join()
    assert last.exitcode == 0 and shards_of(tmp_path / f"killed{ended}") == expected
    return ended


@needs_speech
def test_a_chain_killed_at_random_moments_makes_the_same_shards(tmp_path, small_checkpoint):
    _killed_again_and_again(tmp_path, small_checkpoint, kills=5)


@pytest.mark.slow
@needs_speech
def test_a_chain_killed_at_30_random_moments_makes_the_same_shards(tmp_path, small_checkpoint):
    _killed_again_and_again(tmp_path, small_checkpoint, kills=30)


@needs_speech
def test_two_shards_of_a_chain_are_one(tmp_path, small_checkpoint, monkeypatch):
    """Each step in two halves, the second half first."""
    monkeypatch.setattr(speak_module, "CHUNK_ITEMS", 2)  # as run_chain sets them
    monkeypatch.setattr(encode_module, "CHUNK_ITEMS", 3)
    data, out = make_records(tmp_path / "in"), tmp_path / "two"
    run_chain(data, small_checkpoint, tmp_path / "whole")
    settings = SpeakSettings(voices="flite", manners=Manners(start_sec=(0.0, 0.2), end_sec=(0.1, 0.2)))
    for index in (1, 0):
        speak(data, out / "calls", settings, how=How(shard=(index, 2)))
    for index in (0, 1):
        encode(data=out / "calls", codec_dir=small_checkpoint, out=out / "codes", how=How(shard=(index, 2)))
    for index in (1, 0):
        how = How(shard=(index, 2))
        info, _ = pack(data=out / "calls", codes=out / "codes", out=out / "shards", how=how, calls_per_file=3)
        assert (info is None) == (index == 1)
    assert shards_of(out) == shards_of(tmp_path / "whole")


def _without_room(data, codec, out, limit_bytes):
    """As the chain, where no file may grow beyond a few bytes: to the program, a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
    code = main(["speak", "--data", str(data), "--out", str(out / "calls"), "--voices", "flite", "--jobs", "1"])
    os._exit(code)


@needs_speech
def test_a_full_disk_stops_the_step_cleanly_and_it_goes_on_when_there_is_room(tmp_path):
    data = make_records(tmp_path / "in", count=3)
    process = FORKS.Process(target=_without_room, args=(data, None, tmp_path / "full", 100_000))
    process.start()
    process.join()
    assert process.exitcode == 2
    left = [file for file in (tmp_path / "full").rglob("*") if file.suffix in (".wav", ".tmp", ".err")]
    assert left == [] and not (tmp_path / "full" / "calls" / "manifest.jsonl").exists()
    for name in ("full", "room"):
        arguments = ["--data", data, "--out", tmp_path / name / "calls", "--voices", "flite", "--jobs", "1"]
        assert main(["speak", *map(str, arguments)]) == 0
    made = [(tmp_path / name / "calls" / "manifest.jsonl").read_bytes() for name in ("full", "room")]
    assert made[0] == made[1]
