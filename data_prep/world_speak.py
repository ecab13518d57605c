"""`speak` of the rendered world: its dialogues -> stereo calls (left the model, right the user) with word and phone
times."""

import json
import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import Field

from data_prep.effects import user_channel
from data_prep.files import write_atomic, write_wav
from data_prep.model_voice import model_says
from data_prep.motion import SEEN_FPS, seen_sec
from data_prep.scenes import DialogueRecord, SightRecord, item_rng, load_dialogue
from data_prep.track import Track
from data_prep.tts import Voice, random_voice, require_synthesisers, synthesise
from mmspeech.config import ConfigError, StrictModel
from mmspeech.frames import SAMPLE_RATE_HZ

LONG_ANSWER_SEC = 1.4
FIRST_ROOM_SEC, LATER_ROOM_SEC = 2.5, 0.6  # how far a question about a clip may end after it has become true
COMMENT_WITHIN_SEC = 1.5  # of an event


class Timing(StrictModel):
    """When people speak. Ranges are (shortest, longest) in seconds; shares are probabilities per turn."""

    start_sec: tuple[float, float] = (0.3, 1.5)
    answer_gap_sec: tuple[float, float] = (0.35, 0.43)
    question_gap_sec: tuple[float, float] = (0.5, 1.3)
    pause_share: float = Field(0.15, ge=0, le=1)
    pause_sec: tuple[float, float] = (0.4, 1.0)
    barge_in_share: float = Field(0.25, ge=0, le=1)  # of long answers
    barge_in_stop_sec: float = 0.28
    quiet_share: float = Field(0.06, ge=0, le=1)
    quiet_sec: tuple[float, float] = (2.0, 4.0)
    reaction_sec: tuple[float, float] = (0.3, 0.42)  # of the model, to a frame that shows that something happened


@dataclass
class SpokenCall:
    """wave [N, 2] float32 (left the model, right the user) and the json that goes beside it."""

    wave: np.ndarray
    record: dict


def question_parts(question: str, rng: np.random.Generator, *, pause: bool) -> list[str]:
    """The question in one part, or cut at one of its marks where the speaker pauses."""
    words = question.split()
    marks = [index for index, word in enumerate(words) if word == "|"]
    if not pause or not marks:
        return [" ".join(word for word in words if word != "|")]
    cut = marks[int(rng.integers(len(marks)))]
    halves = words[:cut], words[cut:]
    return [" ".join(word for word in half if word != "|") for half in halves]


def say_question(track: Track, question: str, voice: Voice, start_sec: float, rng, timing: Timing) -> float:
    """Lay a question down, perhaps with a pause inside; returns where it ends."""
    end_sec = start_sec
    parts = question_parts(question, rng, pause=rng.random() < timing.pause_share)
    for number, part in enumerate(parts):
        start_sec = end_sec + (rng.uniform(*timing.pause_sec) if number else 0.0)
        end_sec = track.add(synthesise(part, voice), start_sec)
    return end_sec


class OtherCallError(ConfigError):
    """A folder that holds another call under the same name."""


def speak_dialogue(turns: list[dict], *, voice: Voice, rng: np.random.Generator, timing: Timing) -> SpokenCall:
    """Lay a dialogue out in time: gaps, pauses, barge-ins, stretches of quiet.

    turns: dicts of the fields of scenes.TurnRecord; the record's turns have the times (seconds) and `interrupted` too.
    """
    model, user, records = Track(), Track(), []
    now_sec = rng.uniform(*timing.start_sec)
    cut_after: dict | None = None  # the answer that the next question interrupts
    for number, turn in enumerate(turns):
        if cut_after is None and rng.random() < timing.quiet_share:
            now_sec += rng.uniform(*timing.quiet_sec)
        question_end = say_question(user, turn["question"], voice, now_sec, rng, timing)
        if cut_after is not None:
            _finish_answer(model, cut_after, until_sec=now_sec + timing.barge_in_stop_sec)
            cut_after = None
        answer = model_says(turn["answer"])
        start = question_end + rng.uniform(*timing.answer_gap_sec)
        record = turn | _spoken(turn, (now_sec, question_end), (start, start + answer.duration_sec))
        records.append(record)
        long = answer.duration_sec > LONG_ANSWER_SEC and number + 1 < len(turns)
        if long and rng.random() < timing.barge_in_share:
            cut_after = record
            now_sec = start + rng.uniform(0.5, answer.duration_sec - 0.4)
        else:
            _finish_answer(model, record, until_sec=None)
            now_sec = record["answer_end_sec"] + rng.uniform(*timing.question_gap_sec)
    return _mixed(model, user, records, end_sec=now_sec, rng=rng)


