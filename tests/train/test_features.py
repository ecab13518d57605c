"""Features in shards: the same as looking, for every kind of tower; killed and gone on; another tower's are refused."""

import io

import pytest
import torch
from clips import write_clip
from made_up import made_up_call
from PIL import Image

from data_prep.__main__ import app
from data_prep.features import make_features
from mmspeech.audio.codec import codec_hash
from mmspeech.checkpoint import load_model
from mmspeech.config import ConfigError
from mmspeech.data.features import FeatureShards, FeatureWriter
from mmspeech.data.shards import CodecStamp, write_shards
from mmspeech.data.visuals import Kept, PictureFormat, lay_pictures, see_visuals
from mmspeech.types import Batch, Visual
from mmspeech.vision.memory import Memory
from train.features import FeatureCache

pytest.importorskip("av")
AT_BF16 = {"atol": 3e-2, "rtol": 1e-2}


def written_calls(folder, checkpoint):
    """Calls about a picture and a clip: the shard set and its samples."""
    clip = write_clip(folder / "c.mp4", num_frames=30).read_bytes()
    samples = [made_up_call(index, 0) for index in range(4)]
    for number, sample in enumerate(samples):
        picture = io.BytesIO()
        Image.new("RGB", (40, 30), (60 * number, 90, 10)).save(picture, format="PNG")
        sample.visuals = [Visual(picture.getvalue(), 0.0), Visual(clip, 0.4 * number, "clip", fps=4.0)]
    stamp = CodecStamp(
        hash=codec_hash(load_model(checkpoint).codec), num_codebooks=3, codebook_size=32, silence_codes=(1, 2, 3)
    )
    write_shards(folder / "set", samples, codec=stamp)
    return folder / "set", samples


@pytest.fixture
def calls(tmp_path, clip_checkpoint):
    return written_calls(tmp_path, clip_checkpoint)


def batch_of(bundle, samples, kept: Kept | None = None) -> Batch:
    tower, memory = bundle.model.tower, Memory.of(bundle.config.lm.fusion)
    form = PictureFormat(tower.image_size_px, tower.mean, tower.std, memory, tower.window, kept or Kept())
    seen = [see_visuals(s.visuals, num_frames=s.codes.shape[1], form=form) for s in samples]
    nothing = torch.zeros(1, 1)
    return Batch(nothing.long(), nothing, nothing, **vars(lay_pictures(seen, form)))


def test_features_from_shards_are_those_of_the_tower(clip_checkpoint, tmp_path):
    check_read(clip_checkpoint, tmp_path)


def test_also_of_a_tower_that_sees_one_picture_at_a_time(remembering_checkpoint, tmp_path):
    check_read(remembering_checkpoint, tmp_path)


def test_what_is_kept_is_not_decoded(remembering_checkpoint, tmp_path, monkeypatch):
    data, samples = written_calls(tmp_path, remembering_checkpoint)
    make_features(data, str(remembering_checkpoint), tmp_path / "kept", shard=(0, 2))
    bundle = load_model(remembering_checkpoint)
    shards = FeatureShards(tmp_path / "kept", bundle.model.tower)
    looked = batch_of(bundle, samples[::2])
    FeatureCache(bundle.model.tower, size=0).fill(looked)
    with monkeypatch.context() as patch:
        for place in ("mmspeech.vision.video.Video", "mmspeech.vision.image.load_image"):
            patch.setattr(place, lambda *_: pytest.fail("what is kept was decoded"))
        read = batch_of(bundle, samples[::2], shards.kept)
    assert read.picture_keys == looked.picture_keys and not read.pixels.any()
    cache = FeatureCache(bundle.model.tower, size=0, shards=shards)
    cache.fill(read)
    torch.testing.assert_close(read.features, looked.features, **AT_BF16)
    some = batch_of(bundle, samples, shards.kept)  # the others are decoded as ever
    cache.fill(some)
    whole = batch_of(bundle, samples)
    FeatureCache(bundle.model.tower, size=0).fill(whole)
    torch.testing.assert_close(some.features, whole.features, **AT_BF16)


