"""What a server counts, in Prometheus' form."""

import contextlib
from typing import TYPE_CHECKING

import numpy as np
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from mmspeech.serve.crew import Crew
    from mmspeech.serve.lobby import Lobby
    from mmspeech.serve.worker import Worker


class Metrics(Collector):
    """Counters that handlers raise, and numbers of worker and lobby as they are when they are asked for."""

    def __init__(self, worker: "Worker | Crew", lobby: "Lobby"):
        self._worker, self._lobby = worker, lobby
        self._registry = CollectorRegistry()
        self.calls = Counter("mmspeech_calls", "Calls that began.", registry=self._registry)
        self.refused = Counter("mmspeech_refused", "Connections that were refused.", ["why"], registry=self._registry)
        self.bad_messages = Counter("mmspeech_bad_messages", "Messages not understood.", registry=self._registry)
        self.starved = Counter("mmspeech_starved_frames", "Steps without the caller's sound.", registry=self._registry)
        self.skipped = Counter("mmspeech_skipped_frames", "Frames of sound never heard.", registry=self._registry)
        self.pictures = Counter("mmspeech_pictures", "Pictures.", ["what"], registry=self._registry)
        self._registry.register(self)

    def collect(self):
        """Prometheus asks: gauges of this moment."""
        worker = self._worker
        yield GaugeMetricFamily("mmspeech_sessions", "Calls that are on.", value=worker.num_calls)
        yield GaugeMetricFamily("mmspeech_places", "Calls that fit.", value=worker.places)
        yield GaugeMetricFamily("mmspeech_queue", "Callers who wait.", value=self._lobby.num_waiting)
        yield CounterMetricFamily("mmspeech_steps", "Steps of the batch.", value=worker.steps)
        yield CounterMetricFamily("mmspeech_overruns", "Steps longer than a frame.", value=worker.overruns)
        yield CounterMetricFamily("mmspeech_failures", "Failures of the model.", value=worker.failures)
        memory = sum(resident_bytes(process) for process in worker.process_ids)
        yield GaugeMetricFamily("mmspeech_memory_bytes", "Of all processes.", value=memory)
        steps = GaugeMetricFamily("mmspeech_step_seconds", "Of the last steps.", labels=["quantile"])
        for name, value in step_quantiles(list(worker.step_sec)).items():
            steps.add_metric([name], value)
        yield steps

    def text(self) -> bytes:
        """The exposition."""
        return generate_latest(self._registry)


def step_quantiles(step_sec: list[float]) -> dict[str, float]:
    """p50, p95 and p99 in seconds; empty without steps."""
    if not step_sec:
        return {}
    values = np.percentile(step_sec, (50, 95, 99))
    return {name: float(value) for name, value in zip(("0.5", "0.95", "0.99"), values, strict=True)}


def resident_bytes(process_id: int) -> int:
    """Memory of a process of this machine; 0 when it has ended."""
    with contextlib.suppress(OSError), open(f"/proc/{process_id}/statm", encoding="ascii") as file:
        import resource

        return int(file.read().split()[1]) * resource.getpagesize()
    return 0
