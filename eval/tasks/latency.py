"""Latency and cost: time per step with and without sight and as a call grows, time to first audio, memory."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from eval.scoring import is_active
from eval.task import MissingDataError, Prompt, Reply, Responder, Settings, Task
from mmspeech.audio.waveform import in_frames, read_audio
from mmspeech.config import ConfigError
from mmspeech.frames import FRAME_RATE_HZ, FRAME_SAMPLES, SAMPLE_RATE_HZ
from mmspeech.serve.engine import CallBatch
from mmspeech.serve.metrics import resident_bytes
from mmspeech.vision.image import load_image

if TYPE_CHECKING:
    from mmspeech.checkpoint import Bundle

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
QUESTION, PICTURE = EXAMPLES / "what_colour.wav", EXAMPLES / "scene.png"
LENGTHS_SEC = (8, 40)  # steps are timed in the last WINDOW_SEC before these moments of the call
WINDOW_SEC = 4


def build(settings: Settings, bundle: "Bundle | None") -> "Latency":
    """The task for a model; a script takes no time."""
    if bundle is None:
        raise MissingDataError("a model is timed here; a script takes no time")
    for path in (QUESTION, PICTURE):
        if not path.is_file():
            raise MissingDataError(f"{path} is not there: it comes with the repository (Apache-2.0)")
    return Latency(bundle)


@dataclass(frozen=True)
class Case:
    """A call of its own, with a picture or without."""

    kind: str
    sighted: bool
    voice: str = "all"

    @property
    def id(self) -> str:
        return self.kind


class Latency(Task):
    """No score: what it measures is in `times_ms`, `first_audio_sec`, `real_time_factor` and `memory_mb`."""

    name, version, alone = "latency", 1, True

    def __init__(self, bundle: "Bundle"):
        self.files = [QUESTION, PICTURE]
        self._bundle = bundle
        self.samples = [Case("without sight", False)]
        if bundle.config.vision is not None:
            self.samples.append(Case("with sight", True))

    def prompt(self, sample: Case) -> Prompt:
        pictures = [(0.0, load_image(PICTURE))] if sample.sighted else []
        return Prompt(read_audio(QUESTION)[0].numpy(), pictures)

    def run(
        self, samples: list[Case], prompts: list[Prompt], responder: Responder, *, seeds: list[int]
    ) -> list[dict[str, Any]]:
        """Times the model here, step by step, one call after the other."""
        return [self._time(prompt) for prompt in prompts]

    def _time(self, prompt: Prompt) -> dict[str, Any]:
        calls = CallBatch(self._bundle)
        for at_sec, picture in prompt.pictures:
            calls.show(picture, 0, at_sec=at_sec)
        frames = in_frames(prompt.wave)
        silence = torch.zeros(FRAME_SAMPLES)
        steps = int(LENGTHS_SEC[-1] * FRAME_RATE_HZ)
        spent_sec, replies = [], []
        for number in range(steps):
            pcm = frames[number] if number < len(frames) else silence
            began = time.perf_counter()
            out = calls.step(pcm[None])
            if calls.device.type == "cuda":
                torch.cuda.synchronize(calls.device)
            spent_sec.append(time.perf_counter() - began)
            replies.append(out.wave[0])
        return _record(prompt, calls, spent_sec, torch.cat(replies).numpy())

    def score(self, sample: Case, prompt: Prompt, reply: Reply) -> dict[str, Any]:
        """Replies are not judged here."""
        raise ConfigError("the task latency times a model; it does not judge replies")

    def right_reply(self, sample: Case) -> Reply:
        return Reply()

    def summarise(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        if len(records) != 1:  # of all kinds there is no one number
            return {}
        record = records[0]
        times = {
            f"step_{age}_{name}_ms": value for age, one in record["times_ms"].items() for name, value in one.items()
        }
        return times | {name: record[name] for name in ("first_audio_sec", "real_time_factor", "memory_mb", "state_mb")}


def _record(prompt: Prompt, calls: CallBatch, spent_sec: list[float], heard: np.ndarray) -> dict[str, Any]:
    window = int(WINDOW_SEC * FRAME_RATE_HZ)
    times_ms = {}
    for length_sec in LENGTHS_SEC:
        last = int(length_sec * FRAME_RATE_HZ)
        p50, p99 = np.percentile(np.asarray(spent_sec[last - window : last]) * 1000, (50, 99))
        times_ms[f"at_{length_sec}_sec"] = {"p50": round(float(p50), 2), "p99": round(float(p99), 2)}
    active = np.flatnonzero(is_active(prompt.wave, SAMPLE_RATE_HZ))
    end_sec = (active[-1] + 1) * 0.02
    sounds = np.flatnonzero(is_active(heard[int(end_sec * SAMPLE_RATE_HZ) :], SAMPLE_RATE_HZ))
    state_bytes = sum(tensor.numel() * tensor.element_size() for tensor in calls.state_tensors())
    return {
        "score": None,
        "times_ms": times_ms,
        # In the call's own time, and what the step that gave it took.
        "first_audio_sec": round(float(sounds[0] * 0.02 + np.median(spent_sec)), 3) if len(sounds) else None,
        "real_time_factor": round(sum(spent_sec) * FRAME_RATE_HZ / len(spent_sec), 4),
        "memory_mb": round(resident_bytes(os.getpid()) / 1e6, 1),
        "state_mb": round(state_bytes / 1e6, 2),
    }
