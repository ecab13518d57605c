"""OVO-Bench and StreamingBench in their file forms, with real clips: nothing after the moment is seen."""

import csv
import json

import pytest
from clips import number_in, write_clip
from questions import measure

from eval.options import option_scores
from eval.task import MissingDataError, Prompt, Settings
from eval.tasks import find
from eval.tasks.streaming_video import FPS, WINDOW_SEC
from mmspeech.config import ConfigError

OVO_ROW = {
    "id": 3, "task": "OCR", "video": "a/clip.mp4", "realtime": 2.0, "question": "which number is it",
    "options": ["two", "four"], "gt": 1,
}  # fmt: skip
STREAMING_ROW = {
    "question_id": "Real-Time Visual Understanding_sample_7_1", "task_type": "Counting", "question": "how many",
    "time_stamp": "00:00:03", "answer": "C", "options": "['A. one', 'B. two', 'C. three']", "frames_required": "x",
}  # fmt: skip


def clip(path):
    """Ten seconds in which each frame says its number, two a second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_clip(path, num_frames=20, rate_hz=2)


@pytest.fixture
def data(tmp_path):
    pytest.importorskip("av")
    clip(tmp_path / "ovo_bench" / "videos" / "a" / "clip.mp4")
    forward = {"id": 4, "task": "REC", "video": "a/clip.mp4", "test_info": []}
    (tmp_path / "ovo_bench" / "ovo_bench_new.json").write_text(json.dumps([OVO_ROW, forward]))
    write_csv(tmp_path, STREAMING_ROW)
    clip(tmp_path / "streamingbench" / "sample_7" / "video.mp4")
    return tmp_path


def write_csv(folder, row):
    file = folder / "streamingbench" / "Real_Time_Visual_Understanding.csv"
    file.parent.mkdir(exist_ok=True)
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, row)
        writer.writeheader()
        writer.writerow(row)


def test_both_sets_in_their_form(data, tmp_path):
    task = find("streaming_video")(Settings(data=data), None)
    kinds = [sample.kind for sample in task.samples]
    assert kinds == ["OVO-Bench real time: OCR", "StreamingBench Real Time Visual Understanding: Counting"]
    ovo, streaming = (task.prompt(sample) for sample in task.samples)
    assert [number_in(picture) for _, picture in ovo.pictures] == [0, 1, 2, 3, 4]
    assert [number_in(picture) for _, picture in streaming.pictures] == list(range(7))
    assert ovo.text == "which number is it A. two B. four Answer:" and ovo.options == ("A", "B")
    assert streaming.text == "how many A. one B. two C. three Answer:"
    assert measure(task, tmp_path / "o")["all"]["score"] == 1.0
    assert measure(task, tmp_path / "s", who="silent")["all"]["score"] == 0.0


def test_only_the_last_seconds_are_seen(data):
    rows = [OVO_ROW | {"realtime": 500.0}]
    (data / "ovo_bench" / "ovo_bench_new.json").write_text(json.dumps(rows))
    task = find("streaming_video")(Settings(data=data), None)
    pictures = task.prompt(task.samples[0]).pictures
    assert len(pictures) <= WINDOW_SEC * FPS + 1 and number_in(pictures[-1][1]) == 19


def test_a_video_that_is_missing_is_named_and_counts(data, tmp_path):
    (data / "ovo_bench" / "videos" / "a" / "clip.mp4").unlink()
    found = measure(find("streaming_video")(Settings(data=data), None), tmp_path / "o")
    assert found["counts"]["failed"] == 1 and "clip.mp4: no such video" in found["failed"]["ovo/3"]
    assert found["all"]["score"] == 0.5


@pytest.mark.parametrize("change", [{"answer": "Z"}, {"answer": "D"}, {"options": "one, two"}, {"question_id": "7"}])
def test_rows_that_do_not_fit_are_named(data, change):
    write_csv(data, STREAMING_ROW | change)
    with pytest.raises(ConfigError, match="Understanding.csv, line 2: .*expected question_id"):
        find("streaming_video")(Settings(data=data), None)


def test_without_data_it_says_what_to_get(tmp_path):
    with pytest.raises(MissingDataError, match="JoeLeelyf/OVO-Bench"):
        find("streaming_video")(Settings(data=tmp_path), None)


def test_a_model_that_remembers_sees_all_the_frames(remembering_bundle):
    """Options are judged with the last pictures in view, not the newest alone; those the memory lost do not count."""
    from PIL import Image

    def scores(*colours):
        pictures = [(number / FPS, Image.new("RGB", (32, 32), colour)) for number, colour in enumerate(colours)]
        return option_scores(remembering_bundle, Prompt(text="it is", options=("red", "blue"), pictures=pictures))

    assert scores("red", "green") != scores("blue", "green")
    assert scores("green") != scores("red", "green")
