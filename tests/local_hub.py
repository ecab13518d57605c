"""A hub on this machine, for what pushes and loads models."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


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
