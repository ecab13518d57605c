"""The presets for fine-tuning run on the embedded model, and what they make can be talked to."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from made_up import made_up_call
from test_cli import mmspeech, talk

from mmspeech.audio.codec import codec_hash
from mmspeech.checkpoint import EMBEDDED, load_codec
from mmspeech.config import load_config
from mmspeech.data.shards import CodecStamp, write_shards
from train.lora import LORA
from train.recipe import train
from train.settings import TrainConfig

ROOT = Path(__file__).resolve().parents[2]
RATE_HZ = 24_000
QUICK = ["device=cpu", "max_steps=2", "eval_every_steps=2", "eval_batches=1", "sample_every_steps=null"]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Shards of a few made-up calls, as `data_prep` would have left them for the embedded codec."""
    folder = tmp_path_factory.mktemp("own")
    codec = load_codec(EMBEDDED)
    streams, card = codec.num_codebooks, codec.codebook_size
    silence = (0,) * streams
    stamp = CodecStamp(hash=codec_hash(codec), num_codebooks=streams, codebook_size=card, silence_codes=silence)
    for name, count in (("own", 6), ("own_valid", 2)):
        calls = [made_up_call(i, 0, streams=streams, card=card) for i in range(count)]
        write_shards(folder / "shards" / name, calls, codec=stamp)
    return folder


@pytest.fixture
def question(tmp_path) -> Path:
    path = tmp_path / "question.wav"
    soundfile.write(path, 0.1 * np.sin(np.arange(RATE_HZ // 2) * 0.1), RATE_HZ)
    return path


@pytest.mark.parametrize("preset", ["finetune_lora", "finetune_adapters"])
def test_a_run_of_the_preset_can_be_talked_to_and_equals_what_is_merged(preset, root, question, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = load_config(
        TrainConfig, f"configs/train/{preset}.yaml", [f"root={root}", f"run={tmp_path / 'run'}", *QUICK]
    )
    folder = train(config)
    assert (folder / LORA).is_file() == (config.lora is not None)
    result = mmspeech("merge", tmp_path / "run", tmp_path / "merged")
    assert result.exit_code == 0, result.output
    replies = []
    for model in (tmp_path / "run", tmp_path / "merged"):
        out = tmp_path / f"{model.name}.wav"
        result = talk(model, audio=question, out=out)
        assert result.exit_code == 0, result.output
        replies.append(soundfile.read(out)[0])
    assert replies[0].shape == replies[1].shape and (replies[0] == replies[1]).all()
    card = (tmp_path / "merged" / "README.md").read_text()
    assert ("lm.depth.layers, LoRA" in card) == (config.lora is not None) and "| sighted | 2 |" in card
    assert not (tmp_path / "merged" / LORA).exists()
