"""The file that says how dialogues are written: kinds of tasks, personas, languages, filters."""

from pathlib import Path
from string import Template

from pydantic import Field, field_validator, model_validator

from mmspeech.config import ConfigError, StrictModel, load_config

DEFAULT = Path(__file__).parent / "templates" / "dialogue.yaml"
PLACEHOLDERS = {"facts", "persona", "language", "turns"}


class Kind(StrictModel):
    """A task of the two speakers, and what each is told; see templates/dialogue.yaml."""

    share: float = Field(gt=0)
    turns: tuple[int, int]
    user: str = Field(min_length=1)
    model: str = Field(min_length=1)
    timed: bool = False

    @model_validator(mode="after")
    def _fits(self):
        low, high = self.turns
        if not 1 <= low <= high:
            raise ValueError(f"turns [{low}, {high}]: expected at least 1, and the least first")
        for text in (self.user, self.model):
            told = Template(text)
            if not told.is_valid() or not set(told.get_identifiers()) <= PLACEHOLDERS:
                names = ", ".join(f"${name}" for name in sorted(PLACEHOLDERS))
                raise ValueError(f"a text has a placeholder that is not known; expected {names} ($$ for a dollar)")
        return self


class Filters(StrictModel):
    """What leaves a dialogue out; see templates/dialogue.yaml and data_prep/filters.py."""

    min_words: int = Field(1, ge=1)
    max_words: int = Field(60, ge=1)
    max_line_repeats: int = Field(1, ge=1)
    max_ngram_share: float = Field(0.5, ge=0, le=1)
    max_copied_words: int = Field(15, ge=1)
    leaks: tuple[str, ...] = ()
    unsafe: tuple[str, ...] = ()


class Templates(StrictModel):
    """The whole file. languages: code -> its name in the prompts."""

    begin: str = Field(min_length=1)
    languages: dict[str, str] = Field(min_length=1)
    personas: tuple[str, ...] = Field(min_length=1)
    kinds: dict[str, Kind] = Field(min_length=1)
    filters: Filters = Filters()

    @field_validator("kinds")
    @classmethod
    def _pictures_too(cls, kinds: dict[str, Kind]) -> dict[str, Kind]:
        if all(kind.timed for kind in kinds.values()):
            raise ValueError("all kinds are timed; expected one at least for what has no times")
        return kinds


def load_templates(path: Path | None, *, languages: tuple[str, ...] = (), kinds: tuple[str, ...] = ()) -> Templates:
    """The file at `path` (None: ours), with only those languages and kinds, if any are named. Raises ConfigError."""
    templates = load_config(Templates, path or DEFAULT)
    for named, there in ((languages, templates.languages), (kinds, templates.kinds)):
        if unknown := [name for name in named if name not in there]:
            raise ConfigError(f"{path or DEFAULT}: no {unknown[0]!r} in it; expected some of {', '.join(there)}")
    picked = {
        "languages": {code: name for code, name in templates.languages.items() if not languages or code in languages},
        "kinds": {name: kind for name, kind in templates.kinds.items() if not kinds or name in kinds},
    }
    return templates.model_copy(update=picked)
