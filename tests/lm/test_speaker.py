"""A model that only speaks: what the moshi package makes of the same weights and scripts, and properties of its own."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmspeech.config import GenerationConfig
from mmspeech.formats.speaker import read_speaker
from mmspeech.lm.conditions import nothing_like, voices_as_vectors
from mmspeech.lm.speak import SpeakJob, speak
from mmspeech.tokens.script import ScriptReader, ScriptWord

GOLDEN = Path(__file__).parents[1] / "golden"
GREEDY = GenerationConfig(text_temperature=0.0, audio_temperature=0.0)
SCRIPTS = (
    (((1, 5, 6), 0), ((7,), 0), ((), 3), ((8, 9, 10), 2), ((11,), 0), ((12, 13), 0)),
    (((20,), 0), ((21, 22), 1), ((2, 23), 0)),
)


def load(kind: str):
    path = GOLDEN / f"{kind}-small"
    return read_speaker(path, json.loads((path / "config.json").read_text())), load_file(path / "expected.safetensors")


@pytest.fixture(scope="module")
def voiced():
    """Voices to look at, two text streams, shared matrices, small embeddings."""
    return load("speaker")


@pytest.fixture(scope="module")
def prefixed():
    """A voice is what was said before; norms before the heads, and real guidance."""
    return load("prefix")


def readers(model) -> list[ScriptReader]:
    words = [[ScriptWord("w", tokens, pause) for tokens, pause in script] for script in SCRIPTS]
    card, ahead = model.config.text_card + 1, model.config.lookahead_words
    return [ScriptReader(script, card=card, lookahead_words=ahead) for script in words]


def told(expected) -> list[dict]:
    """One voice at the strongest guidance that was distilled; two voices and none."""
    voices = [voice[0].T for voice in expected["voices"]]
    return [
        {"speaker_wavs": voices_as_vectors(voices[:1], max_voices=5), "control": "ok", "cfg": "2.0"},
        {"speaker_wavs": voices_as_vectors(voices[::-1], max_voices=5), "control": "ok"},
    ]


def jobs(voiced, prefixed) -> dict:
    (model, expected), (other, theirs) = voiced, prefixed
    label = [{"control": "ok"}] * 2
    return {
        "voiced": (model, SpeakJob(readers(model), model.conditions(told(expected)), GREEDY, (0, 0))),
        "prefixed": (
            other,
            SpeakJob(
                readers(other), other.conditions(label + [nothing_like(row) for row in label]), GREEDY, (0, 0),
                prefixes=[theirs["prefix0"], theirs["prefix1"]], guidance=2.0,
            ),
        ),
    }  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("kind", ["voiced", "prefixed"])
def test_logits_are_those_of_the_moshi_package(kind, voiced, prefixed):
    model, expected = {"voiced": voiced, "prefixed": prefixed}[kind]
    conditions = model.conditions(told(expected) if kind == "voiced" else [{"control": "ok"}] * 2)
    codes, delays = expected["codes"], (0, *model.config.delays)
    length = codes.shape[2]
    # Column t holds what is read at step t; what is made at step t stands in column t + 1.
    columns = model.initial_ids()[None, :, None].repeat(2, 1, length + 1)
    for stream, delay in enumerate(delays):
        columns[:, stream, 1 + delay :] = codes[:, stream, : length - delay]
    hidden, text_logits = model(columns[:, :, :-1], conditions)
    torch.testing.assert_close(text_logits, expected["text_logits"], atol=1e-5, rtol=0)
    made = columns[:, :, 1:].transpose(1, 2)
    logits = model.depth(hidden, made[..., 0], made[..., 1:])
    for k, delay in enumerate(delays[1:]):
        theirs = expected["logits"][:, k, : length - delay]
        torch.testing.assert_close(logits[:, delay:, k], theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["voiced", "prefixed"])
def test_scripts_are_spoken_as_by_the_moshi_package(kind, voiced, prefixed):
    model, job = jobs(voiced, prefixed)[kind]
    expected = {"voiced": voiced, "prefixed": prefixed}[kind][1]
    codes = torch.stack(list(speak(model, job)), dim=2)
    assert torch.equal(codes, expected["frames"][:, 1:, model.config.audio_delay_frames :])
    assert [reader.end_frame for reader in job.readers] == expected["end"].tolist()
    for reader, frames in zip(job.readers, expected["words"].tolist(), strict=True):
        assert [frame for _, frame in reader.begun] == [frame for frame in frames if frame >= 0]
