"""A model that only speaks: what the moshi package makes of the same weights and scripts, and properties of its own."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmspeech.checkpoint import CheckpointError
from mmspeech.config import ConfigError, GenerationConfig
from mmspeech.formats.speaker import load_speaker, read_speaker, speaker_config
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


def test_a_script_is_spoken_the_same_in_any_company(voiced):
    model, expected = voiced
    sampling = GenerationConfig(text_temperature=0.8, audio_temperature=0.9)
    rows = told(expected)

    def say(chosen: list[int]) -> torch.Tensor:
        conditions = model.conditions([rows[n] for n in chosen])
        job = SpeakJob([readers(model)[n] for n in chosen], conditions, sampling, [7 + n for n in chosen])
        return torch.stack(list(speak(model, job)), dim=2)

    together = say([0, 1])
    for n in (0, 1):
        alone = say([n])
        assert torch.equal(alone[0], together[n, :, : alone.shape[2]])


def test_fewer_codebooks_are_fewer_codes(voiced):
    """The first codebook of the first frame depends on nothing that was left out."""
    model, expected = voiced
    job = SpeakJob(readers(model), model.conditions(told(expected)), GREEDY, (0, 0), num_codebooks=2)
    codes = list(speak(model, job))
    assert codes[0].shape == (2, 2)
    assert torch.equal(codes[0][:, 0], expected["frames"][:, 1, model.config.audio_delay_frames])


def test_a_batch_of_other_conditions_is_refused(voiced):
    model, expected = voiced
    with pytest.raises(ValueError, match="conditions have 2 rows, expected 1 for 1 scripts"):
        list(speak(model, SpeakJob(readers(model)[:1], model.conditions(told(expected)), GREEDY, (0,))))
    with pytest.raises(ConfigError, match="'9.9' is none of the values it was trained with: 1.0, 1.5, 2.0"):
        model.conditions([told(expected)[0] | {"cfg": "9.9"}])
    with pytest.raises(ConfigError, match="None: expected vectors of width 12"):
        model.conditions([{"control": "ok"}])
    with pytest.raises(ConfigError, match=r"no condition 'mood' \(it knows: speaker_wavs, control, cfg\)"):
        model.conditions([{"mood": "glad"}])


def test_what_can_not_be_computed_is_named(tmp_path):
    settings = json.loads((GOLDEN / "speaker-small" / "config.json").read_text())
    for changes, message in (
        ({"dep_q": 2}, "not text to speech"),
        ({"hue": 1}, "unknown key 'hue'"),
        ({"norm_emb": True}, "norm_emb True is not supported"),
        ({"delays": [1, 0, 2, 2, 2]}, "expected none of the text"),
        ({"tts_config": settings["tts_config"] | {"multistream": True}}, "two voices in separate streams"),
        ({"fuser": {"prepend": ["cfg"]}}, "can be summed or looked at"),
        ({"depformer_weights_per_step_schedule": [0, 1]}, "depth_schedule has 2 entries, expected 4"),
    ):
        with pytest.raises(ConfigError, match=message):
            speaker_config(settings | changes, source="config.json")
    with pytest.raises(ConfigError, match="no config.json; expected a text to speech model"):
        load_speaker(tmp_path)
    tensors = load_file(GOLDEN / "speaker-small" / "model.safetensors")
    tensors["text_linear.wait"] = tensors.pop("text_linear.weight")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="1 missing: text_linear.weight; 1 unexpected: text_linear.wait"):
        read_speaker(tmp_path, settings)
