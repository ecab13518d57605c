"""The contract of a task, and what every task is built from."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from mmspeech.config import GenerationConfig

if TYPE_CHECKING:
    from eval.responder import Responder
    from mmspeech.checkpoint import Bundle

Pictures = Literal["given", "none", "swapped", "shuffled", "frozen"]


@dataclass(frozen=True)
class Settings:
    """What the command line asks of every task.

    `sampling` None: the checkpoint's own. `pictures`: what lines are shown (see eval.sights.Sights).
    `sentences`: what the model may say beside what the manifest expects; the recogniser knows only these words.
    `audio_dir`: where to keep replies (None: nowhere).
    """

    manifest: Path
    limit: int | None = None
    seed: int = 0
    sampling: GenerationConfig | None = None
    pictures: Pictures = "given"
    sentences: tuple[str, ...] | None = None
    audio_dir: Path | None = None


class Task(Protocol):
    """One kind of measurement. `version` rises whenever its numbers change their meaning."""

    name: str
    version: int
    lines: list[Any]

    def load(self, line: Any) -> Any:
        """Read the files of a line; a ConfigError counts the line as failed, with its message."""
        ...

    def run(self, items: list[Any], *, seeds: list[int]) -> list[dict[str, Any]]:
        """Measure a batch, a seed for each: one record each, JSON values only, with the keys kind and voice."""
        ...

    def summarise(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        """Numbers of a group of records (all of them, those of one kind, those of one voice)."""
        ...


class TaskBuilder(Protocol):
    """Every module in eval/tasks has such a `build`. `responder` None: the bundle answers itself."""

    def __call__(self, settings: Settings, bundle: "Bundle | None", responder: "Responder | None") -> Task: ...