def check_read(checkpoint, tmp_path):
    data, samples = written_calls(tmp_path, checkpoint)
    written, failed = make_features(data, str(checkpoint), tmp_path / "kept")
    bundle = load_model(checkpoint)
    shards = FeatureShards(tmp_path / "kept", bundle.model.tower)
    assert len(shards) >= 8 and written >= len(shards) and not failed
    looked, read = batch_of(bundle, samples), batch_of(bundle, samples, shards.kept)
    FeatureCache(bundle.model.tower, size=0).fill(looked)
    cache = FeatureCache(bundle.model.tower, size=0, shards=shards)
    for name in ("forward", "see_frames"):
        cache.tower.__dict__[name] = lambda *_: pytest.fail("the tower looked at what is in the shards")
    cache.fill(read)
    torch.testing.assert_close(read.features, looked.features, **AT_BF16)


def test_what_is_not_kept_is_looked_at(clip_checkpoint, calls, tmp_path):
    data, samples = calls
    make_features(data, str(clip_checkpoint), tmp_path / "half", shard=(0, 2))
    bundle = load_model(clip_checkpoint)
    shards = FeatureShards(tmp_path / "half", bundle.model.tower)
    looked, read = batch_of(bundle, samples), batch_of(bundle, samples, shards.kept)
    FeatureCache(bundle.model.tower, size=0).fill(looked)
    FeatureCache(bundle.model.tower, size=0, shards=shards).fill(read)
    torch.testing.assert_close(read.features, looked.features, **AT_BF16)


def test_a_run_that_was_killed_goes_on(clip_checkpoint, calls, tmp_path, monkeypatch):
    data, _ = calls
    monkeypatch.setattr("mmspeech.data.features.ROWS_PER_FILE", 3)
    add, seen = FeatureWriter.add, []

    def killed(writer, key, features, mask):
        seen.append(key)
        if len(seen) == 5:
            raise KeyboardInterrupt
        add(writer, key, features, mask)

    whole, out = tmp_path / "whole", tmp_path / "out"
    make_features(data, str(clip_checkpoint), whole)
    monkeypatch.setattr(FeatureWriter, "add", killed)
    monkeypatch.setattr(FeatureWriter, "__exit__", lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        make_features(data, str(clip_checkpoint), out)
    monkeypatch.undo()
    for shard in ((0, 2), (1, 2)):
        make_features(data, str(clip_checkpoint), out, shard=shard)
    tower = load_model(clip_checkpoint).model.tower
    one, two = FeatureShards(whole, tower), FeatureShards(out, tower)
    assert one.kept == two.kept and one.kept.durations_sec
    assert all(torch.equal(one.get(key)[0], two.get(key)[0]) for key in sorted(one.kept.keys))


def test_features_of_another_tower_are_refused(calls, clip_checkpoint, tmp_path):
    data, _ = calls
    make_features(data, str(clip_checkpoint), tmp_path / "kept")
    tower = load_model(clip_checkpoint).model.tower
    with torch.no_grad():
        next(tower.model.parameters()).add_(1.0)
    with pytest.raises(ConfigError, match="made with tower .*make the features again"):
        FeatureShards(tmp_path / "kept", tower)
    with pytest.raises(ConfigError, match="made with tower"):
        FeatureWriter(tmp_path / "kept", tower)
    with pytest.raises(ConfigError, match="no features here"):
        FeatureShards(tmp_path / "nothing", tower)
    (tmp_path / "kept" / "features-0-00000.safetensors").write_bytes(b"cut")
    with pytest.raises(ConfigError, match="broken"):
        FeatureShards(tmp_path / "kept", tower)


def test_a_call_that_cannot_be_read_is_named_and_left_out(clip_checkpoint, calls, tmp_path):
    from typer.testing import CliRunner

    _, samples = calls
    samples[1].visuals = [Visual(b"no picture", 0.0)]
    stamp = CodecStamp(hash="0" * 16, num_codebooks=3, codebook_size=32, silence_codes=(1, 2, 3))
    write_shards(tmp_path / "bad", samples, codec=stamp)
    command = ["features", "--data", tmp_path / "bad", "--model", clip_checkpoint, "--out", tmp_path / "kept"]
    result = CliRunner().invoke(app, [str(word) for word in command])
    assert result.exit_code == 0 and "1 calls could not be read" in result.output
    assert (tmp_path / "kept" / f"{samples[1].id}.err").read_text().count("\n") == 1
