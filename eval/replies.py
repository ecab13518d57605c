"""Replies kept by content: what the same model was asked before, with the same settings, it is not asked again.

A reply is two files, KEY.json and KEY.flac; both are also what the report plays and shows.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from eval.keep import write_flac
from eval.task import Prompt, Reply, Responder
from mmspeech.commands.common import whole_file
from mmspeech.serve.session import SpokenWord


class KeptReplies:
    """A Responder that asks another one only what `folder` does not hold yet.

    `identity`: what decides on the other's replies beside prompt and seed (weights, sampling, version).
    """

    def __init__(self, responder: Responder, folder: Path, *, identity: dict[str, Any]):
        self._responder = responder
        self._folder = folder
        self._identity = json.dumps(identity, sort_keys=True).encode()
        folder.mkdir(parents=True, exist_ok=True)

    def answer(self, samples: Sequence[Any], prompts: Sequence[Prompt], *, seeds: Sequence[int]) -> list[Reply]:
        keys = [self.key(prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        replies = [_read(self._folder, key) for key in keys]
        new = [number for number, reply in enumerate(replies) if reply is None]
        if new:
            asked = ([row[number] for number in new] for row in (samples, prompts, seeds))
            some_samples, some_prompts, some_seeds = asked
            for number, reply in zip(
                new, self._responder.answer(some_samples, some_prompts, seeds=some_seeds), strict=True
            ):
                _write(self._folder, keys[number], reply)
                replies[number] = reply
        return replies

    def file(self, prompt: Prompt, seed: int) -> Path:
        """Where the sound of that reply lies."""
        return self._folder / f"{self.key(prompt, seed)}.flac"

    def key(self, prompt: Prompt, seed: int) -> str:
        """One hash of everything that decides on a reply."""
        digest = hashlib.sha256(self._identity)
        digest.update(json.dumps([seed, prompt.listen_sec, prompt.text, prompt.options]).encode())
        digest.update(np.ascontiguousarray(prompt.wave, np.float32).tobytes())
        for at_sec, picture in prompt.pictures:
            digest.update(f"{at_sec} {picture.mode} {picture.size}".encode())
            digest.update(picture.tobytes())
        return digest.hexdigest()[:32]


def _read(folder: Path, key: str) -> Reply | None:
    """A reply, or None when it is not there whole (the json is written last)."""
    import soundfile

    try:
        told = json.loads((folder / f"{key}.json").read_text(encoding="utf-8"))
        wave = np.zeros(0, np.float32)
        if told["samples"]:
            wave, _ = soundfile.read(str(folder / f"{key}.flac"), dtype="int16")
            wave = wave.astype(np.float32) / np.float32(32767)
        if len(wave) != told["samples"]:
            return None
        words = [SpokenWord(**word) for word in told["words"]]
        return Reply(words, wave, told["gates"], told["option_scores"])
    except (OSError, ValueError, KeyError, TypeError, soundfile.LibsndfileError):
        return None


def _write(folder: Path, key: str, reply: Reply) -> None:
    if len(reply.wave):
        write_flac(folder / f"{key}.flac", reply.wave)
    told = {
        "words": [asdict(word) for word in reply.words],
        "gates": reply.gates,
        "option_scores": reply.option_scores,
        "samples": len(reply.wave),
    }
    with whole_file(folder / f"{key}.json") as temporary:
        temporary.write_text(json.dumps(told), encoding="utf-8")
