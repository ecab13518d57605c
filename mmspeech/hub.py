"""Checkpoints by their id on the Hugging Face hub, downloaded once."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmspeech.config import ConfigError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
PATTERNS = ("*.json", "*.yaml", "*.safetensors", "*.gguf", "*.model", "README.md")  # never pickles


class CheckpointError(ConfigError):
    """A checkpoint that cannot be loaded or saved; the message is one line that names the directory."""


def fetched(path_or_id: str | Path) -> Path:
    """A path as it is; a hub id that is no path here, downloaded. Raises CheckpointError, with what to do."""
    path = Path(path_or_id)
    if path.exists() or not isinstance(path_or_id, str) or not HUB_ID.fullmatch(path_or_id):
        return path
    from huggingface_hub import snapshot_download

    with _explained(f"{path_or_id}: neither a directory here nor to be had from the hub"):
        return Path(snapshot_download(path_or_id, allow_patterns=list(PATTERNS)))


def fetched_file(repo_id: str, name: str) -> Path:
    """One file of a repository on the hub, downloaded once. Raises CheckpointError, with what to do."""
    from huggingface_hub import hf_hub_download

    with _explained(f"{name}: neither a file here nor to be had from {repo_id} on the hub"):
        return Path(hf_hub_download(repo_id, name))


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """The hub's errors in a line: `what` could not be done, and why."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        yield
        return
    except GatedRepoError as error:
        reason, cause = "it is gated: accept its terms on its page on the hub, then `hf auth login`", error
    except RepositoryNotFoundError as error:
        reason, cause = "there is no such repository, or it is private: look at the name, or `hf auth login`", error
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, EntryNotFoundError, OSError) as error:
        told = str(error).strip().splitlines()
        reason, cause = told[0] if told else type(error).__name__, error
        if constants.HF_HUB_OFFLINE:
            reason = "HF_HUB_OFFLINE is set, and it was not downloaded before"
    raise CheckpointError(f"{what} ({reason})") from cause
