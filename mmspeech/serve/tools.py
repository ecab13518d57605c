"""Functions that are called when a model's words match a pattern, and whose results it is told."""

import logging
import re
import runpy
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmspeech.config import ConfigError

KEPT_CHARACTERS = 2000  # of finished text that has not matched: what patterns are searched in

log = logging.getLogger("mmspeech.serve")

Tool = Callable[[re.Match[str]], str | None]


@dataclass(frozen=True)
class Tools:
    """`rules`: (pattern, function) pairs. A function gets the match and returns what the model is to be told (None:
    nothing); it runs in a thread of its own, so it may take its time, but not more than `timeout_sec`.

    Of a result at most `max_pieces` text pieces are told. At most `max_running` functions of a call run at once; what
    matches meanwhile is passed over. ValueError for patterns and limits that cannot be.
    """

    rules: Sequence[tuple[str, Tool]]
    timeout_sec: float = 5.0
    max_pieces: int = 40
    max_running: int = 4

    def __post_init__(self):
        if self.timeout_sec <= 0 or self.max_pieces < 1 or self.max_running < 1:
            raise ValueError("timeout_sec, max_pieces and max_running of tools are above 0")
        compiled_rules(self)


def load_tools(file: Path) -> Tools:
    """What a Python file calls `tools`; the file is run. ConfigError when it cannot be, or has none."""
    try:
        found = runpy.run_path(str(file)).get("tools")
    except Exception as error:
        raise ConfigError(f"{file}: {type(error).__name__}: {error}") from error
    if not isinstance(found, Tools):
        raise ConfigError(f"{file}: expected `tools = Tools([(pattern, function), ...])`, got {type(found).__name__}")
    return found


def compiled_rules(tools: Tools) -> list[tuple[re.Pattern[str], Tool]]:
    """Its rules, ready to search with. ValueError names a pattern that cannot be read, or that matches nothing."""
    compiled = []
    for pattern, function in tools.rules:
        try:
            ready = re.compile(pattern)
        except re.error as error:
            raise ValueError(f"pattern {pattern!r}: {error}") from error
        if ready.fullmatch(""):
            raise ValueError(f"pattern {pattern!r} matches where nothing was said; ask for a letter at least")
        compiled.append((ready, function))
    return compiled


@dataclass
class _Job:
    """A function at work. `done` is set, by its thread, after answer and error."""

    name: str
    began_sec: float = field(default_factory=time.monotonic)
    done: threading.Event = field(default_factory=threading.Event)
    answer: str | None = None
    error: Exception | None = None


class ToolCalls:
    """The tools of one call: hears its text, and has the results. Neither `hear` nor `results` ever waits."""

    def __init__(self, tools: Tools):
        self.max_pieces = tools.max_pieces
        self._tools, self._rules = tools, compiled_rules(tools)
        self._finished = ""  # whole words since the last match
        self._word = ""
        self._jobs: list[_Job] = []
        self._threads: list[threading.Thread] = []  # some may work for nobody any more

    def hear(self, piece: str | None) -> None:
        """The text of a frame, None for none. A word has ended when another begins, or a frame has no text."""
        if self._word and (piece is None or piece.startswith(" ")):
            self._finished, self._word = (self._finished + self._word)[-KEPT_CHARACTERS:], ""
            self._search()
        self._word += piece or ""

    def results(self) -> list[str]:
        """What is to be told by now, in the order the functions were called; late ones are given up."""
        told, waiting = [], []
        for job in self._jobs:
            if job.done.is_set():
                told.append(self._result(job))
            elif time.monotonic() - job.began_sec > self._tools.timeout_sec:
                log.warning("tool %s: no result after %g s; given up", job.name, self._tools.timeout_sec)
            else:
                waiting.append(job)
        self._jobs = waiting
        return [text for text in told if text]

    def _result(self, job: _Job) -> str | None:
        if job.error is None:
            return job.answer
        log.warning("tool %s failed: %s: %s", job.name, type(job.error).__name__, job.error)
        return f"{job.name} failed"

    def _search(self) -> None:
        """Call what matches, the earliest match first; the text up to the end of a match is done with."""
        while True:
            found = [(match, tool) for pattern, tool in self._rules if (match := _first_match(pattern, self._finished))]
            if not found:
                return
            match, tool = min(found, key=lambda pair: pair[0].start())
            self._finished = self._finished[match.end() :]
            self._call(tool, match)

    def _call(self, tool: Tool, match: re.Match[str]) -> None:
        job = _Job(getattr(tool, "__name__", "tool").replace("_", " "))
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        if len(self._threads) >= self._tools.max_running:
            log.warning("tool %s: not called, %d are still running", job.name, len(self._threads))
            return
        # Not a pool: one that is full of functions that hang would never call another, and hold up the end.
        thread = threading.Thread(target=_work, args=(job, tool, match), name=f"tool {job.name}", daemon=True)
        self._jobs.append(job)
        self._threads.append(thread)
        thread.start()


def _first_match(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    """The first match of a letter or more."""
    return next((match for match in pattern.finditer(text) if match.group()), None)


def _work(job: _Job, tool: Tool, match: re.Match[str]) -> None:
    try:
        answer = tool(match)
        job.answer = None if answer is None else str(answer)
    except Exception as error:  # noqa: BLE001 - whatever a tool does, the call goes on
        job.error = error
    job.done.set()
