"""The whole path at a tiny size: scenes, speech, codes, shards, two stages of training, evaluation, one spoken turn."""

import json

import pytest
import soundfile
import torch
from small_model import SMALL_MODEL
from typer.testing import CliRunner

from mmspeech.config import CodecConfig, apply_overrides

APT = "apt-get install espeak-ng libespeak-ng1 flite libflite1"
MODEL = apply_overrides(
    SMALL_MODEL,
    [
        "name=end-to-end",
        "lm.text_card=256",
        "lm.temporal.context=100",
        "vision.image_size_px=96",
        "vision.tower_args.stem_strides=[4, 3]",
    ],
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Spoken calls about rendered scenes, encoded with a random codec and packed into shards."""
    from pydantic import TypeAdapter

    from data_prep.encode import encode
    from data_prep.pack import pack
    from data_prep.scenes import make_scenes
    from data_prep.steps import How
    from data_prep.world_speak import Timing, speak
    from mmspeech.audio.codec import build_codec
    from mmspeech.checkpoint import save_codec
    from mmspeech.tokens.text import train_tokenizer

    root = tmp_path_factory.mktemp("world")
    make_scenes(root / "scenes", count=4, seed=0, split="train", size_px=96, blind_share=0.0)
    skip_without_voices()
    assert speak(root / "scenes", root / "calls", seed=0, jobs=1, timing=Timing(), shard=(0, 1)) == 0
    texts = [json.loads(p.read_text())["turns"] for p in sorted((root / "scenes").glob("*.dialogue.json"))]
    train_tokenizer([turn["answer"] for turns in texts for turn in turns] * 5, 200, root / "tokenizer.model")
    torch.manual_seed(0)
    config = TypeAdapter(CodecConfig).validate_python(MODEL["codec"])
    save_codec(root / "codec", build_codec(config), config)
    encode(data=root / "calls", codec_dir=root / "codec", out=root / "codes", how=How())
    info, problems = pack(data=root / "calls", codes=root / "codes", out=root / "shards", how=How())
    assert info.calls == 4 and not problems
    (root / "model.yaml").write_text(json.dumps(MODEL))
    return root


def skip_without_voices():
    import numpy as np

    from data_prep.tts import MODEL_VOICE, random_voice, synthesise

    try:
        for voice in (MODEL_VOICE, *(random_voice(np.random.default_rng(k), held_out=False) for k in range(8))):
            synthesise("hello", voice)
    except (FileNotFoundError, OSError) as error:
        pytest.skip(f"{error} ({APT})")


def stage(root, run, **changes):
    from train.settings import TrainConfig

    return TrainConfig.model_validate(
        {
            "root": str(root),
            "run": run,
            "data": {
                "sources": {"calls": {"path": "shards"}},
                "valid": {"calls": {"path": "shards"}},
                "batch_frames": 400,
                "max_frames": 200,
            },
            "max_steps": 2,
            "precision": "no",
            "device": "cpu",
            "eval_every_steps": 2,
            "eval_batches": 1,
            "save_every_steps": 2,
            **changes,
        }
    )


@pytest.fixture(scope="module")
def trained(world):
    """The newest checkpoint after a speech stage without eyes and a vision stage with everything else frozen."""
    from mmspeech.checkpoint import write_tensors
    from mmspeech.config import VisionConfig
    from mmspeech.vision.encoder import build_tower
    from train.recipe import train

    fresh = {"model": str(world / "model.yaml"), "codec": "codec", "tokenizer": "tokenizer.model", "blind": True}
    train(stage(world, "lm", init=fresh, trainable=["speech"]))
    (world / "tower").mkdir()
    tower = build_tower(VisionConfig.model_validate(MODEL["vision"]))
    write_tensors(world / "tower" / "tower.safetensors", tower.weights())
    eyes = {"checkpoint": "lm", "model": str(world / "model.yaml"), "tower": "tower"}
    return train(stage(world, "vision", init=eyes, trainable=["adapters"]))


def test_two_stages_give_one_complete_checkpoint(world, trained):
    from mmspeech.checkpoint import load_model

    before, after = load_model(str(world / "lm")), load_model(trained)
    assert before.config.vision is None and after.config.vision is not None
    frozen = before.model.state_dict()
    own = after.model.state_dict()
    adapters = set(after.model.adapter_names())
    assert all(torch.equal(own[name], value) for name, value in frozen.items())
    assert adapters and not adapters & frozen.keys()


def test_evaluation_of_the_checkpoint(trained, tmp_path):
    from data_prep.questions import make_questions
    from eval.__main__ import evaluate
    from eval.task import Settings
    from eval.who import How

    manifest = make_questions(tmp_path / "q", name="known", count=2, seed=0, split="test", size_px=96)
    settings = Settings(manifest=manifest)
    names = ["spoken_vqa", "codec_resynthesis"]
    out = tmp_path / "out"
    file = evaluate(settings, How(model=str(trained), batch_size=2), tasks=",".join(names), out=out)
    results = json.loads(file.read_text())
    counts = {name: results["tasks"][name]["counts"] for name in names}
    assert counts == dict.fromkeys(names, {"samples": 2, "measured": 2, "failed": 0})
    assert results["run"]["model"]["name"] == "end-to-end" and results["model_config"]["lm"]["text_card"] == 256
    records = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert {record["task"] for record in records} == set(names) and len(records) == 4


def test_a_spoken_turn_with_the_checkpoint(world, trained, tmp_path):
    from mmspeech.cli import app

    call = sorted((world / "calls").rglob("*.wav"))[0]
    picture = sorted((world / "scenes").glob("*.png"))[0]
    wave, rate_hz = soundfile.read(call)
    soundfile.write(tmp_path / "q.wav", wave[: 2 * rate_hz, 1], rate_hz)
    command = ["talk", "--audio", tmp_path / "q.wav", "--image", picture, "--model", trained.parent.parent]
    result = CliRunner().invoke(app, [*map(str, command), "--out", str(tmp_path / "r.wav"), "--json", "--max-sec", "2"])
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert summary["frames"] >= 25 and soundfile.info(tmp_path / "r.wav").frames == summary["frames"] * 1920
    assert all(word["gate"] > 0 for word in summary["words"])