def speak_shown(
    turns: list[dict], *, num_sights: int, voice: Voice, rng: np.random.Generator, timing: Timing
) -> tuple[SpokenCall, list[float]]:
    """Lay a dialogue out in time together with what is shown; also returns when each of those begins, in seconds.

    A clip begins such that the first question about it ends when it is true; later questions wait for their time, and
    one that would come too late is left out. A picture begins before the first question about it. After a request to
    tell what happens, the model speaks when it has: the turn's `comments` get their times in the call.
    """
    model, user, records = Track(), Track(), []
    starts_sec: list[float] = []
    now_sec = rng.uniform(*timing.start_sec)
    for turn in turns:
        asked = Track()
        length_sec = say_question(asked, turn["question"], voice, 0.0, rng, timing)
        begin_sec = _begin(turn, now_sec, length_sec, starts_sec, rng)
        if begin_sec is None:
            continue
        user.join(asked, begin_sec)
        start_sec = begin_sec + length_sec + rng.uniform(*timing.answer_gap_sec)
        end_sec = model.add(model_says(turn["answer"]), start_sec)
        record = {key: value for key, value in turn.items() if key not in ("when", "comments")}
        records.append(record | _spoken(turn, (begin_sec, begin_sec + length_sec), (start_sec, end_sec)))
        if "comments" in turn:
            records[-1]["comments"] = _comment(model, turn["comments"], starts_sec[turn["sight"]], end_sec, rng, timing)
            end_sec = max([end_sec, *(comment["end_sec"] for comment in records[-1]["comments"])])
        now_sec = end_sec + rng.uniform(*timing.question_gap_sec)
    if len(starts_sec) < num_sights:
        raise ConfigError(f"{len(starts_sec)} of {num_sights} things that are shown are asked about; expected all")
    return _mixed(model, user, records, end_sec=now_sec, rng=rng), starts_sec


def _spoken(turn: dict, question_sec: tuple[float, float], answer_sec: tuple[float, float]) -> dict:
    """What the record of a turn has once it is spoken: when question and answer begin and end."""
    return {
        "question": plain_text(turn["question"]),
        "question_start_sec": question_sec[0],
        "question_end_sec": question_sec[1],
        "answer_start_sec": answer_sec[0],
        "answer_end_sec": answer_sec[1],
        "interrupted": False,
    }


def _begin(turn: dict, now_sec: float, length_sec: float, starts_sec: list[float], rng) -> float | None:
    """When a question that can begin at `now_sec` does; None: it would come too late. Fills in `starts_sec`."""
    sight = turn.get("sight")
    new = sight is not None and sight == len(starts_sec)
    if "when" not in turn:
        if new:
            starts_sec.append(round(now_sec + rng.uniform(0.0, 0.4), 3) if starts_sec else 0.0)
            now_sec = max(now_sec, starts_sec[-1] + rng.uniform(0.1, 0.6))
        return now_sec
    earliest_sec, latest_sec = turn["when"]
    room_sec = FIRST_ROOM_SEC if new else LATER_ROOM_SEC
    if latest_sec is not None:
        room_sec = min(room_sec, latest_sec - earliest_sec)
    true_sec = earliest_sec + rng.uniform(0.0, room_sec)
    if new:
        now_sec = max(now_sec, true_sec - length_sec)
        starts_sec.append(round(now_sec + length_sec - true_sec, 3))
        return now_sec
    now_sec = max(now_sec, starts_sec[sight] + true_sec - length_sec)
    late = latest_sec is not None and now_sec + length_sec > starts_sec[sight] + latest_sec
    return None if late else now_sec


