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
    "time_stamp": "00:03", "answer": "C", "options": "['A. one', 'B. two', 'C. three']", "frames_required": "x",
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
    clip(tmp_path / "streamingbench" / "Real-Time Visual Understanding_1-50" / "sample_7" / "video.mp4")
    return tmp_path


def write_csv(folder, *rows, name="Real_Time_Visual_Understanding"):
    file = folder / "streamingbench" / "StreamingBench" / f"{name}.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def only(data, *rows, name="Real_Time_Visual_Understanding"):
    """The task without OVO-Bench, with these rows in a csv of StreamingBench."""
    (data / "ovo_bench" / "ovo_bench_new.json").unlink(missing_ok=True)
    write_csv(data, *rows, name=name)
    return find("streaming_video")(Settings(data=data), None)


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


def test_each_set_has_its_own_videos(data):
    """Sample numbers begin anew in each zip; some rows name the set otherwise than its zip does."""
    names = ("Emotion Recognition", "Misleading Context Recognition", "Scene Understanding")
    rows = [STREAMING_ROW | {"question_id": f"{name}_sample_1_1", "task_type": name} for name in names]
    base = data / "streamingbench"
    clip(base / "Emotion Recognition" / "sample_1" / "video.mp4")
    clip(base / "Misleading Context Understanding" / "sample_1" / "Active Output_1.mp4")
    task = only(data, *rows, name="Omni_Source_Understanding")
    assert [sample.video.relative_to(base).parts[0] for sample in task.samples[:3]] == [
        "Emotion Recognition", "Misleading Context Understanding", "Scene Understanding",
    ]  # fmt: skip
    assert [sample.video.is_file() for sample in task.samples[:3]] == [True, True, False]


def test_what_is_not_asked_is_left_alone(data):
    proactive = {"question_id": "Proactive Output_sample_1_1", "question": "when", "ground_truth_output": "3"}
    write_csv(data, proactive, name="Proactive_Output")
    assert len(find("streaming_video")(Settings(data=data), None).samples) == 2


def test_rows_as_they_are(data, tmp_path):
    """An option broken in two, the whole list twice, an id that stands there again."""
    options = "['A. one', 'and more', 'B. two', 'C. three', 'B. two', 'C. three']"
    task = only(data, STREAMING_ROW | {"options": options}, STREAMING_ROW | {"question": "which", "answer": "A"})
    assert task.samples[0].options == ("one and more", "two", "three")
    assert len({sample.id for sample in task.samples}) == 2
    assert measure(task, tmp_path / "o")["all"]["score"] == 1.0


def test_sequential_questions_come_after_those_before(data):
    row = STREAMING_ROW | {"question_id": "Sequential Question Answering_sample_2_1"}
    later = row | {"question_id": "Sequential Question Answering_sample_2_2", "question": "and then", "answer": "A"}
    other = row | {"question_id": "Sequential Question Answering_sample_3_1"}
    task = only(data, row, later, other, name="Sequential_Question_Answering")
    asked = [sample.question for sample in task.samples if "Sequential" in sample.kind]
    assert asked == ["how many", "how many three and then", "how many"]


def test_scripts_get_what_they_deserve(data, tmp_path):
    rows = [STREAMING_ROW | {"question_id": f"Real-Time Visual Understanding_sample_7_{n}", "answer": "ABC"[n % 3]}
            for n in range(12)]  # fmt: skip
    yes_no = STREAMING_ROW | {"question_id": "Real-Time Visual Understanding_sample_7_99", "answer": "B"}
    task = only(data, *rows, yes_no | {"options": "['A. yes', 'B. no']"})
    scores = {who: measure(task, tmp_path / who, who=who)["all"] for who in ("oracle", "blind", "late", "silent")}
    assert scores["oracle"]["score"] == 1.0 == scores["late"]["score"]  # a choice has no time
    assert scores["silent"]["score"] == 0.0
    low, high = scores["blind"]["score_95"]
    assert low <= scores["blind"]["guessing"] + 1 / 13 and high >= scores["blind"]["guessing"]


@pytest.mark.parametrize(
    "entries", [{"a": 1}, ["x"], [OVO_ROW | {"question": None}], [OVO_ROW | {"realtime": -1}], [OVO_ROW | {"gt": 2}]]
)
def test_entries_of_ovo_that_do_not_fit_are_named(data, entries):
    (data / "ovo_bench" / "ovo_bench_new.json").write_text(json.dumps(entries))
    with pytest.raises(ConfigError, match=r"ovo_bench_new.json.*expected"):
        find("streaming_video")(Settings(data=data), None)


def test_a_chunk_will_do(data):
    """OVO-Bench also lies on the hub as chunks that end at the question's moment."""
    (data / "ovo_bench" / "videos" / "a" / "clip.mp4").unlink()
    (data / "ovo_bench" / "chunked_videos").mkdir()
    write_clip(data / "ovo_bench" / "chunked_videos" / "3.mp4", num_frames=4, rate_hz=2)
    task = find("streaming_video")(Settings(data=data), None)
    assert [number_in(picture) for _, picture in task.prompt(task.samples[0]).pictures][-1] == 3


@pytest.mark.parametrize(
    "change",
    [{"answer": "Z"}, {"answer": "D"}, {"options": "one, two"}, {"question_id": "7"}, {"answer": ""}, {"question": ""}],
)
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
