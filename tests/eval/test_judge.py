"""Judges: rules by hand, and a served one over a real socket."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from eval.instructions import follows
from eval.judge import NoJudge, ServedJudge, chosen_letter, open_judge, refuses
from mmspeech.config import ConfigError


@pytest.fixture
def server():
    """A small server; `replies` are its next answers: a status, or what the judge says."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.asked.append((self.path, dict(self.headers), body))
            reply = server.replies.pop(0)
            if isinstance(reply, bytes):  # no HTTP that anyone expects
                self.wfile.write(reply)
                self.close_connection = True
                return
            self.send_response(reply if isinstance(reply, int) else 200)
            self.end_headers()
            if not isinstance(reply, int):
                told = {"choices": [{"message": {"content": reply}}]} if reply is not None else {"other": 1}
                self.wfile.write(json.dumps(told).encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.replies = [], []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def judge_of(server):
    return ServedJudge(f"http://127.0.0.1:{server.server_address[1]}/v1", "a-model", wait_sec=0.01)


def test_a_served_judge_rates(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    server.replies += ["4", "5", "1."]
    judge = judge_of(server)
    assert [judge.rate("why", "because", None) for _ in range(3)] == [0.75, 1.0, 0.0]
    path, headers, body = server.asked[0]
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer secret"
    assert body["model"] == "a-model" and body["temperature"] == 0
    assert judge.rate("why", "", None) == 0.0 and len(server.asked) == 3  # silence needs no judge


def test_a_judge_that_stumbles_is_asked_again(server):
    server.replies += [503, 429, None, "3"]
    assert judge_of(server).rate("why", "because", "a reason") == 0.5
    assert "A right answer: a reason" in server.asked[0][2]["messages"][1]["content"]


@pytest.mark.parametrize(
    ("replies", "message"),
    [
        ([401], "refused .401"),
        ([500] * 4, "no answer in 4 tries"),
        ([b""] * 4, "no answer in 4 tries"),
        ([b"hello\r\n\r\n"] * 4, "no answer in 4 tries"),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"] * 4, "no answer in 4 tries"),
    ],
)
def test_a_judge_that_cannot_be_had_is_named(server, replies, message):
    server.replies += replies
    with pytest.raises(ConfigError, match=message):
        judge_of(server).rate("why", "because", None)


@pytest.mark.parametrize(
    ("said", "rated"),
    [("well, good", None), ("", None), ("0.5", None), ("7", None), ("4.5", 0.875), ("Rating: 2", 0.25)],
)
def test_what_is_no_rating_rates_nothing(server, said, rated):
    server.replies.append(said)
    assert judge_of(server).rate("why", "because", None) == rated


def test_judges_by_name():
    assert isinstance(open_judge("rules"), NoJudge) and open_judge("rules").rate("a", "b", None) is None
    assert open_judge("https://host/v1/#m") == ServedJudge("https://host/v1", "m")
    for name in ("gpt", "http://host/v1", "ftp://host#m", "http://h:port/v1#m", "http://h h/v1#m", "http:///v1#m"):
        with pytest.raises(ConfigError, match="model-name"):
            open_judge(name)


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"), ("the answer is c", "C"), ("I think the answer is (D) because of A", "D"), ("option a", "A"),
        ("a", "A"), ("a dog is an animal", None), ("A or B", None), ("", None), ("it is b", "B"), ("C. the sea", "C"),
        ("A dog is an animal", None), ("The answer is a dog", None), ("The answer is A because", "A"), ("a CD", None),
        ("AB", None), ("Answer: a", "A"), ("**B**", "B"), ("It's B. A cat is small", "B"), ("A. wood", "A"),
    ],
)  # fmt: skip
def test_the_option_named(answer, letter):
    assert chosen_letter(answer) == letter


def test_refusals():
    assert refuses("I'm sorry, but I can't help with that.") and refuses("I cannot do that")
    assert not refuses("Sure, first you take") and not refuses("") and not refuses("They said i cannot")


@pytest.mark.parametrize(
    ("instruction", "options", "answer", "done"),
    [
        ("keywords:existence", {"keywords": ["red", "bus"]}, "A Red bus.", True),
        ("keywords:existence", {"keywords": ["red", "car"]}, "A red bus.", False),
        ("keywords:forbidden_words", {"forbidden_words": ["bus"]}, "a busy road", True),
        ("keywords:frequency", {"keyword": "a", "frequency": 2, "relation": "at least"}, "a or a", True),
        ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, "one two three", False),
        ("punctuation:no_comma", {}, "one, two", False),
        ("change_case:english_lowercase", {"unused": None}, "all small", True),
        ("change_case:english_capital", {}, "Not Capital", False),
        ("startend:end_checker", {"end_phrase": "Good night!"}, "so good night", True),
        ("combination:two_responses", {}, "anything", None),
        ("keywords:existence", {"keywords": None}, "anything", None),
    ],
)
def test_instructions_by_rule(instruction, options, answer, done):
    assert follows(answer, instruction, options) is done
