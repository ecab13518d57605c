"""Babillage, the benchmark of MoshiVis: captions of COCO (CIDEr), OCR-VQA and VQAv2 (accuracy), spoken and written.

The protocol. The picture is in view from the start. Aloud: the question's recording is the caller; words that begin
before it ends (a greeting) do not count; the answer is over after 1.5 s of quiet, or 12 s after the question. In
writing: the question is put into the model's own text stream, without sound, and what follows it is the answer. What is
scored is the model's text. Each picture of COCO is asked once, and all its captions are references; splits: test of
coco and ocrvqa, validation of vqav2.

Scores: CIDEr-D over the references of the whole split (eval/cider.py; our tokens are lower-case words, for the usual
tokenizer needs Java); accuracy where an answer that people gave stands in the sentence as whole words
(`score_exact`: where the whole sentence is that answer, the official rule of a dataset of short answers).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from eval.babillage_data import SPLITS, Row, read_subset, subset_files
from eval.cider import Cider
from eval.scoring import mean, normalise
from eval.spoken_rows import read_sound
from eval.task import MissingDataError, Prompt, Reply, Settings, Task, spoken
from eval.vqa_accuracy import exact_accuracy, spoken_accuracy
from mmspeech.config import ConfigError
from mmspeech.frames import SAMPLE_RATE_HZ
from mmspeech.vision.image import load_image

if TYPE_CHECKING:
    from mmspeech.checkpoint import Bundle

FOLDER = "babillage"
LISTEN_SEC = 2.0


def build(settings: Settings, bundle: "Bundle | None") -> "Babillage":
    """The task over the subsets of DATA/babillage that are there."""
    folder = settings.data / FOLDER
    files = {subset: subset_files(folder, subset) for subset in SPLITS}
    if not any(files.values()):
        raise MissingDataError(
            f"no coco, ocrvqa or vqav2 parquet files in {folder}: get kyutai/Babillage from the hub (CC-BY-4.0), and "
            "put pictures of COCO val2014 (cocodataset.org) into images/coco, those of OCR-VQA into images/ocrvqa there"
        )
    rows = {subset: read_subset(folder, subset) for subset, own in files.items() if own}
    return Babillage(rows, [file for own in files.values() for file in own], limit=settings.limit)


@dataclass(frozen=True)
class Asked:
    """A row, asked aloud or in writing."""

    row: Row
    how: Literal["spoken", "written"]
    voice: str = "all"

    @property
    def id(self) -> str:
        return f"{self.kind}/{self.row.id}"

    @property
    def kind(self) -> str:
        return f"{self.row.subset}, {self.how}"


class Babillage(Task):
    """See above. CIDEr is told as pycocoevalcap tells it (1.0 is 100 in the papers), so it may be above 1."""

    name, version = "babillage", 1

    def __init__(self, rows: dict[str, list[Row]], files: list[Path], *, limit: int | None = None):
        self.files = files
        asked = [row for own in rows.values() for row in own[:limit]]
        self.samples = [Asked(row, how) for how in ("spoken", "written") for row in asked]
        self._cider = Cider([[normalise(one) for one in row.answers] for row in rows.get("coco", [])])

    def prompt(self, sample: Asked) -> Prompt:
        if not sample.row.picture.is_file():
            raise ConfigError(f"{sample.row.picture}: no such picture, in any of the usual formats")
        pictures = [(0.0, load_image(sample.row.picture))]
        if sample.how == "written":
            return Prompt(text=sample.row.question, pictures=pictures, listen_sec=LISTEN_SEC)
        return Prompt(read_sound(sample.row.place), pictures)

    def score(self, sample: Asked, prompt: Prompt, reply: Reply) -> dict[str, Any]:
        end_sec = len(prompt.wave) / SAMPLE_RATE_HZ
        answer = reply.text_since(end_sec)
        words, people = normalise(answer), sample.row.answers
        numbers: dict[str, float | None] = {"score_exact": None}
        if sample.row.subset == "coco":
            numbers["score"] = self._cider.score(words, [normalise(one) for one in people])
        else:
            numbers = {"score": spoken_accuracy(words, people), "score_exact": exact_accuracy(answer, people)}
        return {
            **numbers,
            "question": sample.row.question,
            "answers": list(dict.fromkeys(people)),
            "text": reply.text,
            "answer": answer,
            "words": reply.told_words(),
            "answer_sec": reply.first_word_after(end_sec),
            "seen": [sample.row.picture.name],
        }

    def right_reply(self, sample: Asked) -> Reply:
        """What most people said, after the question."""
        people = sample.row.answers
        said = max(people, key=people.count)
        return spoken(
            said, (len(read_sound(sample.row.place)) / SAMPLE_RATE_HZ if sample.how == "spoken" else 0.0) + 0.3
        )

    def question_of(self, sample: Asked) -> str:
        return f"{sample.kind} {sample.row.question}"

    def summarise(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "score_exact": mean([r["score_exact"] for r in records if r["score_exact"] is not None]),
            "said_nothing": mean([not r["answer"] for r in records]),
        }
