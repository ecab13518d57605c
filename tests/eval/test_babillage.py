"""Babillage in its public form: sound in parquet, pictures beside it; and its scorers, against the public ones."""

import json

import numpy as np
import pytest
from PIL import Image
from questions import measure, sound_cell, write_parquet

from eval.cider import Cider
from eval.scoring import normalise
from eval.task import MissingDataError, Settings
from eval.tasks import find
from eval.vqa_accuracy import exact_accuracy, normalise_answer, spoken_accuracy
from mmspeech.config import ConfigError

CAPTIONS = {
    42: ["a red bus on a street", "a bus drives down the street", "the red bus is full"],
    7: ["two cats on a sofa", "two cats asleep on a couch", "cats resting"],
    9: ["a man rides a wave", "a surfer on a wave", "a man surfing in the ocean"],
}


def words_of(captions):
    return [normalise(one) for one in captions]


def test_cider_is_that_of_pycocoevalcap():
    public = pytest.importorskip("pycocoevalcap.cider.cider")
    said = {42: "a red bus on the street", 7: "a man on a couch", 9: "a man rides a wave a wave a wave"}
    ours = Cider([words_of(own) for own in CAPTIONS.values()])
    found = [ours.score(normalise(said[key]), words_of(CAPTIONS[key])) for key in CAPTIONS]
    joined = {key: [" ".join(one) for one in words_of(own)] for key, own in CAPTIONS.items()}
    mean, each = public.Cider().compute_score(joined, {key: [" ".join(normalise(one))] for key, one in said.items()})
    assert found == pytest.approx(list(each), abs=1e-6) and np.mean(found) == pytest.approx(mean, abs=1e-6)
    assert found[0] > found[1] > 0


def test_random_captions_have_pycocoevalcaps_cider_too():
    public = pytest.importorskip("pycocoevalcap.cider.cider")
    rng = np.random.default_rng(0)
    vocabulary = [f"w{n}" for n in range(12)]

    def caption():
        return list(rng.choice(vocabulary, rng.integers(0, 14)))

    references = [[caption() for _ in range(rng.integers(1, 6))] for _ in range(40)]
    said = [caption() for _ in references]
    ours = Cider(references)
    found = [ours.score(one, own) for one, own in zip(said, references, strict=True)]
    joined = {key: [" ".join(one) for one in own] for key, own in enumerate(references)}
    _, each = public.Cider().compute_score(joined, {key: [" ".join(one)] for key, one in enumerate(said)})
    assert found == pytest.approx(list(each), abs=1e-6)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The red Bus.", "red bus"), ("two", "2"), ("dont know", "don't know"), ("1,000", "1000"), ("3.5", "3.5"),
        ("yes!", "yes"), ("an apple, a pear", "apple pear"), ("it's", "it's"), ("10:30", "10:30"), ("  ", ""),
    ],
)  # fmt: skip
def test_answers_are_normalised(text, normal):
    assert normalise_answer(text) == normal


def test_accuracy_by_hand():
    """Of ten people, leaving each out in turn: 4 said yes -> 1. 3 said yes -> 7 times 1 and 3 times 2/3 -> 0.9.
    2 -> 8 times 2/3 and twice 1/3 -> 0.6. 1 -> 9 times 1/3 and once 0 -> 0.3."""
    for count, accuracy in ((10, 1.0), (4, 1.0), (3, 0.9), (2, 0.6), (1, 0.3), (0, 0.0)):
        people = ["Yes"] * count + ["no"] * (10 - count)
        assert exact_accuracy("yes.", people) == pytest.approx(accuracy)
        assert spoken_accuracy(normalise("yes it is"), people) == pytest.approx(accuracy)
    assert exact_accuracy("yes it is", ["yes"] * 10) == 0.0
    assert spoken_accuracy(["2", "cats"], ["two"]) == 0.0 and spoken_accuracy(normalise("2 cats"), ["two"]) == 1.0


def row(number, question, image_id=None, answer=None):
    told = {
        "sample_id": number,
        "question_audio": sound_cell(1.0),
        "question_transcript": question.split(),
        "question_alignment": [[0.0, 0.5]] * len(question.split()),
    }
    if image_id is not None:
        transcript = {
            "answer_audio": sound_cell(1.0),
            "answer_transcript": answer.split(),
            "answer_alignment": [[0.0, 0.5]],
        }
        told |= {"image_id": image_id} | transcript
    return told


