"""Functions that a call's words set off: called once, never waited for, and their results told."""

import logging
import threading
import time

import pytest
import torch

from mmspeech.checkpoint import load_model
from mmspeech.serve.session import Session
from mmspeech.serve.tools import ToolCalls, Tools

FRAME = 1920
WEATHER = r"weather in (\w+)"


def hear(calls: ToolCalls, text: str) -> None:
    """Words as pieces of three letters, then a frame without text."""
    for word in text.split():
        word = f" {word}"
        for start in range(0, len(word), 3):
            calls.hear(word[start : start + 3])
    calls.hear(None)


def results(calls: ToolCalls, *, count: int = 1, patience_sec: float = 5.0) -> list[str]:
    """The next `count` results."""
    told, deadline_sec = [], time.monotonic() + patience_sec
    while len(told) < count and time.monotonic() < deadline_sec:
        told += calls.results()
        time.sleep(0.002)
    return told


def test_a_match_calls_once_with_what_was_said():
    found = []

    def weather(match):
        found.append((match.group(1), threading.current_thread().name))
        return f"it rains in {match.group(1)}"

    calls = ToolCalls(Tools([(WEATHER, weather)]))
    hear(calls, "what is the weather in Paris please")
    hear(calls, "and so on")
    assert results(calls) == ["it rains in Paris"] and calls.results() == []
    assert found == [("Paris", "tool weather")]
    hear(calls, "the weather in Rome and the weather in Oslo")
    assert sorted(results(calls, count=2)) == ["it rains in Oslo", "it rains in Rome"]


def test_only_finished_words_are_searched():
    calls = ToolCalls(Tools([(WEATHER, lambda match: match.group(1))]))
    for piece in (" weather", " in", " Pa", "ris"):
        calls.hear(piece)
    assert not calls._jobs
    calls.hear(" is")
    assert results(calls) == ["Paris"]


def test_the_first_match_comes_first_and_others_follow_behind_it():
    order = []
    rules = [(r"two (\w+)", lambda match: order.append("two")), (r"one two|four", lambda match: order.append("one"))]
    calls = ToolCalls(Tools(rules, max_running=1))
    hear(calls, "one two three four")
    for thread in calls._threads:
        thread.join(5)
    assert order[:1] == ["one"] and calls._finished == ""


def test_nothing_to_tell_is_not_told():
    calls = ToolCalls(Tools([("red", lambda match: None), ("blue", lambda match: ""), ("green", lambda match: 7)]))
    hear(calls, "red blue green")
    assert results(calls) == ["7"]


def test_an_error_is_logged_and_told_in_short(caplog):
    def look_up(match):
        raise RuntimeError("no network")

    calls = ToolCalls(Tools([("red", look_up)]))
    with caplog.at_level(logging.WARNING):
        hear(calls, "red")
        assert results(calls) == ["look up failed"]
    assert caplog.messages == ["tool look up failed: RuntimeError: no network"]


def test_who_takes_too_long_is_given_up(caplog):
    release = threading.Event()

    def slow(match):
        release.wait(10)
        return "late"

    calls = ToolCalls(Tools([("red", slow)], timeout_sec=0.05, max_running=1))
    hear(calls, "red")
    assert calls.results() == []
    time.sleep(0.06)
    with caplog.at_level(logging.WARNING):
        assert calls.results() == []
        hear(calls, "red")  # the first one still runs
    release.set()
    assert results(calls, patience_sec=0.1) == []
    assert caplog.messages == [
        "tool slow: no result after 0.05 s; given up",
        "tool slow: not called, 1 are still running",
    ]


def test_text_does_not_pile_up():
    calls = ToolCalls(Tools([("never said", lambda match: None)]))
    hear(calls, "many words " * 1000)
    assert len(calls._finished) == 2000


def test_rules_that_cannot_be():
    for pattern, mention in (("(", "unterminated"), ("x*", "ask for a letter")):
        with pytest.raises(ValueError, match=mention):
            Tools([(pattern, str)])
    for limits in ({"timeout_sec": 0}, {"max_pieces": 0}, {"max_running": 0}):
        with pytest.raises(ValueError, match="above 0"):
            Tools([], **limits)


# In a call


def silence(frames: int) -> torch.Tensor:
    return torch.zeros(frames, FRAME)


def run(session: Session, *, frames: int, until=None) -> list:
    steps = []
    for pcm in silence(frames):
        steps.append(session.step(pcm))
        if until is not None and until.is_set():
            time.sleep(0.01)
    return steps


@pytest.fixture(scope="module")
def embedded():
    return load_model()


def talkative(bundle, tools: Tools | None) -> Session:
    """A call in which the model says "red" at once, because it is made to."""
    session = Session(bundle, seed=1, tools=tools)
    step, words = session._calls.step, iter(bundle.tokenizer.encode("the red one"))

    def saying(pcm):
        return step(pcm, text_ids=torch.tensor([next(words, -1)]))

    session._calls.step = saying
    return session


def test_what_a_tool_found_is_told(embedded):
    called = threading.Event()

    def count(match):
        called.set()
        return "there are three " * 20

    steps = run(talkative(embedded, Tools([("red", count)], max_pieces=5)), frames=25, until=called)
    told = {step.frame: step.told for step in steps if step.told is not None}
    first = min(told)
    pieces = [embedded.tokenizer.piece(token) for token in embedded.tokenizer.encode("there are three " * 20)[:5]]
    assert called.is_set() and list(told.items()) == list(enumerate(pieces, start=first))
    assert all(step.text is None for step in steps if step.told is not None)


def test_tools_that_are_not_asked_for_change_nothing(embedded):
    calls = [run(talkative(embedded, tools), frames=12) for tools in (None, Tools([("unsaid", str)]))]
    assert all(torch.equal(a.pcm, b.pcm) and a.text == b.text for a, b in zip(*calls, strict=True))


@pytest.mark.parametrize("failing", [False, True])
def test_a_slow_or_failing_tool_never_stops_the_call(embedded, failing, caplog):
    release = threading.Event()

    def trouble(match):
        if failing:
            raise ValueError("nothing there")
        release.wait(10)
        return "red"

    plain = run(talkative(embedded, None), frames=16)
    session = talkative(embedded, Tools([("red", trouble)], timeout_sec=0.05))
    steps = run(session, frames=16)
    release.set()
    assert [step.frame for step in steps] == [step.frame for step in plain]
    assert all(torch.isfinite(step.pcm).all() for step in steps)
    assert any("tool trouble" in message for message in caplog.messages)
    if not failing:
        assert all(torch.equal(a.pcm, b.pcm) for a, b in zip(steps, plain, strict=True))


def test_what_is_told_sets_off_no_tool(embedded):
    found = []
    session = Session(embedded, seed=1, tools=Tools([("purple triangle", lambda match: found.append(match))]))
    session.tell("a purple triangle")
    assert any(step.told for step in run(session, frames=10)) and not found
