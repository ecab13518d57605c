"""Questions about a video at a moment of it: OVO-Bench and StreamingBench, from local copies.

DATA/ovo_bench: ovo_bench_new.json and its videos; its backward and real-time tasks. DATA/streamingbench: its csv files,
and each zip of videos unpacked into a folder of the zip's name (eval/video_sets.py). The frames of the last WINDOW_SEC
before the question's moment are seen, FPS a second, none after it; the question is put into the model's text stream,
and the likeliest option counts. Before a question of the sequential set come those before it with their right answers.
OVO-Bench's forward tasks and StreamingBench's proactive output are not asked. Live commentary on our own clips, with
its delays, and questions about now and before are in the task rendered_world.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.scoring import mean
from eval.task import MissingDataError, Prompt, Reply, Settings, Task
from eval.video_sets import LETTERS, OVO_FILE, Moment, read_ovo, read_streaming
from mmspeech.config import ConfigError
from mmspeech.vision.video import Video

if TYPE_CHECKING:
    from mmspeech.checkpoint import Bundle

OVO, STREAMING = "ovo_bench", "streamingbench"
WINDOW_SEC, FPS = 16.0, 2.0


def build(settings: Settings, bundle: "Bundle | None") -> "StreamingVideo":
    """The task over those of the two sets that are there."""
    ovo, folder = settings.data / OVO / OVO_FILE, settings.data / STREAMING
    tables = sorted(folder.rglob("*.csv"))
    samples = read_ovo(ovo) if ovo.is_file() else []
    samples += [sample for file in tables for sample in read_streaming(file, folder)]
    if not samples:
        raise MissingDataError(
            f"no {ovo} and no csv with multiple choice in {folder}: get OVO-Bench (github.com/JoeLeelyf/OVO-Bench, "
            "CC BY-NC-SA 4.0) or StreamingBench (hub: mjuicem/StreamingBench, licence: see its page) with their "
            "videos, unpacked there, each zip into a folder of its name"
        )
    return StreamingVideo(_first(samples, settings.limit), [ovo] * ovo.is_file() + tables)


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
        if len(scores) != len(sample.options):
            raise ConfigError(f"{sample.id}: {len(scores)} option scores for {len(sample.options)} options")
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

    def question_of(self, sample: Moment) -> str:
        return f"{sample.kind}, {len(sample.options)} options"

    def length_sec(self, sample: Moment) -> float:
        return sample.at_sec

    def summarise(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        return {"guessing": mean([record["guessing"] for record in records])}


def _first(samples: list[Moment], limit: int | None) -> list[Moment]:
    taken: dict[str, int] = {}
    kept = []
    for sample in samples:
        taken[sample.kind] = taken.get(sample.kind, 0) + 1
        if limit is None or taken[sample.kind] <= limit:
            kept.append(sample)
    return kept
