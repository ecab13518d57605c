"""Shards: what is written is read; other versions and codecs are refused; a set appears whole or not at all."""

import json
import os

import pytest
import torch

from mmspeech.data.shards import (
    SIDECAR,
    CodecStamp,
    ShardError,
    ShardSet,
    ShardWriter,
    fetch_set,
    read_info,
    write_shards,
)
from mmspeech.types import Sample, Visual, Word

STAMP = CodecStamp(hash="0123456789abcdef", num_codebooks=2, codebook_size=16, silence_codes=(3, 5))


def make_samples(count: int, seed: int = 0) -> list[Sample]:
    generator = torch.Generator().manual_seed(seed)
    return [
        Sample(
            f"folder/call{i}",
            torch.randint(-1, 16, (4, 5 + i), generator=generator).to(torch.int16),
            [Word("été", 0.1, 0.35, "user"), Word("red", 0.4, 0.7)],
            [Visual(os.urandom(50 + i), 0.25), Visual(os.urandom(9), 1.5, "clip", 4.0)][: i % 3],
            {"turns": [{"question": "what?"}], "voice": i},
        )
        for i in range(count)
    ]


def test_round_trip(tmp_path):
    samples = make_samples(7)
    with ShardWriter(tmp_path / "set", codec=STAMP, calls_per_file=3) as writer:
        for sample in samples:
            writer.write(sample)
    shards = ShardSet(tmp_path / "set", codec_hash=STAMP.hash)
    assert len(shards) == 7 and len(shards.info.files) == 3
    assert shards.info.frames == sum(range(5, 12)) and shards.info.pictures == 6
    assert shards.num_frames.tolist() == [5 + i for i in range(7)]
    for index in (6, 0, 3, 1):
        got, expected = shards[index], samples[index]
        assert torch.equal(got.codes, expected.codes)
        assert (got.id, got.words, got.visuals, got.meta) == (
            expected.id,
            expected.words,
            expected.visuals,
            expected.meta,
        )


def test_another_set_replaces_the_first_and_leaves_nothing_else(tmp_path):
    write_shards(tmp_path / "set", make_samples(5), codec=STAMP)
    assert ShardSet(tmp_path / "set")[0].id == "folder/call0"
    write_shards(tmp_path / "set", make_samples(2, seed=9)[1:], codec=STAMP)
    shards = ShardSet(tmp_path / "set")
    assert len(shards) == 1 and shards[0].id == "folder/call1"
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def test_a_failure_while_writing_keeps_the_old_set(tmp_path):
    write_shards(tmp_path / "set", make_samples(3), codec=STAMP)
    with pytest.raises(ShardError, match="codes outside"), ShardWriter(tmp_path / "set", codec=STAMP) as writer:
        writer.write(make_samples(1)[0])
        writer.write(Sample("bad", torch.full((4, 3), 16), []))
    assert read_info(tmp_path / "set").calls == 3
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def test_other_codec_is_refused_by_name(tmp_path):
    write_shards(tmp_path / "set", make_samples(1), codec=STAMP)
    with pytest.raises(ShardError, match="codec 0123456789abcdef.*fedcba9876543210"):
        ShardSet(tmp_path / "set", codec_hash="fedcba9876543210")


def _edit(folder, changes):
    data = json.loads((folder / SIDECAR).read_text()) | changes
    (folder / SIDECAR).write_text(json.dumps(data))


@pytest.mark.parametrize("version", [1, 2, None])
def test_other_version_is_refused_by_name(tmp_path, version):
    write_shards(tmp_path / "set", make_samples(1), codec=STAMP)
    _edit(tmp_path / "set", {"schema_version": version})
    with pytest.raises(ShardError, match=f"schema version {version}, this program reads 3; pack the calls again"):
        ShardSet(tmp_path / "set")


def test_broken_sets_are_refused_in_one_line(tmp_path):
    with pytest.raises(ShardError, match="no shard set here"):
        ShardSet(tmp_path / "nothing")
    folder = tmp_path / "set"
    write_shards(folder, make_samples(2), codec=STAMP)
    file = folder / "shard-00000.parquet"
    content = file.read_bytes()
    file.write_bytes(content[:100])
    with pytest.raises(ShardError, match="cannot be read"):
        ShardSet(folder)
    file.unlink()
    with pytest.raises(ShardError, match="1 files of the set are missing"):
        ShardSet(folder)
    (folder / SIDECAR).write_text("{")
    with pytest.raises(ShardError, match="not valid JSON"):
        ShardSet(folder)


def test_writer_refuses_foreign_folders_wrong_shapes_and_empty_sets(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(ShardError, match="not empty and not a shard set"):
        ShardWriter(tmp_path / "home", codec=STAMP)
    with pytest.raises(ShardError, match=r"expected \[4, T\]"):
        write_shards(tmp_path / "set", [Sample("x", torch.zeros(3, 4), [])], codec=STAMP)
    with pytest.raises(ShardError, match="no call was written"):
        write_shards(tmp_path / "set", [], codec=STAMP)
    assert not (tmp_path / "set").exists()


def test_a_set_of_the_hub_is_a_folder_of_a_dataset(tmp_path, monkeypatch):
    asked = []

    def download(repository, **options):
        asked.append((repository, options))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert fetch_set("hub:someone/calls/shards/train") == tmp_path / "shards/train"
    assert fetch_set("hub:someone/calls") == tmp_path
    kind = {"repo_type": "dataset"}
    assert asked[0] == ("someone/calls", kind | {"allow_patterns": "shards/train/*"})
    assert asked[1] == ("someone/calls", kind | {"allow_patterns": None})
    with pytest.raises(ShardError, match="hub:calls: expected hub:OWNER/NAME or"):
        fetch_set("hub:calls")
