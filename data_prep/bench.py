"""`bench`: how fast speech is made and encoded here, stage by stage; and encoding beside transformers' MimiModel."""

import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from data_prep.encode import encode
from data_prep.pack import pack
from data_prep.records import Record, SaidRecord, write_records
from data_prep.speak import SpeakSettings, speak
from data_prep.steps import How
from mmspeech.audio.codec import Codec, build_codec
from mmspeech.config import ConfigError, MimiConfig
from mmspeech.formats.mimi import load_mimi, save_mimi
from mmspeech.frames import FRAME_SAMPLES, SAMPLE_RATE_HZ, samples_to_seconds

_LINES = (
    "What do you see in the picture?", "I see a red bus on a wet street, and two people who wait at the stop.",
    "How many dogs are there?", "Just one. It sits beside the bench and looks at the people.",
    "Is the bus blue?", "No, it is red, with a white stripe.",
)  # fmt: skip
# As Mimi is built, with fewer channels: so small that a call's cost is more than its arithmetic.
SMALL_MIMI = {
    "num_codebooks": 8, "total_codebooks": 8, "codebook_size": 256, "codebook_dim": 32, "dim": 64, "num_filters": 8,
    "transformer": {"dim": 64, "num_heads": 4, "num_layers": 2, "ffn_dim": 128, "context": 250, "norm": "layer",
                    "norm_eps": 1e-5, "max_period": 10000.0, "gated_ffn": False, "layer_scale": 0.01},
}  # fmt: skip


_codec: Codec | None = None  # of a process of the pool


def bench(codec_dir: Path, *, count: int, jobs: int, voices: str, size: str) -> Iterator[str]:
    """Lines of a table: seconds of calls made in a second, of each stage; then the encoders, on the same sound."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        turns = tuple(SaidRecord(speaker="main" if n % 2 else "user", text=text) for n, text in enumerate(_LINES))
        records = [Record(id=f"b/{n}", source="b", licence="CC0-1.0", turns=turns) for n in range(count)]
        write_records(folder / "records", records, root=folder)
        calls, codes, how = folder / "calls", folder / "codes", How(jobs=jobs)
        yield f"| {count} calls, {jobs} processes | s | times as fast as they sound |"
        yield "|---|---|---|"
        stages = (
            (f"speak, {voices}", lambda: speak(folder / "records", calls, SpeakSettings(voices=voices), how=how)),
            ("encode", lambda: encode(data=calls, codec_dir=codec_dir, out=codes, how=how)),
            ("pack", lambda: pack(data=calls, codes=codes, out=folder / "shards", how=how)),
        )
        sound_sec, all_sec = 0.0, 0.0
        for label, stage in stages:
            began = time.perf_counter()
            made = stage()
            spent_sec = time.perf_counter() - began
            sound_sec = sound_sec or made.sound_sec  # of the first stage: as much as of all
            all_sec += spent_sec
            yield f"| {label} | {spent_sec:.1f} | {sound_sec / spent_sec:.0f} |"
        yield f"| all | {all_sec:.1f} | {sound_sec / all_sec:.0f} |"
    yield ""
    yield from encoders(size=size, jobs=jobs)


def encoders(*, size: str, jobs: int, clips: int = 32, seconds: float = 8.0, repeats: int = 5) -> Iterator[str]:
    """transformers' MimiModel and our codec with the same weights on the same sound, medians of `repeats`: recording by
    recording, eight at once, and ours in `jobs` processes of a thread each. size: small, or full (Mimi's own)."""
    from transformers import MimiModel

    torch.manual_seed(0)
    config = MimiConfig.model_validate({"kind": "mimi"} | (SMALL_MIMI if size == "small" else {}))
    samples = int(seconds * SAMPLE_RATE_HZ) // FRAME_SAMPLES * FRAME_SAMPLES
    waves = 0.1 * torch.randn(clips, 1, samples)
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        save_mimi(Path(name), build_codec(config).eval(), config, layout="transformers")
        ours, theirs = load_mimi(Path(name)), MimiModel.from_pretrained(name).eval()
        count = config.num_codebooks
        if not torch.equal(theirs.encode(waves[:1], num_quantizers=count).audio_codes, ours.encode(waves[:1])):
            raise ConfigError("our codec and MimiModel give different codes; run tests/audio first")
        with ProcessPoolExecutor(jobs, get_context("spawn"), initializer=_begin, initargs=(Path(name),)) as pool:
            runs = {
                "MimiModel, one by one": lambda: [theirs.encode(w[None], num_quantizers=count) for w in waves],
                "MimiModel, 8 at once": lambda: [theirs.encode(w, num_quantizers=count) for w in waves.split(8)],
                "ours, one by one": lambda: [ours.encode(w[None]) for w in waves],
                "ours, 8 at once": lambda: [ours.encode(w) for w in waves.split(8)],
                f"ours, {jobs} processes": lambda: list(pool.map(_encode, [w.numpy() for w in waves])),
            }
            of = f"{clips} times {seconds:g} s, {torch.get_num_threads()} threads"
            yield f"| Mimi ({size}), {of} | s | times real time |"
            yield "|---|---|---|"
            for label, run in runs.items():
                spent_sec = _median_sec(run, repeats)
                yield f"| {label} | {spent_sec:.2f} | {samples_to_seconds(clips * samples) / spent_sec:.0f} |"


def _begin(path: Path) -> None:
    global _codec
    torch.set_num_threads(1)
    _codec = load_mimi(path)


def _encode(wave: np.ndarray) -> np.ndarray:
    return _codec.encode(torch.from_numpy(wave)[None]).numpy()


def _median_sec(run, repeats: int) -> float:
    run()
    spent = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        spent.append(time.perf_counter() - began)
    return float(np.median(spent))