def _comment(model: Track, comments: list[dict], clip_sec: float, free_sec: float, rng, timing: Timing) -> list[dict]:
    """Let the model tell of events of a clip that began at `clip_sec`; returns the comments with times of the call.
    What could only be told too late is left out."""
    told = []
    for comment in comments:
        seen = max(seen_sec(comment["event_sec"]) + rng.uniform(*timing.reaction_sec), comment["event_sec"] + 0.4)
        start_sec = max(clip_sec + seen, free_sec + 0.1)
        event_sec = clip_sec + comment["event_sec"]
        if start_sec > event_sec + COMMENT_WITHIN_SEC:
            continue
        free_sec = model.add(model_says(comment["text"]), start_sec)
        times = {"event_sec": event_sec, "start_sec": start_sec, "end_sec": free_sec}
        told.append(comment | {key: round(value, 3) for key, value in times.items()})
    return told


def _finish_answer(model: Track, record: dict, *, until_sec: float | None) -> None:
    end = model.add(model_says(record["answer"]), record["answer_start_sec"], until_sec=until_sec)
    record["interrupted"] = until_sec is not None and until_sec < record["answer_end_sec"]
    record["answer_end_sec"] = end


def _mixed(model: Track, user: Track, records: list[dict], *, end_sec: float, rng) -> SpokenCall:
    """Both sides of a call, which ends a little after `end_sec`, and its record."""
    length = int((end_sec + rng.uniform(0.3, 1.0)) * SAMPLE_RATE_HZ)
    wave = np.stack([model.wave(length), user_channel(user.wave(length), rng)], axis=1)
    alignments = [(w, a, b, "SPEAKER_MAIN") for w, a, b in model.words]
    alignments += [(w, a, b, "SPEAKER_USER") for w, a, b in user.words]
    alignments.sort(key=lambda item: item[1])
    record = {
        "alignments": [[w, [round(a, 3), round(b, 3)], who] for w, a, b, who in alignments],
        "phones": {
            side: [[p, round(a, 3), round(b, 3)] for p, a, b in track.phones]
            for side, track in (("main", model), ("user", user))
        },
        "turns": [{k: round(v, 3) if isinstance(v, float) else v for k, v in turn.items()} for turn in records],
    }
    return SpokenCall(wave, record)


def speak_item(source: Path, out: Path, *, seed: int, timing: Timing) -> dict:
    """Voice one NAME.dialogue.json into out/NAME.wav and .json; returns its manifest entry. Done work is kept.

    Raises ConfigError for a broken dialogue or one that cannot be spoken, OtherCallError when out/NAME.json is of
    another dialogue.
    """
    name = source.name.removesuffix(".dialogue.json")
    if not name.isdigit():
        raise ConfigError(f"{source}: expected a number as its name, as `python -m data_prep scenes` gives")
    dialogue = load_dialogue(source)
    wav, record_path = (out / f"{name}{suffix}" for suffix in (".wav", ".json"))
    sights = sights_of(dialogue, name)
    if record_path.is_file() and wav.is_file():
        entry = _entry_of(record_path, dialogue)
        if all((out / sight.path).is_file() for sight in sights):
            return entry
    rng = item_rng(seed, dialogue.split, int(name), "speak")
    voice = random_voice(rng, held_out=False)
    turns = [turn.model_dump(mode="json", exclude_defaults=True) for turn in dialogue.turns]
    if dialogue.sights:
        call, starts_sec = speak_shown(turns, num_sights=len(sights), voice=voice, rng=rng, timing=timing)
    else:
        call, starts_sec = speak_dialogue(turns, voice=voice, rng=rng, timing=timing), [0.0] * len(sights)
    entry = {"path": wav.name, "duration": round(len(call.wave) / SAMPLE_RATE_HZ, 3), "kind": dialogue.kind}
    visuals = []
    for sight, start_sec in zip(sights, starts_sec, strict=True):
        write_atomic(out / sight.path, source.with_name(sight.path).read_bytes())
        visuals.append({"kind": sight.kind, "path": sight.path, "start_sec": start_sec})
        visuals[-1] |= {"fps": SEEN_FPS} if sight.kind == "clip" else {}
    write_wav(wav, call.wave)
    facts = {"visuals": visuals, "voice": voice.model_dump(), "split": dialogue.split, "entry": entry}
    write_atomic(record_path, json.dumps(call.record | facts).encode())
    return entry


