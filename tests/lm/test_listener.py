"""A model that only listens: the moshi package's outputs, streams equal to the whole, and words with times."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmspeech.audio.codec import build_codec
from mmspeech.checkpoint import CheckpointError
from mmspeech.commands.transcribe import TurnEnd, listen
from mmspeech.config import MimiConfig
from mmspeech.formats.groups import ConvertError
from mmspeech.formats.listener import ListenerBundle, listener_config, load_listener, read_listener
from mmspeech.formats.moshi import join_projections
from mmspeech.frames import SAMPLE_RATE_HZ
from mmspeech.tokens.text import train_tokenizer

SMALL = Path(__file__).parents[1] / "golden" / "listener-small"
SETTINGS = json.loads((SMALL / "config.json").read_text())


@pytest.fixture(scope="module")
def model():
    return read_listener(SMALL, SETTINGS)


@torch.no_grad()
def test_logits_are_those_of_the_moshi_package(model):
    expected = load_file(SMALL / "expected.safetensors")
    assert (model(expected["columns"]).text_logits - expected["text_logits"]).abs().max() < 1e-5


def test_a_stream_says_what_the_moshi_package_says(model):
    """Its first step reads no codes, only what every call begins with."""
    expected = load_file(SMALL / "expected.safetensors")
    state = model.begin(2)
    for frame in range(expected["user_codes"].shape[2]):
        ids, pauses = model.step(expected["user_codes"][:, :, frame], state=state)
        assert torch.equal(ids, expected["text_ids"][:, frame])
        torch.testing.assert_close(torch.stack(pauses), expected["extra"][frame], atol=1e-5, rtol=0)


@torch.no_grad()
def test_streaming_equals_the_whole(model):
    columns = load_file(SMALL / "expected.safetensors")["columns"]
    whole = model(columns).text_logits
    for size in (1, 3, 7):
        state = model.temporal.transformer.init_state(2, max_steps=size)
        parts = [model(part, state=state).text_logits for part in columns.split(size, dim=2)]
        torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=0)


def test_words_come_with_times_on_the_clock_of_the_recording(model, tmp_path, monkeypatch):
    """A scripted stream of tokens: pieces of words, a pause, and an end of padding between words that touch."""
    tokenizer = train_tokenizer(["red bus on the street"] * 5, 40, tmp_path / "t.model")
    red, bus = tokenizer.encode("red"), tokenizer.encode("bus")
    late_frames = 8  # 0.48 s of delay and 0.16 s of prefix
    script = [3] * (late_frames + 2) + red + [0] + bus + [3] * 60
    told = iter(script)
    codec = build_codec(_mimi()).eval()
    bundle = ListenerBundle(model, codec, tokenizer)
    monkeypatch.setattr(type(model), "step", lambda self, codes, *, state: (torch.tensor([next(told)]), []))
    words = list(listen(bundle, torch.randn(SAMPLE_RATE_HZ)))
    assert len(words) == 2  # without heads no turn is said to end
    assert [word.text for word in words] == ["red", "bus"]
    assert words[0].start_sec == pytest.approx(2 * 0.08)
    assert words[1].start_sec == pytest.approx((2 + len(red) + 1) * 0.08)


def test_a_turn_ends_once_before_the_next_word(model, tmp_path, monkeypatch):
    tokenizer = train_tokenizer(["red bus on the street"] * 5, 40, tmp_path / "t.model")
    red = tokenizer.encode("red")[0]
    bundle = ListenerBundle(model, build_codec(_mimi()).eval(), tokenizer)
    # Done from frame 6 on, but for one frame; a pause before the first word ends no turn.
    said = iter([3] * 4 + [red] + [3] * 10 + [red] + [3] * 60)
    done = iter([0.9] * 3 + [0.1] * 3 + [0.9] * 4 + [0.2] + [0.9] * 60)

    def step(self, codes, *, state):
        probability = next(done)
        return torch.tensor([next(said)]), [torch.zeros(1, 6), torch.zeros(1, 6), torch.tensor([[probability, 0.0]])]

    monkeypatch.setattr(type(model), "step", step)
    ends = [heard.at_sec for heard in listen(bundle, torch.randn(SAMPLE_RATE_HZ)) if isinstance(heard, TurnEnd)]
    assert ends == pytest.approx([7 * 0.08 - 0.16, 17 * 0.08 - 0.16])


def test_a_recording_is_heard_to_its_end(model, tmp_path):
    """Real codes of a real codec, untrained: what matters is how many steps there are, and that all is streamed."""
    tokenizer = train_tokenizer(["red bus on the street"] * 5, 40, tmp_path / "t.model")
    bundle = ListenerBundle(model, build_codec(_mimi()).eval(), tokenizer)
    list(listen(bundle, 0.1 * torch.randn(3 * SAMPLE_RATE_HZ)))


def _mimi() -> MimiConfig:
    transformer = {
        "dim": 16, "num_heads": 2, "num_layers": 1, "ffn_dim": 32, "context": 10, "norm": "layer", "norm_eps": 1e-5,
        "gated_ffn": False, "layer_scale": 0.5,
    }  # fmt: skip
    return MimiConfig(
        num_codebooks=4, total_codebooks=4, codebook_size=32, codebook_dim=8, dim=16, num_filters=4,
        transformer=transformer,
    )  # fmt: skip


def test_what_does_not_fit_is_named(tmp_path):
    tensors = join_projections(load_file(SMALL / "model.safetensors"))
    tensors["text_linear.wait"] = tensors.pop("text_linear.weight")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="1 missing: text_linear.weight; 1 unexpected: text_linear.wait"):
        read_listener(tmp_path, SETTINGS)
    for changes, message in (
        ({"dep_q": 8}, "a model that speaks"),
        ({"delays": [0, 1, 1, 1, 1]}, "expected none in a model that only listens"),
        ({"hue": 1}, "unknown key 'hue'"),
        ({"norm_emb": True}, "norm_emb True is not supported"),
    ):
        with pytest.raises(ConvertError, match=message):
            listener_config(SETTINGS | changes, source="config.json")
    with pytest.raises(ConvertError, match="no config.json; expected a speech to text model"):
        load_listener(tmp_path)
