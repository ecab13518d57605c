"""encode and pack: from stereo files and their json to shards; killed halfway, nothing is lost or done twice."""

import json

import numpy as np
import pytest
import soundfile
import torch
from clips import write_clip
from PIL import Image

from data_prep import encode as encode_module
from data_prep.calls import ManifestError, read_manifest, read_transcript
from data_prep.check import check_shards
from data_prep.encode import encode
from data_prep.pack import pack
from mmspeech.checkpoint import codec_hash, load_codec
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
        (folder / f"{i}.json").write_text(json.dumps(described))
        lines.append(json.dumps({"path": f"{i}.wav", "duration": seconds}))
    (folder / "manifest.jsonl").write_text("\n".join(lines))
    return folder


def test_calls_become_shards(data, small_checkpoint, tmp_path):
    report = encode(data=data, codec_dir=small_checkpoint, out=tmp_path / "codes", batch_sec=1.5)
    assert (report.encoded, report.skipped, report.failed) == (5, 0, 0)
    info, problems = pack(data=data, codes=tmp_path / "codes", out=tmp_path / "shards")
    codec = load_codec(small_checkpoint)
    assert problems == [] and info.calls == 5 and info.codec.hash == codec_hash(codec)
    shards = ShardSet(tmp_path / "shards")
    for i in range(5):
        sample = shards[i]
        wave = torch.from_numpy(soundfile.read(data / f"{i}.wav", dtype="float32")[0].T.copy())
        expected = codec.encode(wave[:, None]).flatten(0, 1)
        assert torch.equal(sample.codes.long(), expected)  # left first; the batch's padding has left no trace
        assert sample.visuals[0].data == (data / f"{i}.png").read_bytes() and sample.visuals[0].start_sec == 0.08
        assert [(w.text, w.speaker) for w in sample.words] == [("red", "main"), ("what", "user")]
        assert sample.meta == {"turns": [i]}


def test_killed_and_run_again_equals_one_run(data, small_checkpoint, tmp_path, monkeypatch):
    encode(data=data, codec_dir=small_checkpoint, out=tmp_path / "whole", batch_sec=0.5)
    save, saved = encode_module._save, []

    def save_twice(file, codes):
        if len(saved) == 2:
            raise KeyboardInterrupt
        saved.append(file)
        save(file, codes)

    monkeypatch.setattr(encode_module, "_save", save_twice)
    with pytest.raises(KeyboardInterrupt):
        encode(data=data, codec_dir=small_checkpoint, out=tmp_path / "killed", batch_sec=0.5)
    monkeypatch.setattr(encode_module, "_save", save)
    report = encode(data=data, codec_dir=small_checkpoint, out=tmp_path / "killed", batch_sec=0.5)
    assert (report.encoded, report.skipped) == (3, 2)
    files = sorted((tmp_path / "whole").iterdir())
    assert [f.name for f in files] == sorted(f.name for f in (tmp_path / "killed").iterdir())
    assert all(f.read_bytes() == (tmp_path / "killed" / f.name).read_bytes() for f in files)


def test_parts_of_the_work_add_up(data, small_checkpoint, tmp_path):
    reports = [
        encode(data=data, codec_dir=small_checkpoint, out=tmp_path / "codes", shard=f"{i}/2").encoded for i in (0, 1)
    ]
    assert reports == [3, 2]
    with pytest.raises(ConfigError, match="--shard 2/2: expected i/n"):
        encode(data=data, codec_dir=small_checkpoint, out=tmp_path / "codes", shard="2/2")


def test_a_bad_call_is_named_and_left_out(data, small_checkpoint, tmp_path):
    (data / "1.wav").write_bytes(b"not a wav")
    soundfile.write(data / "2.wav", np.zeros(4000), 24_000)
    (data / "3.json").write_text("{")
    report = encode(data=data, codec_dir=small_checkpoint, out=tmp_path / "codes")
    assert (report.encoded, report.failed) == (3, 2)
    assert "expected stereo" in (tmp_path / "codes" / "2.err").read_text()
    info, problems = pack(data=data, codes=tmp_path / "codes", out=tmp_path / "shards")
    assert info.calls == 2 and len(problems) == 3 and "3.json: not a call's json" in problems[2]


def test_codes_of_another_codec_are_not_mixed(data, small_checkpoint, tmp_path):
    encode(data=data, codec_dir=small_checkpoint, out=tmp_path / "codes", shard="0/5")
    stamp = tmp_path / "codes" / encode_module.STAMP
    stamp.write_text(stamp.read_text().replace(codec_hash(load_codec(small_checkpoint)), "0" * 16))
    with pytest.raises(ConfigError, match="holds codes of codec 0000000000000000"):
        encode(data=data, codec_dir=small_checkpoint, out=tmp_path / "codes")


def test_bad_manifests_are_refused_in_one_line(data, tmp_path):
    with pytest.raises(ManifestError, match=r"expected a manifest.jsonl in this folder, found none"):
        read_manifest(tmp_path)
    with pytest.raises(ConfigError, match="run data_prep encode|no codec_stamp"):
        pack(data=data, codes=tmp_path, out=tmp_path / "shards")
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


def test_clips_go_into_shards_whole(data, small_checkpoint, tmp_path):
    pytest.importorskip("av")
    clip = write_clip(data / "c.mp4", num_frames=10)
    described = json.loads((data / "0.json").read_text())
    described["visuals"] += [{"kind": "clip", "path": "c.mp4", "start_sec": 0.04, "fps": 5}]
    (data / "0.json").write_text(json.dumps(described))
    encode(data=data, codec_dir=small_checkpoint, out=tmp_path / "codes")
    info, _ = pack(data=data, codes=tmp_path / "codes", out=tmp_path / "shards")
    assert info.pictures == 6 and check_shards(tmp_path / "shards").faults == []
    first, second = ShardSet(tmp_path / "shards")[0].visuals
    assert first == Visual(clip.read_bytes(), 0.04, "clip", 5.0) and second.kind == "image"


def test_pictures_that_are_not_there_are_named(data):
    (data / "0.png").unlink()
    with pytest.raises(ManifestError, match=r"picture 0.png is not there"):
        read_transcript(read_manifest(data)[0])
