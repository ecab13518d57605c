"""A step on a Ray cluster of two machines (made up on this one), one of whose workers is killed: every item once."""

import os
import signal
import threading
import time

import psutil
import pytest
from doubling import doubled, numbers

from data_prep.steps import How
from mmspeech.config import ConfigError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def address():
    pytest.importorskip("ray.data", reason="needs Ray: pip install 'mmspeech[ray]'")
    import ray
    from ray.cluster_utils import Cluster

    here = os.path.dirname(__file__)
    os.environ["PYTHONPATH"] = os.pathsep.join([here, os.getcwd(), os.environ.get("PYTHONPATH", "")])  # of its workers
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    yield cluster.address
    ray.shutdown()
    cluster.shutdown()


def test_no_cluster_is_a_line(tmp_path):
    pytest.importorskip("ray.data", reason="needs Ray: pip install 'mmspeech[ray]'")
    with pytest.raises(ConfigError, match="no cluster there"):
        doubled(numbers(tmp_path / "in", 4), tmp_path / "o", how=How(ray="127.0.0.1:1"))


def _kill_a_worker(killed: list[int], after_sec: float) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until and not killed:
        workers = [
            one for one in psutil.process_iter(["cmdline"]) if "MapWorker" in " ".join(one.info["cmdline"] or [])
        ]
        if len(workers) >= 2:
            time.sleep(after_sec)
            os.kill(workers[0].pid, signal.SIGKILL)
            killed.append(workers[0].pid)
        time.sleep(0.1)


def test_a_killed_worker_costs_nothing_and_nothing_is_there_twice(address, tmp_path):
    data = numbers(tmp_path / "in", 120)
    doubled(data, tmp_path / "one")
    killed: list[int] = []
    killer = threading.Thread(target=_kill_a_worker, args=(killed, 2.0))
    killer.start()
    tally = doubled(data, tmp_path / "ray", how=How(jobs=2, ray=address), slow_sec=0.1)
    killer.join()
    assert killed and tally.complete and tally.entries == 108
    assert (tmp_path / "ray" / "manifest.jsonl").read_bytes() == (tmp_path / "one" / "manifest.jsonl").read_bytes()