@pytest.fixture
def data(tmp_path):
    base = tmp_path / "babillage"
    for kind, names in (("coco", ("COCO_val2014_000000000042.jpg", "000000000007.png")), ("ocrvqa", ("31.jpg",))):
        (base / "images" / kind).mkdir(parents=True)
        for name in names:
            Image.new("RGB", (20, 20), "red").save(base / "images" / kind / name)
    captions = [(key, one) for key, own in CAPTIONS.items() for one in own]
    coco = [row(n, "what do you see", key, one) for n, (key, one) in enumerate(captions)]
    write_parquet(base / "coco" / "test-00000-of-00001.parquet", coco)
    write_parquet(base / "coco" / "validation-00000-of-00001.parquet", coco)
    write_parquet(base / "ocrvqa" / "test-00000-of-00001.parquet", [row(5, "who wrote this", 31, "jane austen")])
    asked = [row(420, "is it red"), row(70, "how many cats")]
    write_parquet(base / "vqav2" / "validation-00000-of-00001.parquet", asked)
    told = [
        {"question_id": 420, "image_id": 42, "answers": [{"answer": "yes"}] * 8 + [{"answer": "red"}] * 2},
        {"question_id": 70, "image_id": 7, "answers": [{"answer": "2"}] * 7 + [{"answer": "two"}] * 3},
    ]
    (base / "vqav2" / "v2_mscoco_val2014_annotations.json").write_text(json.dumps({"annotations": told}))
    return tmp_path


def test_the_whole_in_its_public_form(data, tmp_path):
    task = find("babillage")(Settings(data=data), None)
    kinds = [sample.kind for sample in task.samples]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "coco, spoken": 3, "ocrvqa, spoken": 1, "vqav2, spoken": 2,
        "coco, written": 3, "ocrvqa, written": 1, "vqav2, written": 2,
    }  # fmt: skip
    oracle = measure(task, tmp_path / "oracle")
    # A picture that is not there is named and stays in the denominator.
    assert oracle["counts"] == {"samples": 12, "measured": 10, "failed": 2}
    assert "COCO_val2014_000000000009.jpg" in oracle["failed"]["coco, spoken/9"]
    assert oracle["by_kind"]["vqav2, spoken"]["score"] == 1.0 == oracle["by_kind"]["ocrvqa, written"]["score"]
    assert oracle["by_kind"]["vqav2, spoken"]["score_exact"] == 1.0
    silent = measure(task, tmp_path / "silent", who="silent")
    assert silent["all"]["score"] == 0.0 and silent["all"]["said_nothing"] == 1.0
    assert oracle["by_kind"]["coco, spoken"]["score"] > 1.0 and oracle["by_kind"]["coco, spoken"]["count"] == 3


def test_a_greeting_does_not_count(data):
    from eval.task import spoken

    task = find("babillage")(Settings(data=data), None)
    sample = next(one for one in task.samples if one.id == "ocrvqa, spoken/5")
    prompt = task.prompt(sample)
    assert len(prompt.wave) == 24_000  # resampled
    assert task.score(sample, prompt, spoken("jane austen hello", 0.0))["score"] == 0.0
    found = task.score(sample, prompt, spoken("it was jane austen", 1.2))
    assert found["score"] == 1.0 and found["score_exact"] == 0.0 and found["answer_sec"] == pytest.approx(0.2)


def test_what_is_missing_or_foreign_is_named(data, tmp_path):
    with pytest.raises(MissingDataError, match=r"kyutai/Babillage from the hub \(CC-BY-4.0\)"):
        find("babillage")(Settings(data=tmp_path / "none"), None)
    next((data / "babillage" / "vqav2").glob("*.json")).unlink()
    with pytest.raises(MissingDataError, match="VQA v2"):
        find("babillage")(Settings(data=data), None)
    (data / "babillage" / "ocrvqa" / "test-00000-of-00001.parquet").write_bytes(b"no parquet")
    with pytest.raises(ConfigError, match="not a parquet file"):
        find("babillage")(Settings(data=data), None)
