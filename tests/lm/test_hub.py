"""from_pretrained, save_pretrained, push_to_hub: complete checkpoint directories."""

import pytest
import torch

from mmspeech.audio.codec import build_codec
from mmspeech.checkpoint import load_model, save_model
from mmspeech.lm.model import VisionSpeechModel
from mmspeech.tokens.text import train_tokenizer

CODEC = {"kind": "spectral", "codebook_size": 7, "num_codebooks": 3}


@pytest.fixture
def saved(make_model, tmp_path):
    """(directory, model) of a small blind checkpoint."""
    model = make_model(eyes=False)
    model.config = type(model.config).model_validate(model.config.model_dump() | {"codec": CODEC})
    tokenizer = train_tokenizer(["abc abd"] * 3, 11, tmp_path / "tokenizer.model")
    codec = build_codec(model.config.codec)
    save_model(tmp_path / "a", model=model, codec=codec, tokenizer_file=tokenizer.path, config=model.config)
    return tmp_path / "a", model


def test_a_model_comes_back_and_is_saved_whole(saved, tmp_path):
    path, model = saved
    again = VisionSpeechModel.from_pretrained(path)
    again.save_pretrained(tmp_path / "b")
    for copy in (again, load_model(tmp_path / "b").model):
        state = copy.state_dict()
        assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


def test_a_model_without_origin_says_what_to_do(saved, tmp_path):
    with pytest.raises(ValueError, match="save it with checkpoint.save_model"):
        saved[1].save_pretrained(tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_push_uploads_a_checkpoint(saved, monkeypatch):
    uploaded = {}

    class Api:
        def __init__(self, token):
            uploaded["token"] = token

        def create_repo(self, repo_id, *, private, exist_ok):
            uploaded["repo"] = (repo_id, private, exist_ok)

        def upload_folder(self, *, repo_id, folder_path):
            uploaded["files"] = {file.name for file in folder_path.iterdir()}
            return f"https://hub/{repo_id}"

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    model = VisionSpeechModel.from_pretrained(saved[0])
    assert model.push_to_hub("me/mine", private=True, token="t") == "https://hub/me/mine"
    assert uploaded["repo"] == ("me/mine", True, True) and uploaded["token"] == "t"
    assert uploaded["files"] >= {"config.json", "model.safetensors", "codec.safetensors", "tokenizer.model"}
