"""encode and pack: from stereo files and their json to shards; killed halfway, nothing is lost or done twice."""

import json

import numpy as np
import pytest
import soundfile
import torch
from clips import write_clip
from PIL import Image

from data_prep import encode as encode_module
from data_prep.calls import ManifestError, parse_entry, read_manifest, read_transcript
from data_prep.check import check_shards
from data_prep.encode import encode
from data_prep.pack import pack
from data_prep.steps import How
from mmspeech.audio.codec import codec_hash
from mmspeech.checkpoint import load_codec
from mmspeech.config import ConfigError
from mmspeech.data.shards import ShardSet
from mmspeech.types import Visual


@pytest.fixture
def data(tmp_path):
    """Five calls of 0.3 to 1.1 s with a picture each."""
    folder = tmp_path / "data"
    folder.mkdir()
    lines = []
    for i in range(5):
        seconds = 0.3 + 0.2 * i
        wave = np.random.default_rng(i).uniform(-0.3, 0.3, (int(24_000 * seconds), 2))
        soundfile.write(folder / f"{i}.wav", wave, 24_000)
        Image.new("RGB", (8, 8), (30 * i, 0, 0)).save(folder / f"{i}.png")
        alignments = [["red", [0.1, 0.2], "SPEAKER_MAIN"], ["what", [0.0, 0.1], "SPEAKER_USER"]]
        visuals = [{"kind": "image", "path": f"{i}.png", "start_sec": 0.08}]
        described = {"alignments": alignments, "visuals": visuals, "turns": [i], "phones": {"main": []}}
        described |= {"licence": "CC0-1.0"} if i else {}
        (folder / f"{i}.json").write_text(json.dumps(described))
        lines.append(json.dumps({"path": f"{i}.wav", "duration": seconds}))
    (folder / "manifest.jsonl").write_text("\n".join(lines))
    return folder


ONE = How()


def bytes_of(folder):
    """All files of a folder but its step.json, which holds the time of nothing and the place of something."""
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_calls_become_shards(data, small_checkpoint, tmp_path):
    tally = encode(data=data, codec_dir=small_checkpoint, out=tmp_path / "codes", how=ONE, batch_sec=1.5)
    assert (tally.entries, tally.failed, tally.complete) == (5, 0, True)
    info, problems = pack(data=data, codes=tmp_path / "codes", out=tmp_path / "shards", how=ONE)
    codec = load_codec(small_checkpoint)
    assert problems == [] and info.calls == 5 and info.codec.hash == codec_hash(codec)
    assert info.licences == {"CC0-1.0": 4, "unknown": 1} and info.sources == {"unknown": 5}
    shards = ShardSet(tmp_path / "shards")
    for i in range(5):
        sample = shards[i]
        wave = torch.from_numpy(soundfile.read(data / f"{i}.wav", dtype="float32")[0].T.copy())
        expected = codec.encode(wave[:, None]).flatten(0, 1)
        assert torch.equal(sample.codes.long(), expected)  # left first; the batch's padding has left no trace
        assert sample.visuals[0].data == (data / f"{i}.png").read_bytes() and sample.visuals[0].start_sec == 0.08
        assert [(w.text, w.speaker) for w in sample.words] == [("red", "main"), ("what", "user")]
        assert sample.meta == {"turns": [i]} | ({"licence": "CC0-1.0"} if i else {})


