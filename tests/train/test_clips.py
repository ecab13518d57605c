"""A run on clips with eyes for motion."""

from dataclasses import replace

import pytest
import torch
from clips import write_clip
from made_up import made_up_call

from mmspeech.audio.codec import codec_hash
from mmspeech.checkpoint import load_model
from mmspeech.data.shards import CodecStamp, write_shards
from mmspeech.types import Visual
from mmspeech.vision.window import windowed
from train.features import FeatureCache
from train.parts import build_origin
from train.recipe import train
from train.samples import answer, sample_call

pytest.importorskip("av")


@pytest.fixture(scope="module")
def clip_calls(tmp_path_factory, clip_checkpoint):
    """Calls of 3 s and more with a picture and a clip, as shards and as samples."""
    folder = tmp_path_factory.mktemp("clip-calls")
    clip = write_clip(folder / "c.mp4", num_frames=50).read_bytes()
    samples = [made_up_call(index, 0) for index in range(7, 11)]
    samples = [replace(s, visuals=[*s.visuals, Visual(clip, 0.5, "clip", fps=4.0)]) for s in samples]
    codec = load_model(clip_checkpoint).codec
    stamp = CodecStamp(hash=codec_hash(codec), num_codebooks=3, codebook_size=32, silence_codes=(1, 2, 3))
    for name in ("train", "valid"):
        write_shards(folder / name, samples, codec=stamp)
    return folder, samples


@pytest.fixture
def config(make_config, clip_checkpoint, clip_calls):
    folder, _ = clip_calls
    sets = {name: {"calls": {"path": str(folder / name)}} for name in ("train", "valid")}
    data = {"sources": sets["train"], "valid": sets["valid"], "batch_frames": 120, "max_frames": 30}
    return make_config(init={"checkpoint": str(clip_checkpoint)}, data=data, sample_every_steps=2, sample_calls=1)


def test_a_run_learns_from_windows_of_frames(config, tmp_path, monkeypatch):
    fill, looked = FeatureCache.fill, []

    def watched(cache, batch):
        fill(cache, batch)
        if batch.pixels is None:
            return
        assert batch.windows.shape == (len(batch.onset_frames), cache.tower.window.frames)
        whole, _ = cache.tower(windowed(batch.pixels, batch.windows))
        torch.testing.assert_close(batch.features, whole, atol=1e-5, rtol=0)
        looked.append(len(whole))

    monkeypatch.setattr(FeatureCache, "fill", watched)
    train(config)
    assert sum(looked) > 20
    assert list((tmp_path / "run" / "samples").rglob("*_seen3.png"))


def test_samples_see_what_moves(config, clip_calls):
    origin, sample = build_origin(config, torch.device("cpu")), clip_calls[1][-1]
    call = sample_call(origin, sample, max_frames=40)
    assert [at_sec for _, at_sec in call.pictures] == pytest.approx(
        [0.16, 0.56, 0.8, 1.04, 1.28, 1.52, 1.76, 2.0, 2.32]
    )
    assert (call.gate > 0).any()
    assert answer(origin, sample, [], max_frames=40)[-1].gate == 0
