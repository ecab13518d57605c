"""`babble`: calls of random words on both sides, for the codec: every sound next to every other, many voices."""

import json
from pathlib import Path

import numpy as np

from data_prep.effects import user_channel
from data_prep.files import write_atomic, write_wav
from data_prep.scenes import item_rng
from data_prep.tts import MODEL_VOICE, Voice, random_voice, require_synthesisers, synthesise
from data_prep.world import SPLITS
from data_prep.world_dialogue import vocabulary
from data_prep.world_speak import Track
from mmspeech.config import ConfigError
from mmspeech.frames import SAMPLE_RATE_HZ

CALL_SEC = 16.0


def babble(words: list[str], voice: Voice, rng: np.random.Generator) -> Track:
    """Runs of three to eight random words with short gaps, for CALL_SEC."""
    track, now_sec = Track(), rng.uniform(0.0, 1.0)
    while True:
        utterance = synthesise(" ".join(rng.choice(words, rng.integers(3, 9))), voice)
        if now_sec + utterance.duration_sec >= CALL_SEC:
            return track
        now_sec = track.add(utterance, now_sec) + rng.uniform(0.2, 1.2)


def make_babble(out: Path, *, count: int, seed: int, split: str, shard: tuple[int, int] = (0, 1)) -> None:
    """Write `count` stereo calls (left the model's voice, right a user's) with phone times; the manifest comes last.

    What is there is kept. Raises ConfigError for an unknown split, FileNotFoundError when a synthesiser is missing.
    """
    from rich.progress import track as progress

    if split not in SPLITS:
        raise ConfigError(f"split {split!r}: expected one of {', '.join(SPLITS)}")
    require_synthesisers()
    words = vocabulary()
    out.mkdir(parents=True, exist_ok=True)
    length = int(CALL_SEC * SAMPLE_RATE_HZ)
    indices = range(shard[0], count, shard[1])
    for index in progress(indices, description="babble"):
        record = out / f"{index:06d}.json"
        if record.is_file() and record.with_suffix(".wav").is_file():
            continue
        rng = item_rng(seed, split, index, "babble")
        model = babble(words, MODEL_VOICE, rng)
        user = babble(words, random_voice(rng, held_out=False), rng)
        wave = np.stack([model.wave(length), user_channel(user.wave(length), rng)], axis=1)
        write_wav(record.with_suffix(".wav"), wave)
        phones = {
            side: [[p, round(a, 3), round(b, 3)] for p, a, b in track.phones]
            for side, track in (("main", model), ("user", user))
        }
        write_atomic(record, json.dumps({"alignments": [], "visuals": [], "phones": phones}).encode())
    entries = [{"path": f"{index:06d}.wav", "duration": CALL_SEC} for index in indices]
    name = "manifest.jsonl" if shard[1] == 1 else f"manifest-{shard[0]}-of-{shard[1]}.jsonl"
    write_atomic(out / name, "".join(json.dumps(entry) + "\n" for entry in entries).encode())
