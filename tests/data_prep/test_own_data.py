"""The use the tool-chain is for: twenty pictures with captions become dialogues, calls, codes, shards, five steps of
training, and a model that talks; all by the commands that README names."""

import json
from io import BytesIO

import numpy as np
import pytest
import soundfile
from PIL import Image
from talker import serving
from typer.testing import CliRunner
from voices import needs_speech

from data_prep.__main__ import main as data_prep
from mmspeech.data.shards import ShardSet

CODEC = "mmspeech/pretrained/tiny"


def llava(folder, count=20):
    """Pictures and a json of conversations about them, as LLaVA's sets are."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for number in range(count):
        held = BytesIO()
        Image.new("RGB", (64, 64), (10 * number, 80, 120)).save(held, format="JPEG")
        (folder / "images" / f"{number}.jpg").write_bytes(held.getvalue())
        said = [
            {"from": "human", "value": "<image>\nWhat is in the picture?"},
            {"from": "gpt", "value": f"A plain square of colour {number}, taken by day."},
        ]
        rows.append({"id": f"{number:09d}", "image": f"images/{number}.jpg", "conversations": said})
    (folder / "train.json").write_text(json.dumps(rows))
    return folder


def shard_name(folder, number):
    """What comes after the set's name in the id of a call."""
    return ShardSet(folder / "shards" / "own")[number].id.partition("/")[2]


def run(*arguments):
    assert data_prep([str(one) for one in arguments]) == 0


@needs_speech
@pytest.mark.timeout(400)
def test_from_pictures_with_captions_to_a_model_that_talks(tmp_path):
    pytest.importorskip("accelerate")
    from mmspeech.cli import app
    from train.__main__ import main as train

    d = tmp_path
    run("import", "llava", "--data", llava(d / "set") / "train.json", "--media", d / "set", "--out", d / "records")
    with serving() as writer:
        writing = ("--writer", writer.name, "--kinds", "counts")
        run("dialogue", "--data", d / "records", "--out", d / "dialogues", *writing)
    run("speak", "--data", d / "dialogues", "--out", d / "calls", "--jobs", 2)
    run("check", "--data", d / "calls")
    run("encode", "--data", d / "calls", "--codec", CODEC, "--out", d / "codes", "--jobs", 2)
    run("pack", "--data", d / "calls", "--codes", d / "codes", "--out", d / "shards" / "own")
    run("pack", "--data", d / "calls", "--codes", d / "codes", "--out", d / "shards" / "own_valid")
    run("check", "--data", d / "shards" / "own")
    run("stats", "--data", d / "shards" / "own", "--out", d / "stats")
    look = ("--tokenizer", f"{CODEC}/tokenizer.model", "--codec", CODEC, "--call", "llava/" + shard_name(d, 7))
    run("preview", "--data", d / "shards" / "own", "--out", d / "look", *look)
    page = next((d / "look").glob("*.html")).read_text()
    assert "<audio controls" in page and 'class="token loss"' in page and "question 0, I see this" in page

    shards = ShardSet(d / "shards" / "own")
    assert len(shards) == 20 and shards.info.sources == {"llava": 20} and shards.info.pictures == 20
    sample = shards[7]
    answers = " ".join(word.text for word in sample.words if word.speaker == "main")
    assert "plain square of colour 7," in answers and Image.open(BytesIO(sample.visuals[0].data)).size == (64, 64)

    few = ["max_steps=5", "eval_every_steps=5", "save_every_steps=5", "sample_every_steps=0", "data.batch_frames=300"]
    few += ["device=cpu", 'precision="no"', "eval_batches=1"]
    assert train(["--config", "configs/train/finetune_adapters.yaml", f"root={d}", *few]) == 0
    soundfile.write(d / "q.wav", 0.05 * np.random.default_rng(0).standard_normal(24_000), 24_000)
    talk = ["talk", "--model", d / "finetune_adapters", "--audio", d / "q.wav", "--image", d / "set/images/7.jpg"]
    told = CliRunner().invoke(app, [*map(str, talk), "--out", str(d / "reply.wav"), "--max-sec", "2"])
    assert told.exit_code == 0 and soundfile.info(d / "reply.wav").frames > 24_000
