"""A language model behind a real socket that goes by rules."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Talker(BaseHTTPRequestHandler):
    """A chat model by rule: it asks a numbered question, and answers with what its instructions say is seen."""

    asked: list[dict]
    say: dict[str, str]
    lock = threading.Lock()

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.lock:
            self.asked.append(body)
        task, *rest = [message["content"] for message in body["messages"]]
        number = len(rest) // 2
        if "assistant in a phone call" in task or "patient teacher" in task:
            seen = re.search(r"(?:What you see|you have seen): (.*)", task).group(1)
            line = f"Well, for question {number}, I see this: {seen}"
        else:
            line = f'User: "What about thing {number}, {body["seed"] % 97}?"\nThen more.'
        for key, answer in self.say.items():
            line = answer if key in task else line
        data = json.dumps({"choices": [{"message": {"content": line}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@contextmanager
def serving() -> Iterator[type[Talker]]:
    """A Talker of its own; `name` is what --writer needs."""

    class Own(Talker):
        asked, say, name = [], {}, ""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Own)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Own.name = f"http://127.0.0.1:{server.server_port}/v1#talker"
    yield Own
    server.shutdown()
