"""OVO-Bench and StreamingBench as they lie on GitHub and on the hub: questions at moments of videos.

OVO-Bench: ovo_bench_new.json (id, task, video, realtime, question, options, gt). StreamingBench: csv files
(question_id, task_type, question, time_stamp, answer, options), and zips of sample_N/video.mp4 whose numbers begin anew
in each, so that each has to be unpacked into a folder of its name ("Emotion Recognition", "Scene Understanding_1-25").
"""

import ast
import csv
import json
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eval.choices import LETTERS
from mmspeech.config import ConfigError

OVO_FILE = "ovo_bench_new.json"
OVO_VIDEOS = ("videos", "src_videos", ".")
WINDOWS = {
    **dict.fromkeys(("EPM", "ASI", "HLD"), "backward"),
    **dict.fromkeys(("OCR", "ACR", "ATR", "STU", "FPD", "OJR"), "real time"),
}
SEQUENTIAL = "Sequential Question Answering"
# Rows name one task otherwise than its zip does.
_ZIPS = {"Misleading Context Recognition": "Misleading Context Understanding"}
_ID = re.compile(r"(?P<set>.+?)_(?:sample_)?(?P<sample>\d+)_(?P<number>\d+)")
_LETTER = re.compile(r"\s*([A-H])[.)]\s*")


@dataclass(frozen=True)
class Moment:
    """A question at a moment of a video, which may not be there; `answer`: index of the right option."""

    id: str
    kind: str
    video: Path
    at_sec: float
    question: str
    options: tuple[str, ...]
    answer: int
    voice: str = "all"

    def __post_init__(self):
        if not isinstance(self.question, str) or not self.question.strip():
            raise ValueError(f"the question is {self.question!r}, expected words")
        if not (math.isfinite(self.at_sec) and self.at_sec >= 0):
            raise ValueError(f"the moment is {self.at_sec} s, expected a time from 0 s on")
        if not (2 <= len(self.options) <= len(LETTERS) and 0 <= self.answer < len(self.options)):
            raise ValueError(f"answer number {self.answer} of {len(self.options)} options")


def read_ovo(file: Path) -> list[Moment]:
    """The backward and real-time questions. ConfigError names the first entry that does not fit."""
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{file}: not JSON ({error}); download it again") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ConfigError(f"{file}: expected a list of entries with id, task, video ...; download it again")
    found = []
    for number, row in enumerate(rows, start=1):
        if row.get("task") not in WINDOWS:
            continue
        try:
            found.append(_ovo_moment(row, file.parent))
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"{file}, entry {number}: {type(error).__name__}: {error}; expected id, task, video, realtime, "
                "question, options, gt (an index)"
            ) from error
    return _with_ids_that_differ(found)


def _ovo_moment(row: dict[str, Any], folder: Path) -> Moment:
    """The whole video, or where only that is there its chunk, which ends at the question's moment."""
    kind = f"OVO-Bench {WINDOWS[row['task']]}: {row['task']}"
    paths = [folder / name / row["video"] for name in OVO_VIDEOS]
    paths.append(folder / "chunked_videos" / f"{row['id']}.mp4")
    video = next((path for path in paths if path.is_file()), paths[0])
    options = tuple(map(str, row["options"]))
    return Moment(f"ovo/{row['id']}", kind, video, float(row["realtime"]), row["question"], options, int(row["gt"]))


def read_streaming(file: Path, folder: Path) -> list[Moment]:
    """The multiple-choice questions of a csv, with videos anywhere below `folder`; none of proactive output.

    ConfigError names the first line that does not fit.
    """
    with file.open(newline="", encoding="utf-8-sig") as opened:
        reader = csv.DictReader(opened)
        rows = list(reader)
        if "ground_truth_output" in (reader.fieldnames or ()):
            return []
    videos = _streaming_videos(folder)
    found = []
    for number, row in enumerate(rows, start=2):
        try:
            found.append(_streaming_moment(row, file, folder, videos))
        except (KeyError, AttributeError, SyntaxError, TypeError, ValueError) as error:
            raise ConfigError(
                f"{file}, line {number}: {type(error).__name__}: {error}; expected question_id (SET_sample_N_M), "
                "task_type, question, time_stamp, answer (a letter), options (a list)"
            ) from error
    return _with_ids_that_differ(_with_history(found, rows))


def _streaming_moment(row: dict[str, str], file: Path, folder: Path, videos: dict[tuple[str, str], Path]) -> Moment:
    named = _ID.fullmatch(row["question_id"].strip())
    if named is None:
        raise ValueError(f"question_id {row['question_id']!r}")
    name = _ZIPS.get(named["set"], named["set"])
    video = videos.get((name, named["sample"]), folder / name / f"sample_{named['sample']}" / "video.mp4")
    kind = f"StreamingBench {file.stem.replace('_', ' ')}: {row['task_type'].strip()}"
    answer = row["answer"].strip()
    if len(answer) != 1 or answer not in LETTERS:
        raise ValueError(f"answer {answer!r}")
    return Moment(
        f"streaming/{file.stem}/{row['question_id']}",
        kind,
        video,
        _seconds(row["time_stamp"]),
        row["question"],
        _options([str(one) for one in ast.literal_eval(row["options"])]),
        LETTERS.index(answer),
    )


def _streaming_videos(folder: Path) -> dict[tuple[str, str], Path]:
    """The video of each (set, sample): that of a folder sample_N below one with the set's name."""
    found: dict[tuple[str, str], Path] = {}
    for video in sorted(folder.rglob("sample_*/*.mp4")):
        sample = video.parent.name.removeprefix("sample_")
        for above in video.relative_to(folder).parts[:-2]:
            # "Scene Understanding_26-50": one of several zips
            found.setdefault((re.sub(r"_\d+-\d+$", "", above), sample), video)
    return found


def _options(told: list[str]) -> tuple[str, ...]:
    """Options without their letters. More than four: some are broken in two, or the whole list stands there twice."""
    if len(told) > 4:
        whole: list[str] = []
        for one in told:
            if _LETTER.match(one):
                whole.append(one)
            elif whole:
                whole[-1] += f" {one.strip()}"
        letters = [_LETTER.match(one).group(1) for one in whole]
        told = [one for number, one in enumerate(whole) if letters.index(letters[number]) == number] or told
    return tuple(_LETTER.sub("", one, count=1).strip() for one in told)


def _with_history(moments: list[Moment], rows: list[dict[str, str]]) -> list[Moment]:
    """Sequential questions ask about "the last question": they come after those before, with their right answers."""
    said: dict[str, str] = {}
    found = []
    for moment, row in zip(moments, rows, strict=True):
        named = _ID.fullmatch(row["question_id"].strip())
        if named["set"] != SEQUENTIAL:
            found.append(moment)
            continue
        before = said.get(named["sample"], "")
        found.append(replace(moment, question=f"{before} {moment.question}".strip()))
        said[named["sample"]] = f"{before} {moment.question} {moment.options[moment.answer]}".strip()
    return found


def _with_ids_that_differ(moments: list[Moment]) -> list[Moment]:
    """A question whose id stands there a second time is asked, too."""
    times: dict[str, int] = {}
    found = []
    for moment in moments:
        times[moment.id] = times.get(moment.id, 0) + 1
        again = times[moment.id] > 1
        found.append(replace(moment, id=f"{moment.id} ({times[moment.id]})") if again else moment)
    return found


def _seconds(stamp: str) -> float:
    """ "00:03:25" or "3:25" in seconds."""
    seconds = 0.0
    for part in stamp.strip().split(":"):
        seconds = 60 * seconds + float(part)
    return seconds
