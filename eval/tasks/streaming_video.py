"""Questions about a video at a moment of it: OVO-Bench and StreamingBench, from local copies.

DATA/ovo_bench: ovo_bench_new.json and the videos it names below it; its backward and real-time tasks.
DATA/streamingbench: its csv files, with videos as SAMPLE/video.mp4 below. The frames of the last WINDOW_SEC before the
question's moment are seen, FPS a second, none after it; the question is put into the model's text stream, and the
likeliest option counts. OVO-Bench's forward tasks and StreamingBench's proactive output are not asked. Live commentary
on our own clips, with its delays, and questions about now and before are in the task rendered_world.
"""

import ast
import csv
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.scoring import mean
from eval.task import MissingDataError, Prompt, Reply, Settings, Task
from mmspeech.config import ConfigError
from mmspeech.vision.video import Video

if TYPE_CHECKING:
    from mmspeech.checkpoint import Bundle

OVO, STREAMING = "ovo_bench", "streamingbench"
OVO_FILE = "ovo_bench_new.json"
BACKWARD, REAL_TIME = ("EPM", "ASI", "HLD"), ("OCR", "ACR", "ATR", "STU", "FPD", "OJR")
WINDOW_SEC, FPS = 16.0, 2.0
LETTERS = "ABCDEFGH"


def build(settings: Settings, bundle: "Bundle | None") -> "StreamingVideo":
    """The task over those of the two sets that are there."""
    files = [file for file in (settings.data / OVO / OVO_FILE,) if file.is_file()]
    files += sorted((settings.data / STREAMING).rglob("*.csv"))
    if not files:
        raise MissingDataError(
            f"no {settings.data / OVO / OVO_FILE} and no csv in {settings.data / STREAMING}: get OVO-Bench "
            "(github.com/JoeLeelyf/OVO-Bench) or StreamingBench (hub: mjuicem/StreamingBench) with their videos, "
            "unpacked there; licences: see their pages"
        )
    samples = [sample for file in files for sample in (_ovo(file) if file.suffix == ".json" else _streaming(file))]
    return StreamingVideo(_first(samples, settings.limit), files)


@dataclass(frozen=True)
class Moment:
    """A question at a moment of a video; `answer`: index of the right option."""

    id: str
    kind: str
    video: Path
    at_sec: float
    question: str
    options: tuple[str, ...]
    answer: int
    voice: str = "all"


class StreamingVideo(Task):
    """Score 1 when the letter of the right option is the likeliest."""

    name, version = "streaming_video", 1

    def __init__(self, samples: list[Moment], files: list[Path]):
        self.samples = samples
        self.files = files

    def prompt(self, sample: Moment) -> Prompt:
        if not sample.video.is_file():
            raise ConfigError(f"{sample.video}: no such video")
        video = Video(sample.video)
        last_sec = min(sample.at_sec, video.duration_sec)
        count = int(min(WINDOW_SEC, last_sec) * FPS) + 1
        times_sec = [last_sec - (count - 1 - number) / FPS for number in range(count)]
        pictures = [frame.picture for frame in video.frames([max(0.0, time) for time in times_sec])]
        told = " ".join(f"{letter}. {option}" for letter, option in zip(LETTERS, sample.options, strict=False))
        text = f"{sample.question} {told} Answer:"
        shown = [(number / FPS, picture) for number, picture in enumerate(pictures)]
        return Prompt(text=text, pictures=shown, options=tuple(LETTERS[: len(sample.options)]))

    def score(self, sample: Moment, prompt: Prompt, reply: Reply) -> dict[str, Any]:
        scores = reply.option_scores
        best = max(range(len(scores)), key=scores.__getitem__)
        alone = scores.count(max(scores)) == 1
        return {
            "score": float(alone and best == sample.answer),
            "question": sample.question,
            "answers": [sample.options[sample.answer]],
            "text": sample.options[best] if alone else "",
            "option_scores": [round(score, 4) for score in scores],
            "guessing": 1 / len(scores),
            "seen": [sample.video.name],
            "at_sec": sample.at_sec,
        }

    def right_reply(self, sample: Moment) -> Reply:
        return Reply(option_scores=[0.0 if number == sample.answer else -10.0 for number in range(len(sample.options))])

    def length_sec(self, sample: Moment) -> float:
        return sample.at_sec

    def summarise(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        return {"guessing": mean([record["guessing"] for record in records])}


def _ovo(file: Path) -> list[Moment]:
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{file}: not JSON ({error}); download it again") from error
    windows = {task: "backward" for task in BACKWARD} | {task: "real time" for task in REAL_TIME}
    found = []
    for number, row in enumerate(rows, start=1):
        if row.get("task") not in windows:
            continue
        try:
            options, answer = tuple(map(str, row["options"])), int(row["gt"])
            kind = f"OVO-Bench {windows[row['task']]}: {row['task']}"
            video = file.parent / "videos" / row["video"]
            video = video if video.is_file() else file.parent / row["video"]
            found.append(
                Moment(f"ovo/{row['id']}", kind, video, float(row["realtime"]), row["question"], options, answer)
            )
            if not 0 <= answer < len(options) <= len(LETTERS):
                raise ValueError(f"answer {answer} of {len(options)} options")
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"{file}, entry {number}: {type(error).__name__}: {error}; expected id, task, video, realtime, "
                "question, options, gt (an index)"
            ) from error
    return found


def _streaming(file: Path) -> list[Moment]:
    with file.open(newline="", encoding="utf-8-sig") as opened:
        rows = list(csv.DictReader(opened))
    found = []
    for number, row in enumerate(rows, start=2):
        try:
            sample = re.search(r"sample_\d+", row["question_id"]).group(0)
            options = tuple(re.sub(r"^[A-H][.)]\s*", "", str(one)) for one in ast.literal_eval(row["options"]))
            answer = LETTERS.index(row["answer"].strip())
            kind = f"StreamingBench {file.stem.replace('_', ' ')}: {row['task_type']}"
            at_sec = _seconds(row["time_stamp"])
            video = file.parent / sample / "video.mp4"
            found.append(
                Moment(f"streaming/{row['question_id']}", kind, video, at_sec, row["question"], options, answer)
            )
            if not answer < len(options):
                raise ValueError(f"answer {row['answer']} of {len(options)} options")
        except (KeyError, AttributeError, SyntaxError, TypeError, ValueError) as error:
            raise ConfigError(
                f"{file}, line {number}: {type(error).__name__}: {error}; expected question_id (with sample_N), "
                "task_type, question, time_stamp, answer (a letter), options (a list)"
            ) from error
    return found


def _seconds(stamp: str) -> float:
    """ "00:03:25" or "3:25" in seconds."""
    seconds = 0.0
    for part in stamp.strip().split(":"):
        seconds = 60 * seconds + float(part)
    return seconds


def _first(samples: list[Moment], limit: int | None) -> list[Moment]:
    taken: dict[str, int] = {}
    kept = []
    for sample in samples:
        taken[sample.kind] = taken.get(sample.kind, 0) + 1
        if limit is None or taken[sample.kind] <= limit:
            kept.append(sample)
    return kept
