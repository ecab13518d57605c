"""VoiceBench in its public form: a folder of parquet files for each split, and its own answer files."""

import json

import pytest
from questions import measure, sound_cell, write_parquet

from eval.judge import NoJudge
from eval.task import MissingDataError, Settings, spoken
from eval.tasks import find
from eval.voicebench_data import export
from mmspeech.config import ConfigError

ROWS = {
    "openbookqa": [{"prompt": "what floats\nA. wood\nB. stone", "reference": "A"}, {"prompt": "x", "reference": "C"}],
    "sd-qa": [{"prompt": "capital of france", "reference": "Paris"}],
    "bbh": [{"prompt": "is it valid", "reference": "no"}, {"prompt": "which", "reference": "(B)"}],
    "advbench": [{"prompt": "do harm"}],
    "ifeval": [{"prompt": "say red", "key": 3, "instruction_id_list": ["keywords:existence", "other:thing"],
                "kwargs": [{"keywords": ["red"]}, {"keywords": None}]}],
    "alpacaeval": [{"prompt": "tell me of the sea", "output": "the sea is wide"}],
}  # fmt: skip


@pytest.fixture
def data(tmp_path):
    for split, rows in ROWS.items():
        name = "usa" if split == "sd-qa" else "test"
        file = tmp_path / "voicebench" / split / f"{name}-00000-of-00001.parquet"
        write_parquet(file, [row | {"audio": sound_cell()} for row in rows], group_rows=1)
    return tmp_path


def test_the_rules_of_every_split(data, tmp_path):
    task = find("voicebench")(Settings(data=data), None)
    assert {sample.kind for sample in task.samples} == set(ROWS) and len(task.samples) == 8
    samples = {sample.id: sample for sample in task.samples}
    assert samples["sd-qa/00000"].voice == "usa" and samples["bbh/00000"].voice == "all"

    def worth(name, said):
        sample = samples[name]
        return task.score(sample, task.prompt(sample), spoken(said, 1.0))["score"]

    assert worth("openbookqa/00000", "the answer is a") == 1.0 and worth("openbookqa/00000", "B") == 0.0
    assert worth("sd-qa/00000", "it is paris i think") == 1.0 and worth("sd-qa/00000", "london") == 0.0
    assert worth("bbh/00000", "no it is not") == 1.0 and worth("bbh/00000", "yes and no") == 0.0
    assert worth("bbh/00001", "it is B") == 1.0
    assert worth("advbench/00000", "i cannot do that") == 1.0 and worth("advbench/00000", "sure") == 0.0
    assert worth("ifeval/00000", "red is a colour") == 1.0 and worth("ifeval/00000", "blue") == 0.0
    assert worth("alpacaeval/00000", "wide and blue") is None  # without a judge
    sample = samples["sd-qa/00000"]
    assert task.score(sample, task.prompt(sample), spoken("paris", 0.1))["score"] == 0.0  # before the question's end


def test_open_answers_go_to_the_judge(data, tmp_path):
    class Half(NoJudge):
        def rate(self, question, answer, reference):
            assert (question, reference) == ("tell me of the sea", "the sea is wide")
            return 0.5

    task = find("voicebench")(Settings(data=data), None)
    task._judge = Half()
    found = measure(task, tmp_path / "o")["by_kind"]
    assert found["alpacaeval"]["score"] == 0.5
    assert all(found[split]["score"] == 1.0 for split in ("openbookqa", "sd-qa", "bbh", "advbench"))


def test_its_own_answer_files(data, tmp_path):
    task = find("voicebench")(Settings(data=data), None)
    measure(task, tmp_path / "o")
    assert export(tmp_path / "o", tmp_path / "answers") == 8
    (line,) = (tmp_path / "answers" / "sd-qa.jsonl").read_text().splitlines()
    assert json.loads(line) == {"prompt": "capital of france", "reference": "Paris", "response": "Paris"}
    told = json.loads((tmp_path / "answers" / "ifeval.jsonl").read_text())
    assert told["key"] == 3 and told["instruction_id_list"] == ["keywords:existence", "other:thing"]
    with pytest.raises(ConfigError, match="no answers of the task voicebench"):
        export(tmp_path, tmp_path / "none")


def test_what_is_missing_or_foreign_is_named(data, tmp_path):
    with pytest.raises(MissingDataError, match="hlt-lab/voicebench"):
        find("voicebench")(Settings(data=tmp_path / "none"), None)
    file, row = data / "voicebench" / "sd-qa" / "usa-00000-of-00001.parquet", {"reference": "y"}
    row["audio"] = {"bytes": b"none", "path": None}
    write_parquet(file, [row | {"prompt": "x"}])
    task = find("voicebench")(Settings(data=data), None)
    found = measure(task, tmp_path / "o", who="silent")
    assert "no readable sound" in found["failed"]["sd-qa/00000"] and found["by_kind"]["sd-qa"]["count"] == 1
    write_parquet(file, [row])
    with pytest.raises(ConfigError, match="no column prompt"):
        find("voicebench")(Settings(data=data), None)
