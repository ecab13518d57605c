"""Language understanding of the text stream: multiple choice, alone and after visual turns: what sight costs.

DATA/mmlu, where it is there: the csv files of Hendrycks et al. (test/*_test.csv: question, four choices, a letter), or
jsonl or parquet with the columns question, choices, answer, subject. Our own small set, in the words of mmspeech-tiny,
is always asked. Each question is asked by itself and again after turns about a picture that is in view: the "context
switch" by which MoshiVis measured what a gate keeps of MMLU.
"""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.choices import LETTERS, MultipleChoice, first_of_each, lettered, letters_of
from eval.task import Prompt, Settings
from mmspeech.config import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image

    from mmspeech.checkpoint import Bundle

OWN = Path(__file__).resolve().parents[1] / "sentences" / "choices.jsonl"
FOLDER = "mmlu"
MOST_OPTIONS = 4
SWITCHED = "after visual turns"
VISUAL_TURNS = "the colour of the circle is red the red one is a circle"  # true of the picture drawn here


def build(settings: Settings, bundle: "Bundle | None") -> "Language":
    """The task over our own set and, where it is there, MMLU."""
    files = [OWN, *_mmlu_files(settings.data / FOLDER)]
    choices = [choice for file in files for choice in read_choices(file, own=file == OWN)]
    sighted = bundle is None or bundle.config.vision is not None
    return Language(first_of_each(choices, settings.limit), files, sighted=sighted)


@dataclass(frozen=True)
class Choice:
    """A question with its options; `answer` is the index of the right one. `context`: what comes before it."""

    id: str
    subject: str
    question: str
    options: tuple[str, ...]
    answer: int
    context: str = ""

    @property
    def kind(self) -> str:
        return f"{self.subject}, {SWITCHED}" if self.context else self.subject

    voice: str = "all"


class Language(MultipleChoice):
    """Each question alone and, for a model that sees, after visual turns."""

    name, version = "language", 1

    def __init__(self, choices: list[Choice], files: list[Path], *, sighted: bool):
        self.files = files
        self.samples = list(choices)
        if sighted:
            self.samples += [
                Choice(f"{SWITCHED}/{one.id}", one.subject, one.question, one.options, one.answer, VISUAL_TURNS)
                for one in choices
            ]

    def prompt(self, sample: Choice) -> Prompt:
        pictures = [(0.0, red_circle())] if sample.context else []
        return Prompt(text=f"{sample.context} {sample.question}".strip(), pictures=pictures, options=sample.options)


def red_circle() -> "Image":
    """The picture that is in view during the visual turns."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (96, 96), (235, 235, 235))
    ImageDraw.Draw(picture).ellipse((30, 30, 66, 66), fill=(220, 40, 40))
    return picture


def _mmlu_files(folder: Path) -> list[Path]:
    return sorted(file for end in ("csv", "jsonl", "parquet") for file in folder.rglob(f"*.{end}"))


def read_choices(file: Path, *, own: bool = False) -> list[Choice]:
    """The questions of a csv, jsonl or parquet file. ConfigError names the file and the row that does not fit.

    Our own are completions: the options follow the question. Of MMLU the options are told, and their letters follow.
    """
    if file.suffix == ".csv":
        rows = _csv_rows(file)
    elif file.suffix == ".parquet":
        import pyarrow.parquet

        rows = pyarrow.parquet.read_table(file).to_pylist()
    else:
        rows = _json_rows(file)
    return [_choice(row, f"{file}, row {number}", file.stem, number, own) for number, row in enumerate(rows, start=1)]


def _csv_rows(file: Path) -> list[dict[str, Any]]:
    subject = file.stem.removesuffix("_test").replace("_", " ")
    with file.open(newline="", encoding="utf-8") as opened:
        rows = list(csv.reader(opened))
    return [
        {"question": row[0], "choices": row[1:-1], "answer": row[-1], "subject": subject} if len(row) > 2 else {}
        for row in rows
    ]


def _json_rows(file: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ConfigError(f"{file}, row {number}: not JSON ({error})") from error
    return rows


def _choice(row: dict[str, Any], where: str, stem: str, number: int, own: bool) -> Choice:
    try:
        question, options, subject = str(row["question"]), [str(one) for one in row["choices"]], row["subject"]
        told = row["answer"]
        answer = LETTERS.index(told.strip()) if isinstance(told, str) else int(told)
        if not 0 <= answer < len(options) <= MOST_OPTIONS or len(options) < 2:
            raise ValueError(f"answer {told!r} of {len(options)} choices")
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{where}: {type(error).__name__}: {error}; expected question, 2 to 4 choices, answer (a letter or an "
            "index) and subject"
        ) from error
    subject = str(subject).replace("_", " ")
    if own:
        return Choice(str(row["id"]), subject, question, tuple(options), answer)
    return Choice(f"{stem}-{number}", subject, lettered(question, options), letters_of(options), answer)
