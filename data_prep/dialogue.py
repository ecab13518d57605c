"""`dialogue`: records with captions -> records with turns, written by a language model that plays both sides.

As MoshiVis's visual dialogues were made (Royer et al. 2025): one side asks, the other knows the captions, each with its
own instructions. Ours come from a file (data_prep/templates.py), so kinds of tasks, personas and languages are the
user's; clips whose captions have times are talked about while they happen.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from data_prep.filters import check_dialogue
from data_prep.records import Record, SaidRecord, TextRecord, media_root, parse_record
from data_prep.steps import How, Item, Outcome, Tally, attempt, run_step
from data_prep.templates import Kind, Templates
from data_prep.writers import Chat, KeptLines, Writer, WriterSettings, clean_line, open_writer
from mmspeech.config import ConfigError

CHUNK_ITEMS = 32
REACTION_SEC = 1.0  # a question about an event begins no sooner after it
_SIDES = ("user", "main")
_MOST_LINE = 2_000  # characters


def write_dialogues(
    data: Path,
    out: Path,
    *,
    writer: str,
    templates: Templates,
    drawn: WriterSettings,
    seed: int,
    how: How,
    cache: Path | None = None,
    device: str = "cpu",
) -> Tally:
    """Write a dialogue about each record of `data`. `cache`: where lines are kept (None: OUT/lines).

    Raises ConfigError for a writer that cannot be had; records that break a filter's rule are counted, not written.
    """
    work = DialogueWork(writer, templates, drawn, seed, cache or out / "lines", device)
    settings = {"writer": writer, "templates": templates.model_dump(), "drawn": drawn.model_dump(), "seed": seed}
    told = {"media_root": str(media_root(data if data.is_dir() else data.parent))}
    return run_step("dialogue", data, out, work, settings=settings, how=how, chunk_items=CHUNK_ITEMS, told=told)


@dataclass(frozen=True)
class DialogueWork:
    """See steps.Work."""

    writer: str
    templates: Templates
    drawn: WriterSettings
    seed: int
    cache: Path
    device: str = "cpu"

    def open(self):
        opened = _Once(partial(open_writer, self.writer, self.drawn, device=self.device))
        return partial(self._chunk, opened)

    def _chunk(self, opened: "_Once", number: int, items: list[Item]) -> Iterable[Outcome]:
        plans, broken = [], {}
        for index, (where, data) in enumerate(items):
            try:
                if isinstance(data, ConfigError):
                    raise data
                plans.append(make_plan(parse_record(data, where=where), self.templates, self.seed))
            except ConfigError as error:
                broken[index] = Outcome(where, failed=str(error))
        identity = f"{self.writer} {self.drawn.model_dump_json()}"
        write_lines(plans, KeptLines(opened, self.cache / f"{number:06d}.jsonl", identity=identity), self.templates)
        done = iter(plans)
        for index in range(len(items)):
            if index in broken:
                yield broken[index]
            else:
                plan = next(done)
                yield attempt(plan.record.id, partial(self._entry, plan))

    def _entry(self, plan: "Plan") -> dict[str, Any]:
        facts = plan.facts(len(plan.moments_sec) - 1)
        check_dialogue(plan.turns, facts=facts, filters=self.templates.filters)
        about = {"kind": plan.kind_name, "persona": plan.persona, "language": plan.language, "writer": self.writer}
        record = plan.record.model_copy(update={"turns": tuple(plan.turns), "meta": plan.record.meta | about})
        return record.line()


class _Once:
    """Opens a writer when it is first needed, and only then: lines that are all kept need none."""

    def __init__(self, make):
        self._make = make

    def __call__(self) -> Writer:
        return self._writer

    @cached_property
    def _writer(self) -> Writer:
        return self._make()


@dataclass
class Plan:
    """A dialogue while it is written. moments_sec: for each question, when it may begin at the earliest; None: any
    time."""

    record: Record
    kind_name: str
    kind: Kind
    persona: str
    language: str
    seed: int
    moments_sec: list[float | None]
    turns: list[SaidRecord] = field(default_factory=list)
    ended: bool = False

    def facts(self, question: int) -> str:
        """What is known at a question: all, or in a timed dialogue what has happened."""
        moment_sec = self.moments_sec[question]
        known = known_of(self.record)
        if moment_sec is not None:
            known = [one for one in known if (one.start_sec or 0.0) <= moment_sec]
        return " ".join(one.text.strip() for one in known)

    def chat(self, speaker: str, templates: Templates) -> Chat:
        """What the model is asked when it plays `speaker`, whose turn it is."""
        own = {
            "facts": self.facts(len(self.turns) // 2),
            "persona": self.persona,
            "language": templates.languages[self.language],
            "turns": str(len(self.moments_sec)),
        }
        task = Template(self.kind.user if speaker == "user" else self.kind.model).substitute(own)
        said = [("assistant" if turn.speaker == speaker else "user", turn.text) for turn in self.turns]
        if speaker == "user":
            said.insert(0, ("user", templates.begin))
        return [{"role": role, "content": text} for role, text in [("system", task), *said]]

    def add(self, speaker: str, text: str) -> None:
        """The next line; an empty one ends the dialogue."""
        moment_sec = self.moments_sec[len(self.turns) // 2] if speaker == "user" else None
        if text:
            self.turns.append(SaidRecord(speaker=speaker, text=text, start_sec=moment_sec))
        else:
            self.moments_sec = self.moments_sec[: len(self.turns) // 2 + 1]
            self.ended = True


def make_plan(record: Record, templates: Templates, seed: int) -> Plan:
    """Draw kind, persona, language and length for a record: the same for the same record and seed.

    ConfigError for a record of which nothing is known.
    """
    known = known_of(record)
    if not known:
        raise ConfigError(f"{record.id}: nothing is known of what is seen (no captions, no turns)")
    number = int.from_bytes(hashlib.sha256(f"{seed} {record.id}".encode()).digest()[:7], "big")
    rng = np.random.default_rng(number)
    events = [one for one in known if one.start_sec is not None]
    kinds = {name: kind for name, kind in templates.kinds.items() if events or not kind.timed}
    if not kinds:
        raise ConfigError(f"{record.id}: its captions have no times, and all kinds are about events")
    shares = np.array([kind.share for kind in kinds.values()])
    name = list(kinds)[rng.choice(len(kinds), p=shares / shares.sum())]
    kind = kinds[name]
    count = int(rng.integers(kind.turns[0], kind.turns[1] + 1))
    moments_sec: list[float | None] = [None] * count
    if kind.timed:
        picked = sorted(rng.choice(len(events), size=min(count, len(events)), replace=False))
        moments_sec = [_after(events[index]) for index in picked]
    language = list(templates.languages)[rng.integers(len(templates.languages))]
    persona = templates.personas[rng.integers(len(templates.personas))]
    return Plan(record, name, kind, persona, language, number, moments_sec)


def known_of(record: Record) -> list[TextRecord]:
    """The captions in the order of their times; of a record without any, what its turns say."""
    if record.captions:
        return sorted(record.captions, key=lambda one: one.start_sec or 0.0)
    return [TextRecord(text=turn.text) for turn in record.turns]


def _after(event: TextRecord) -> float:
    return round((event.end_sec if event.end_sec is not None else event.start_sec + REACTION_SEC), 2)


def write_lines(plans: list[Plan], writer: Writer, templates: Templates) -> None:
    """Let the dialogues grow, all by a line at a time, so that a model has many to write at once."""
    for step in range(2 * max((len(plan.moments_sec) for plan in plans), default=0)):
        speaker = _SIDES[step % 2]
        growing = [plan for plan in plans if not plan.ended and step < 2 * len(plan.moments_sec)]
        if not growing:
            return
        chats = [plan.chat(speaker, templates) for plan in growing]
        lines = writer.lines(chats, seeds=[plan.seed + step for plan in growing])
        for plan, line in zip(growing, lines, strict=True):
            plan.add(speaker, clean_line(line)[:_MOST_LINE])
