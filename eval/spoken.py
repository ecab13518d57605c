"""What is measured of a spoken answer to a spoken question: is it right, in text and in sound, and when did it come?"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from eval.commentary import LISTEN_SEC, in_time, summarise_events, told
from eval.manifest import Line, read_lines
from eval.recognise import Ears, word_error
from eval.scoring import holds_answer, is_active, mean, normalise, percentile, stop_after
from eval.sights import Sights
from eval.task import MissingDataError, Prompt, Reply, Settings, spoken
from mmspeech.audio.waveform import read_audio
from mmspeech.config import ConfigError
from mmspeech.frames import FRAME_SAMPLES, SAMPLE_RATE_HZ, samples_to_seconds

FOLDER = "questions"
STOP_LIMIT_SEC = 0.6
SIGHT_SEC = 15.0  # after the question's end, no reply goes on for longer


def question_lines(settings: Settings, names: Iterable[str]) -> tuple[dict[str, list[Line]], list[Path]]:
    """The lines, by name, of those sets that are in DATA/questions, and their files. MissingDataError when none is."""
    folder = settings.data / FOLDER
    files = {name: folder / f"{name}.jsonl" for name in names}
    files = {name: file for name, file in files.items() if file.is_file()}
    if not files:
        raise MissingDataError(
            f"no question sets in {folder}; make them (ours, Apache-2.0): "
            f"uv run python -m data_prep questions --name all --count 50 --out {folder}"
        )
    return {name: read_lines(file, Line, limit=settings.limit) for name, file in files.items()}, list(files.values())


def spoken_prompt(line: Line, sights: Sights) -> Prompt:
    """The call of a line. ConfigError for files that are not there or cannot be read."""
    for path in (line.audio, *sights.paths(line)):
        if not path.is_file():
            raise ConfigError(f"{path}: no such file")
    wave = read_audio(line.audio)[0].numpy()
    pictures = sights.frames(line, until_sec=len(wave) / SAMPLE_RATE_HZ + SIGHT_SEC)
    return Prompt(wave, pictures, max((event.at_sec + LISTEN_SEC for event in line.events), default=0.0))


def score_spoken(line: Line, prompt: Prompt, reply: Reply, ears: Ears) -> dict[str, Any]:
    """The record of a reply.

    Right: an accepted answer stands in the words said (after the barge-in, where there is one), and no rejected one.
    False start: a word before the question's end. Answer time: from there to the first word after it, as heard.
    Stopping: from the barge-in to the model's silence. A line with events is right when all of them were told in time.
    """
    end_sec, barge_sec = question_end_sec(line, prompt.wave), line.barge_start_sec
    begin_sec = barge_sec or 0.0
    said = normalise(reply.text_since(begin_sec))
    all_said = normalise(reply.text)
    events = told(reply.words, line.events)
    stop_sec = None if barge_sec is None else stop_after(reply.wave, SAMPLE_RATE_HZ, barge_sec)
    right = is_right(said, line) and all(map(in_time, events))
    return {
        "score": float(right),
        "question": line.question,
        "answers": list(line.answers),
        "text": reply.text,
        "words": reply.told_words(),
        "events": events,
        **_heard(line, reply, all_said, begin_sec, ears),
        "false_start": None if barge_sec is not None else any(word.start_sec < end_sec for word in reply.words),
        "answer_sec": reply.first_word_after(end_sec),
        "barged": barge_sec is not None,
        "barged_while_speaking": stop_sec is not None,
        "stop_sec": None if stop_sec is None or math.isinf(stop_sec) else stop_sec,
        "gates": [round(gate, 3) for gate in reply.gates],
    }


def _heard(line: Line, reply: Reply, said: list[str], begin_sec: float, ears: Ears) -> dict[str, Any]:
    """What the recogniser makes of the sound."""
    heard = ears.words(reply.wave, SAMPLE_RATE_HZ)
    since = heard
    if begin_sec:
        since = ears.words(reply.wave[int(begin_sec * SAMPLE_RATE_HZ) :], SAMPLE_RATE_HZ)
    errors, count = word_error(said, heard)
    return {
        "heard": " ".join(heard),
        "heard_right": is_right(since, line) and all(holds_answer(heard, event.answers) for event in line.events),
        "word_errors": errors,
        "words_said": count,
        "words_unknown": sorted(set(said) & set(ears.unknown)),
    }


def summarise_spoken(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Shares are of the records given; `stopped` is of those where the model was speaking at the barge-in."""
    said = sum(r["words_said"] for r in records)
    stops = [math.inf if r["stop_sec"] is None else r["stop_sec"] for r in records if r["barged_while_speaking"]]
    answer_sec = [r["answer_sec"] for r in records if r["answer_sec"] is not None]
    return {
        "heard_right": mean([r["heard_right"] for r in records]),
        "word_error": sum(r["word_errors"] for r in records) / said if said else None,
        "false_starts": mean([r["false_start"] for r in records if r["false_start"] is not None]),
        "words_said": said,
        "words_unknown": sorted({word for r in records for word in r["words_unknown"]}),
        "said_nothing": mean([not r["text"] for r in records]),
        "answer_sec_p50": percentile(answer_sec, 50),
        "answer_sec_p90": percentile(answer_sec, 90),
        "gate": mean([w["gate"] for r in records for w in r["words"]]),
        "barge_ins": sum(r["barged"] for r in records),
        "barge_ins_while_speaking": len(stops),
        "stopped": mean([stop <= STOP_LIMIT_SEC for stop in stops]),
        "stop_sec_p50": percentile(stops, 50),
        **summarise_events([event for r in records for event in r["events"]]),
    }


def right_spoken(line: Line) -> Reply:
    """What a perfect model would say, and when."""
    end_sec = told_end_sec(line)
    comments = [spoken(event.answers[0], event.at_sec + 0.4) for event in line.events]
    return together([spoken(line.answers[0], end_sec + 0.3), *comments])


def together(replies: Sequence[Reply]) -> Reply:
    """All of them in one call: their words in order, their sounds added."""
    wave = np.zeros(max(len(reply.wave) for reply in replies), np.float32)
    for reply in replies:
        wave[: len(reply.wave)] += reply.wave
    words = [word for reply in replies for word in reply.words]
    return Reply(words, wave, [0.5] * (len(wave) // FRAME_SAMPLES))


def duration_sec(line: Line) -> float:
    """How long the caller's recording is; 0 for one that cannot be read."""
    try:
        info = soundfile.info(str(line.audio))
    except (soundfile.LibsndfileError, OSError):
        return 0.0
    return samples_to_seconds(info.frames, info.samplerate)


def told_end_sec(line: Line) -> float:
    """When the question ends, without hearing it: from the manifest, or else where the recording ends."""
    return duration_sec(line) if line.question_end_sec is None else line.question_end_sec


def is_right(words: list[str], line: Line) -> bool:
    """Whether the words hold an accepted answer and no rejected one."""
    return holds_answer(words, line.answers) and not holds_answer(words, line.rejected)


def question_end_sec(line: Line, wave: np.ndarray) -> float:
    """From the manifest, or else where the caller's sound ends."""
    if line.question_end_sec is not None:
        return line.question_end_sec
    active = np.flatnonzero(is_active(wave, SAMPLE_RATE_HZ))
    return (active[-1] + 1) * 0.02 if active.size else len(wave) / SAMPLE_RATE_HZ


def expected_sentences(lines: list[Line]) -> list[str]:
    """What the recogniser should know of the lines."""
    told_of = [answer for line in lines for event in line.events for answer in event.answers]
    return [text for line in lines for text in (line.reply or "", line.question, *line.answers)] + told_of
