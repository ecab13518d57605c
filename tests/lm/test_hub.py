"""from_pretrained, save_pretrained, push_to_hub: complete checkpoint directories."""

import os
import subprocess
import sys

import pytest
import torch

from mmspeech.audio.codec import build_codec
from mmspeech.checkpoint import load_model, save_model
from mmspeech.hub import CheckpointError, fetched
from mmspeech.lm.model import VisionSpeechModel
from mmspeech.tokens.text import train_tokenizer

CODEC = {"kind": "spectral", "codebook_size": 7, "num_codebooks": 3}
CARD = "# a card of its own\n"


@pytest.fixture
def saved(make_model, tmp_path):
    """(directory, model) of a small blind checkpoint."""
    model = make_model(eyes=False)
    model.config = type(model.config).model_validate(model.config.model_dump() | {"codec": CODEC})
    tokenizer = train_tokenizer(["abc abd"] * 3, 11, tmp_path / "tokenizer.model")
    codec = build_codec(model.config.codec)
    save_model(tmp_path / "a", model=model, codec=codec, tokenizer_file=tokenizer.path, config=model.config, card=CARD)
    return tmp_path / "a", model


def test_a_model_comes_back_and_is_saved_whole(saved, tmp_path):
    path, model = saved
    again = VisionSpeechModel.from_pretrained(path)
    again.save_pretrained(tmp_path / "b")
    assert (tmp_path / "b" / "README.md").read_text() == CARD
    for copy in (again, load_model(tmp_path / "b").model):
        state = copy.state_dict()
        assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


def test_a_model_without_origin_says_what_to_do(saved, tmp_path):
    with pytest.raises(ValueError, match="save it with checkpoint.save_model"):
        saved[1].save_pretrained(tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_a_pushed_model_is_loaded_by_its_id(saved, hub, tmp_path):
    path, model = saved
    address = VisionSpeechModel.from_pretrained(path).push_to_hub("me/mine", private=True, token="t")
    assert "/me/mine/" in address
    assert hub.files.keys() == {file.name for file in path.iterdir()}
    assert hub.created[0].get("private") or hub.created[0].get("visibility") == "private"
    assert hub.tokens == {"Bearer t"} and hub.files["README.md"] == (path / "README.md").read_bytes()
    # The library reads its address when it is imported, so a process of its own loads by id.
    code = "from mmspeech.checkpoint import load_model; print(load_model('me/mine').path)"
    environment = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=60, check=True)
    state = load_model(done.stdout.strip()).model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (403, "GatedRepo", "it is gated: accept its terms on its page on the hub, then `hf auth login`"),
        (404, "RepoNotFound", "there is no such repository, or it is private"),
        (500, "", "neither a directory here nor to be had from the hub"),
    ],
)
def test_what_the_hub_refuses_is_a_sentence(hub, status, code, message):
    def refuse(self):
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    hub.do_GET = hub.do_HEAD = refuse
    with pytest.raises(CheckpointError, match=message) as caught:
        fetched("me/mine")
    assert "\n" not in str(caught.value)
