"""A group of processes that step together: how it comes to be, how rank 0 talks to the others, how it ends.

Ranks are started by a launcher (torchrun, `deepspeed`), or by rank 0 itself when it finds that it is alone.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mmspeech.config import ConfigError

STEP_TIMEOUT = timedelta(seconds=60)  # the longest wait of one rank for another within a step
IDLE_TIMEOUT = timedelta(days=30)  # the longest wait for the next step
LOAD_TIMEOUT_SEC = 1800.0
_POLL_SEC = 0.02
_LEAVE_SEC = 10.0
_PREFIX = "mmspeech"


class RankError(ConfigError):
    """A rank is gone, or the ranks are not those asked for; the message is one line."""


def launched_rank(num_ranks: int) -> int | None:
    """This process's rank when a launcher started it, else None; RankError when it started another number."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if "RANK" not in os.environ or (size == 1 and num_ranks > 1):
        return None
    if size != num_ranks:
        raise RankError(
            f"the launcher started {size} ranks, --tensor-parallel is {num_ranks}: make them the same, "
            "or leave the launcher out"
        )
    return int(os.environ["RANK"]) if size > 1 else None


class Ranks:
    """`rank` of `size` processes. `device` is this rank's own; `plan` is what rank 0 told all at the start."""

    def __init__(self, *, rank: int, size: int, local_rank: int, device: torch.device, store: dist.Store):
        self.rank, self.size, self.local_rank, self.device = rank, size, local_rank, device
        self._store = dist.PrefixStore(_PREFIX, store)
        self._workers: dict[int, subprocess.Popen] = {}
        self._control: dist.ProcessGroup | None = None

    @classmethod
    def gather(cls, *, num_ranks: int, device: str, plan: dict[str, Any]) -> "Ranks":
        """On rank 0: start the others, or meet those that a launcher started, and tell them the plan."""
        if dist.is_initialized():
            raise RankError("--tensor-parallel: this process is already in a process group; start a fresh one")
        if launched_rank(num_ranks) is not None:
            ranks = cls._launched(num_ranks, device)
        else:
            store = dist.TCPStore("127.0.0.1", 0, num_ranks, is_master=True, wait_for_workers=False)
            ranks = cls(rank=0, size=num_ranks, local_rank=0, device=own_device(device, 0), store=store)
            ranks._workers = {rank: _start(rank, num_ranks, store.port, device) for rank in range(1, num_ranks)}
        with ranks.closing_on_error():
            ranks._store.set("plan", json.dumps(plan))
            ranks.wait_for("here", timeout_sec=LOAD_TIMEOUT_SEC)
            ranks._connect()
        return ranks

    @classmethod
    def join(cls, *, num_ranks: int, device: str) -> tuple["Ranks", dict[str, Any]]:
        """On the other ranks: meet rank 0; returns its plan too."""
        ranks = cls._launched(num_ranks, device)
        ranks._store.set_timeout(timedelta(seconds=LOAD_TIMEOUT_SEC))
        plan = json.loads(ranks._store.get("plan"))
        ranks.tell_store("here")
        ranks._connect()
        return ranks, plan

    @classmethod
    def _launched(cls, num_ranks: int, device: str) -> "Ranks":
        local_rank = int(os.environ.get("LOCAL_RANK", os.environ["RANK"]))
        own = own_device(device, local_rank)
        store, rank, size = next(dist.rendezvous("env://", timeout=timedelta(seconds=LOAD_TIMEOUT_SEC)))
        return cls(rank=rank, size=size, local_rank=local_rank, device=own, store=store)

    def _connect(self) -> None:
        backend = "nccl" if self.device.type == "cuda" else "gloo"
        if backend == "nccl":
            torch.cuda.set_device(self.device)
        dist.init_process_group(backend, store=self._store, rank=self.rank, world_size=self.size, timeout=STEP_TIMEOUT)
        # Gloo waits without spinning, and a wait for the next step may be long.
        self._control = dist.new_group(backend="gloo", timeout=IDLE_TIMEOUT)

    def tell_store(self, event: str, text: str = "") -> None:
        """On the other ranks: `event` (here, loaded, failed) has happened."""
        self._store.set(f"{event}/{self.rank}", text)

    def wait_for(self, event: str, *, timeout_sec: float) -> None:
        """On rank 0: until every other rank has told `event`; RankError when one failed, ended or took too long."""
        end = time.monotonic() + timeout_sec
        for rank in range(1, self.size):
            while not self._store.check([f"{event}/{rank}"]):
                self._raise_failures()
                if time.monotonic() > end:
                    raise RankError(f"rank {rank} did not come within {timeout_sec:.0f} s; see its own messages")
                time.sleep(_POLL_SEC)

    def _raise_failures(self) -> None:
        for rank in range(1, self.size):
            if self._store.check([f"failed/{rank}"]):
                raise RankError(f"rank {rank}: {self._store.get(f'failed/{rank}').decode()}")
        gone = self._gone()
        if gone:
            raise RankError(f"{gone}; see its own messages above")

    def _gone(self) -> str:
        """Which of the ranks started here have ended, in words."""
        ended = {rank: worker.poll() for rank, worker in self._workers.items() if worker.poll() is not None}
        return ", ".join(f"rank {rank} ended with exit code {code}" for rank, code in ended.items())

    def say(self, message: object) -> None:
        """From rank 0 to all others: anything that pickles, tensors on the CPU."""
        with self.reporting():
            dist.broadcast_object_list([message], src=0, group=self._control)

    def hear(self) -> Any:
        """What rank 0 says next."""
        box = [None]
        with self.reporting():
            dist.broadcast_object_list(box, src=0, group=self._control)
        return box[0]

    def agree(self, ids: Tensor) -> Tensor:
        """Rank 0's ids, on every rank."""
        ids = ids.contiguous()
        dist.broadcast(ids, src=0)
        return ids

    @contextlib.contextmanager
    def reporting(self) -> Iterator[None]:
        """What goes wrong between ranks becomes a RankError."""
        try:
            yield
        except RuntimeError as error:
            if not (isinstance(error, dist.DistError) or "gloo" in str(error).lower()):
                raise
            time.sleep(_POLL_SEC * 10)  # an ended process is known as such a moment after its sockets close
            other = self._gone() or ("another rank" if self.rank == 0 else "rank 0") + " is gone or does not answer"
            raise RankError(f"tensor-parallel rank {self.rank} of {self.size} stops: {other}") from error

    @contextlib.contextmanager
    def closing_on_error(self) -> Iterator[None]:
        """End the ranks started here when the block does not end well."""
        well = False
        try:
            yield
            well = True
        finally:
            if not well:
                self.abandon()

    def close(self) -> None:
        """All ranks are done: leave the group, and wait for those started here."""
        dist.destroy_process_group()
        for worker in self._workers.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.wait(_LEAVE_SEC)
        self.abandon()

    def abandon(self) -> None:
        """End the ranks started here, whatever they do."""
        for worker in self._workers.values():
            if worker.poll() is None:
                worker.kill()
                worker.wait()


def own_device(device: str, local_rank: int) -> torch.device:
    """The device of a rank: cpu, or the CUDA device of its number; ConfigError when there is none."""
    if device not in ("cpu", "cuda"):
        raise ConfigError(f"--device {device}: with --tensor-parallel, expected cpu or cuda (each rank takes its own)")
    if device == "cpu":
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(f"rank {local_rank} has no GPU: this machine has {torch.cuda.device_count()}")
    return torch.device("cuda", local_rank)


def _start(rank: int, size: int, port: int, device: str) -> subprocess.Popen:
    """One more rank on this machine. It has a session of its own: Ctrl-C reaches rank 0, which ends the others."""
    library = str(Path(__file__).resolve().parents[2])
    environment = os.environ | {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True",
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size),
        "PYTHONPATH": os.pathsep.join(filter(None, (library, os.environ.get("PYTHONPATH")))),
    }  # fmt: skip
    command = [sys.executable, "-m", "mmspeech.serve.parallel", str(size), device]
    return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