def sights_of(dialogue: DialogueRecord, name: str) -> tuple[SightRecord, ...]:
    """What is shown in the call of the dialogue called `name`."""
    if dialogue.kind == "visual":
        return (SightRecord(kind="image", path=f"{name}.png"),)
    return dialogue.sights


def plain_text(question: str) -> str:
    """A question without its pause marks."""
    return " ".join(question.replace("|", " ").split())


def _entry_of(record_path: Path, dialogue: DialogueRecord) -> dict:
    """The manifest entry of a call that was voiced before."""
    try:
        record = json.loads(record_path.read_text(encoding="utf-8"))
        entry, spoken = record["entry"], [turn["question"] for turn in record["turns"]]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ConfigError(f"{record_path}: not the json of a call; delete it and run this again") from error
    wanted = iter(plain_text(turn.question) for turn in dialogue.turns)
    if not spoken or not all(question in wanted for question in spoken):  # in order; some may have been left out
        raise OtherCallError(
            f"{record_path}: holds another call than {dialogue.turns[0].question!r} begins; choose another --out folder"
        )
    return entry


def _speak_one(job: tuple[Path, Path, int, Timing]) -> tuple[Path, dict | None, str]:
    source, out, seed, timing = job
    try:
        return source, speak_item(source, out, seed=seed, timing=timing), ""
    except OtherCallError:
        raise
    except (ValueError, OSError) as error:
        return source, None, f"{type(error).__name__}: {error}"


def _results(work: list[tuple], jobs: int) -> Iterator[tuple[Path, dict | None, str]]:
    """What _speak_one makes of each job, in order; in this process when there is one job only."""
    if jobs == 1:
        yield from map(_speak_one, work)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap(_speak_one, work, chunksize=8)


def speak(data: Path, out: Path, *, seed: int, jobs: int, timing: Timing, shard: tuple[int, int] = (0, 1)) -> int:
    """Voice every dialogue of `data` into `out`; the manifest is written last. Returns how many failed (.err files).

    `jobs`: processes. `shard` (i, n): only every n-th dialogue, beginning with i; the manifest is then a part,
    manifest-i-of-n.jsonl. Raises ConfigError when there are no dialogues or `out` holds other calls, FileNotFoundError
    when a synthesiser is not installed.
    """
    from rich.progress import track

    sources = sorted(data.glob("*.dialogue.json"))
    if not sources:
        raise ConfigError(f"{data}: no *.dialogue.json; make them with `python -m data_prep scenes`")
    require_synthesisers()
    out.mkdir(parents=True, exist_ok=True)
    work = [(source, out, seed, timing) for source in sources[shard[0] :: shard[1]]]
    entries: list[dict] = []
    failed = 0
    for source, entry, problem in track(_results(work, jobs), total=len(work), description="speak"):
        problem_file = out / f"{source.name}.err"
        if entry is None:
            failed += 1
            write_atomic(problem_file, problem.encode())
        else:
            entries.append(entry)
            problem_file.unlink(missing_ok=True)
    name = "manifest.jsonl" if shard[1] == 1 else f"manifest-{shard[0]}-of-{shard[1]}.jsonl"
    write_atomic(out / name, "".join(json.dumps(entry) + "\n" for entry in entries).encode())
    return failed
