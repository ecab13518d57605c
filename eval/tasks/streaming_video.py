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

from eval.choices import MultipleChoice, first_of_each, lettered, letters_of
from eval.sights import last_pictures
from eval.task import MissingDataError, Prompt, Reply, Settings
from eval.video_sets import OVO_FILE, Moment, read_ovo, read_streaming
from mmspeech.config import ConfigError

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
    return StreamingVideo(first_of_each(samples, settings.limit), [ovo] * ovo.is_file() + tables)


class StreamingVideo(MultipleChoice):
    """The options are letters."""

    name, version = "streaming_video", 1

    def __init__(self, samples: list[Moment], files: list[Path]):
        self.samples = samples
        self.files = files

    def prompt(self, sample: Moment) -> Prompt:
        if not sample.video.is_file():
            raise ConfigError(f"{sample.video}: no such video")
        pictures = last_pictures(sample.video, until_sec=sample.at_sec, window_sec=WINDOW_SEC, fps=FPS)
        text = lettered(sample.question, sample.options)
        return Prompt(text=text, pictures=pictures, options=letters_of(sample.options))

    def score(self, sample: Moment, prompt: Prompt, reply: Reply) -> dict[str, Any]:
        record = super().score(sample, prompt, reply)
        return record | {"seen": [sample.video.name], "at_sec": sample.at_sec}

    def question_of(self, sample: Moment) -> str:
        return f"{sample.kind}, {len(sample.options)} options"

    def length_sec(self, sample: Moment) -> float:
        return sample.at_sec
