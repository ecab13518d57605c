"""from_pretrained, save_pretrained, push_to_hub: complete checkpoint directories."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from mmspeech.audio.codec import build_codec
from mmspeech.checkpoint import load_model, save_model
from mmspeech.lm.model import VisionSpeechModel
from mmspeech.tokens.text import train_tokenizer

CODEC = {"kind": "spectral", "codebook_size": 7, "num_codebooks": 3}
CARD = "# a card of its own\n"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


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


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as pushing and loading a model needs; files: what was committed; tokens: who asked."""

    files: dict[str, bytes]
    tokens: set[str | None]
    created: list[dict]
    address: str

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.tokens.add(self.headers["Authorization"])
        url = f"http://{self.headers['Host']}/me/mine"
        if self.path == "/api/repos/create":
            self.created.append(json.loads(body))
            self._answer({"url": url, "id": "me/mine"})
        elif self.path.endswith("/preupload/main"):
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": name, "uploadMode": "regular", "shouldIgnore": False, "oid": None} for name in names]
            self._answer({"files": modes})
        elif self.path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._answer({"commitUrl": f"{url}/commit/{COMMIT}", "commitOid": COMMIT, "success": True})
        else:
            self._answer({"errors": [], "warnings": []})

    def do_GET(self):
        name = self.path.rpartition("/")[2]
        if "/resolve/" in self.path:
            self._answer(self.files[name])
            return
        if "/tree/" in self.path:
            entries = [(name, len(data), hashlib.sha1(data).hexdigest()) for name, data in self.files.items()]
            self._answer([{"type": "file", "path": name, "size": size, "oid": oid} for name, size, oid in entries])
            return
        siblings = [{"rfilename": name} for name in self.files]
        self._answer({"id": "me/mine", "modelId": "me/mine", "sha": COMMIT, "siblings": siblings, "tags": []})

    do_HEAD = do_GET

    def log_message(self, *args):
        pass

    def _answer(self, body: dict | list | bytes):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", hashlib.sha1(data).hexdigest())
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@pytest.fixture
def hub(monkeypatch):
    """A hub on this machine that the library talks to over HTTP."""
    handler = type("OwnHub", (Hub,), {"files": {}, "tokens": set(), "created": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    handler.address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", handler.address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield handler
    server.shutdown()
    server.server_close()


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