def test_killed_and_run_again_equals_one_run(data, small_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(encode_module, "CHUNK_ITEMS", 2)
    encode(data=data, codec_dir=small_checkpoint, out=tmp_path / "whole", how=ONE, batch_sec=0.5)
    save, saved = encode_module._save, []

    def save_three(file, codes):
        if len(saved) == 3:
            raise KeyboardInterrupt
        saved.append(file)
        save(file, codes)

    monkeypatch.setattr(encode_module, "_save", save_three)
    with pytest.raises(KeyboardInterrupt):
        encode(data=data, codec_dir=small_checkpoint, out=tmp_path / "killed", how=ONE, batch_sec=0.5)
    assert not (tmp_path / "killed" / "manifest.jsonl").exists()
    with pytest.raises(ConfigError, match="encode is not done"):
        pack(data=data, codes=tmp_path / "killed", out=tmp_path / "shards", how=ONE)
    saved.clear()
    monkeypatch.setattr(encode_module, "_save", lambda file, codes: (saved.append(file), save(file, codes)))
    encode(data=data, codec_dir=small_checkpoint, out=tmp_path / "killed", how=ONE, batch_sec=0.5)
    assert len(saved) == 3 and bytes_of(tmp_path / "whole") == bytes_of(tmp_path / "killed")


def test_parts_of_the_work_add_up(data, small_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(encode_module, "CHUNK_ITEMS", 2)
    encode(data=data, codec_dir=small_checkpoint, out=tmp_path / "whole", how=ONE)
    for i in (1, 0):
        tally = encode(data=data, codec_dir=small_checkpoint, out=tmp_path / "codes", how=How(shard=(i, 2)))
        assert tally.complete == (i == 0)
    assert bytes_of(tmp_path / "whole") == bytes_of(tmp_path / "codes")
    sets = []
    for name, hows in (("one", [How()]), ("two", [How(shard=(1, 2)), How(shard=(0, 2))])):
        for how in hows:
            pack(data=data, codes=tmp_path / "codes", out=tmp_path / name, how=how, calls_per_file=2)
        sets.append(bytes_of(tmp_path / name))
    assert sets[0] == sets[1] and len(sets[0]) == 4


def test_a_bad_call_is_named_and_left_out(data, small_checkpoint, tmp_path):
    (data / "1.wav").write_bytes(b"not a wav")
    soundfile.write(data / "2.wav", np.zeros(4000), 24_000)
    (data / "3.json").write_text("{")
    tally = encode(data=data, codec_dir=small_checkpoint, out=tmp_path / "codes", how=ONE)
    assert (tally.entries, tally.failed) == (3, 2)
    assert "2: " in (tmp_path / "codes" / "manifest.err").read_text()
    assert "expected stereo" in (tmp_path / "codes" / "manifest.err").read_text()
    info, problems = pack(data=data, codes=tmp_path / "codes", out=tmp_path / "shards", how=ONE)
    assert info.calls == 2 and len(problems) == 3 and "3.json: not a call's json" in problems[2]
    soundfile.write(data / "2.wav", np.zeros((4000, 2)), 24_000)  # mended: only what failed is tried again
    tally = encode(data=data, codec_dir=small_checkpoint, out=tmp_path / "codes", how=ONE)
    assert (tally.entries, tally.failed) == (4, 1)


def test_what_a_folder_holds_is_not_mixed(data, small_checkpoint, tmp_path):
    encode(data=data, codec_dir=small_checkpoint, out=tmp_path / "codes", how=How(shard=(0, 5)))
    step = tmp_path / "codes" / "step.json"
    step.write_text(step.read_text().replace(codec_hash(load_codec(small_checkpoint)), "0" * 16))
    with pytest.raises(ConfigError, match="holds the output of another run .different codec"):
        encode(data=data, codec_dir=small_checkpoint, out=tmp_path / "codes", how=ONE)


def test_a_call_that_stands_in_the_manifest_twice_is_refused(data, small_checkpoint, tmp_path):
    manifest = data / "manifest.jsonl"
    manifest.write_text(manifest.read_text() + "\n" + manifest.read_text().splitlines()[0])
    with pytest.raises(ConfigError, match="stands in its input twice"):
        encode(data=data, codec_dir=small_checkpoint, out=tmp_path / "codes", how=ONE)


def test_paths_that_lead_out_of_the_folder_are_refused(data, small_checkpoint, tmp_path):
    (data / "manifest.jsonl").write_text('{"path": "../0.wav", "duration": 1}\n{"path": "/0.wav", "duration": 1}\n')
    tally = encode(data=data, codec_dir=small_checkpoint, out=tmp_path / "codes", how=ONE)
    assert tally.failed == 2 and "leads out of" in (tmp_path / "codes" / "manifest.err").read_text()
    described = json.loads((data / "0.json").read_text())
    described["visuals"][0]["path"] = "../secret.png"
    (data / "0.json").write_text(json.dumps(described))
    with pytest.raises(ConfigError, match="leads out of"):
        read_transcript(parse_entry({"path": "0.wav", "duration": 1.0}, where="m:1", folder=data))


def test_bad_manifests_are_refused_in_one_line(data, tmp_path):
    with pytest.raises(ManifestError, match=r"expected a manifest.jsonl in this folder, found none"):
        read_manifest(tmp_path)
    with pytest.raises(ConfigError, match="names a codec"):
        pack(data=data, codes=tmp_path, out=tmp_path / "shards", how=ONE)
    manifest = data / "manifest.jsonl"
    manifest.write_text('{"path": "0.wav"}\n')
    with pytest.raises(ManifestError, match=r"manifest.jsonl:1: expected"):
        read_manifest(data)
    manifest.write_text('{"path": "0.wav", "duration": 1}\n' * 2)
    with pytest.raises(ManifestError, match="twice"):
        read_manifest(data)
    manifest.write_text("\n")
    with pytest.raises(ManifestError, match="no calls in it"):
        read_manifest(data)


def test_clips_go_into_shards_whole_or_as_references(data, small_checkpoint, tmp_path):
    pytest.importorskip("av")
    clip = write_clip(data / "c.mp4", num_frames=10)
    described = json.loads((data / "0.json").read_text())
    described["visuals"] += [{"kind": "clip", "path": "c.mp4", "start_sec": 0.04, "fps": 5}]
    (data / "0.json").write_text(json.dumps(described))
    encode(data=data, codec_dir=small_checkpoint, out=tmp_path / "codes", how=ONE)
    sizes = {}
    for clips in ("bytes", "reference"):
        out = tmp_path / clips
        info, _ = pack(data=data, codes=tmp_path / "codes", out=out, how=ONE, clips=clips)
        assert info.pictures == 6 and check_shards(out).faults == []
        first, second = ShardSet(out)[0].visuals
        assert first == Visual(clip.read_bytes(), 0.04, "clip", 5.0) and second.kind == "image"
        sizes[clips] = (out / "shard-00000.parquet").stat().st_size
    assert sizes["reference"] < sizes["bytes"] - clip.stat().st_size / 2
    clip.unlink()
    assert "c.mp4" in check_shards(tmp_path / "reference").faults[0] and not check_shards(tmp_path / "bytes").faults


def test_pictures_that_are_not_there_are_named(data):
    (data / "0.png").unlink()
    with pytest.raises(ManifestError, match=r"picture 0.png is not there"):
        read_transcript(read_manifest(data)[0])
