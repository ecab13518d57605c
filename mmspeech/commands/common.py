"""What several commands need: devices, and files that appear whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mmspeech.config import ConfigError
from mmspeech.nn.cuda_graph import Record, record_cuda_graph
from mmspeech.serve.engine import settle_threads

if TYPE_CHECKING:
    from mmspeech.checkpoint import Bundle


def check_device(name: str) -> torch.device:
    """The device of that name; ConfigError when it is unknown or not here."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device {name!r}: unknown; expected cpu, cuda, cuda:N or mps") from error
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not present.get(device.type, False):
        here = ", ".join(kind for kind, there in present.items() if there)
        raise ConfigError(f"device {name!r}: not on this machine; it has {here} (see `mmspeech doctor`)")
    if device.type == "cuda" and device.index is not None and device.index >= torch.cuda.device_count():
        raise ConfigError(f"device {name!r}: this machine has {torch.cuda.device_count()} CUDA devices, counted from 0")
    return device


def recorder(cuda_graphs: bool, device: torch.device) -> Record | None:
    """What lets steps be launched as a whole, if so wished; ConfigError where that is not possible."""
    if not cuda_graphs:
        return None
    if device.type != "cuda":
        raise ConfigError(f"--cuda-graphs: {device} has none; add --device cuda, or leave it out")
    return record_cuda_graph


def check_output(path: Path, suffixes: tuple[str, ...]) -> None:
    """ConfigError, before any work, when `path` cannot become a file of one of these kinds."""
    if path.is_dir():
        raise ConfigError(f"{path}: is a directory; expected the name of a file to write")
    if path.suffix.lower() not in suffixes:
        raise ConfigError(f"{path}: expected a name that ends in {' or '.join(suffixes)}")
    folder = next((parent for parent in path.absolute().parents if parent.exists()), None)
    if folder is None or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ConfigError(f"{path}: cannot write into {folder}; choose another place")


@contextmanager
def opened_model(
    model: str | None, *, device: str, tensor_parallel: int, quantize: str | None = None
) -> Iterator["Bundle"]:
    """The model of a command, whole or (rank 0 only) split over processes, with settled threads."""
    from mmspeech.checkpoint import load_model

    place = check_device(device)
    if tensor_parallel > 1:
        from mmspeech.serve.parallel import split_model

        if quantize is not None:
            raise ConfigError(f"--quantize {quantize}: not with --tensor-parallel, which splits whole matrices")
        with split_model(model, num_ranks=tensor_parallel, device=device) as bundle:
            yield bundle
        return
    bundle = load_model(model, device=place, quantize=quantize)
    settle_threads(bundle.model)
    yield bundle


def followed(*, device: str, tensor_parallel: int) -> bool:
    """Whether a launcher made this process one of the ranks behind rank 0; its work is then already done."""
    from mmspeech.serve.ranks import launched_rank

    if not launched_rank(tensor_parallel):
        return False
    from mmspeech.serve.parallel import follow

    follow(num_ranks=tensor_parallel, device=device)
    return True


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` (same suffix) that takes its place when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
