"""Text to sound: scripts as the model reads them, voices, and the length of what is heard."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from mmspeech.audio.codec import build_codec
from mmspeech.audio.waveform import write_wav
from mmspeech.cli import app
from mmspeech.commands.say import SETTLING_FRAMES, SayOptions, prepare, spoken
from mmspeech.config import ConfigError, MimiConfig
from mmspeech.formats.speaker import SpeakerBundle, read_speaker
from mmspeech.frames import FRAME_SAMPLES
from mmspeech.tokens.script import NEW_WORD_ID, ScriptReader, ScriptWord, parse_script
from mmspeech.tokens.text import BOS_ID, EOS_ID, PAD_ID, train_tokenizer

GOLDEN = Path(__file__).parent / "golden"
WAIT = PAD_ID
LATER = 1_000  # a frame far behind all scripts


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokens") / "t.model"
    return train_tokenizer(["red bus on the street it's"] * 5, 40, path)


@pytest.fixture(scope="module")
def bundles(tokenizer):
    """Untrained, with a small codec: what matters is which frames are given."""
    transformer = {
        "dim": 16, "num_heads": 2, "num_layers": 1, "ffn_dim": 32, "context": 10, "norm": "layer", "norm_eps": 1e-5,
        "gated_ffn": False, "layer_scale": 0.5,
    }  # fmt: skip
    codec = build_codec(
        MimiConfig(
            num_codebooks=4,
            total_codebooks=4,
            codebook_size=32,
            codebook_dim=8,
            dim=16,
            num_filters=4,
            transformer=transformer,
        )  # fmt: skip
    ).eval()
    models = {}
    for kind in ("speaker", "prefix"):
        path = GOLDEN / f"{kind}-small"
        model = read_speaker(path, json.loads((path / "config.json").read_text()))
        models[kind] = SpeakerBundle(model, codec, tokenizer, ".abc@7.safetensors")
    return models


@pytest.fixture
def voice(tmp_path) -> str:
    save_file(
        {"speaker_wavs": load_file(GOLDEN / "speaker-small/expected.safetensors")["voices"][0]},
        tmp_path / "v.safetensors",
    )
    return str(tmp_path / "v.safetensors")


def test_turns_become_words_of_two_speakers(tokenizer):
    words = parse_script(["red bus: (on)", 'the<break time="0.5s"/>street'], tokenizer, mark_turns=True)
    assert [word.text for word in words] == ["red", "bus", "on", "the", "", "street"]
    assert [word.tokens[0] in (BOS_ID, EOS_ID) for word in words if word.tokens] == [True, False, False, True, False]
    assert words[0].tokens[0] == BOS_ID and words[3].tokens[0] == EOS_ID
    assert words[4].tokens == () and words[4].pause_frames == 6
    assert all(word.pause_frames == len(word.tokens) for word in words if word.tokens)
    plain = parse_script(["it\u2019s red"], tokenizer, mark_turns=False, gap_frames=0)
    assert plain[0].tokens == tuple(tokenizer.encode("it's")) and plain[0].pause_frames == 0
    with pytest.raises(ConfigError, match="nothing to say"):
        parse_script(["  ", '<break time="3s"/>'], tokenizer, mark_turns=True)


def test_a_word_is_read_when_it_is_asked_for():
    words = [ScriptWord("a", (10, 11)), ScriptWord("b", (12,)), ScriptWord("", (), 2), ScriptWord("c", (13,))]
    reader = ScriptReader(words, card=50, max_pause_frames=3, initial_pause_frames=1)
    wishes = [NEW_WORD_ID, NEW_WORD_ID, WAIT, WAIT, WAIT, NEW_WORD_ID, NEW_WORD_ID, NEW_WORD_ID, WAIT, WAIT, WAIT]
    ids = [reader.next_id(wish, frame) for frame, wish in enumerate(wishes)]
    # The first wish comes too early, the sixth is granted; the seventh waits for the word, the pause holds up the next.
    assert ids == [PAD_ID, NEW_WORD_ID, 10, 11, PAD_ID, NEW_WORD_ID, 12, PAD_ID, PAD_ID, NEW_WORD_ID, 13]
    assert reader.begun == [("a", 1), ("b", 5), ("c", 9)] and reader.end_frame is None
    assert reader.next_id(NEW_WORD_ID, LATER) == PAD_ID and reader.end_frame == LATER
    reader.next_id(NEW_WORD_ID, LATER + 1)
    assert reader.end_frame == LATER


def test_a_model_that_never_asks_is_given_the_words_all_the_same():
    words = [ScriptWord("a", (10,)), ScriptWord("b", (12,))]
    reader = ScriptReader(words, card=50, max_pause_frames=3, initial_pause_frames=2)
    ids = [reader.next_id(WAIT, frame) for frame in range(8)]
    assert ids == [PAD_ID, PAD_ID, NEW_WORD_ID, 10, PAD_ID, PAD_ID, NEW_WORD_ID, 12]


@pytest.mark.parametrize("kind", ["speaker", "prefix"])
def test_the_sound_ends_where_the_script_does(kind, bundles, voice, tmp_path):
    bundle = bundles[kind]
    recording = tmp_path / "voice.wav"
    write_wav(recording, 0.1 * torch.randn(8 * FRAME_SAMPLES))
    options = SayOptions((voice if kind == "speaker" else str(recording),), seed=3)
    sounds = []
    for _ in range(2):
        saying = prepare(bundle, ["red bus on the street"], options)
        sounds.append(torch.cat(list(spoken(bundle, saying))))
    assert saying.skip_frames == SETTLING_FRAMES + (6 if kind == "prefix" else 0)
    assert len(sounds[0]) == (saying.reader.end_frame + SETTLING_FRAMES - saying.skip_frames) * FRAME_SAMPLES
    assert torch.equal(*sounds) and sounds[0].abs().max() <= 1
    words = saying.words()
    assert [word for word, _ in words] == ["red", "bus", "on", "the", "street"]
    starts = [start_sec for _, start_sec in words]
    assert starts == sorted(starts) and starts[-1] < len(sounds[0]) / 24_000


def test_voices_that_do_not_fit_are_named(bundles, voice, tmp_path):
    def say(kind: str, *voices: str, **options):
        return prepare(bundles[kind], ["red"], SayOptions(voices, **options))

    with pytest.raises(ConfigError, match="needs --voice"):
        say("speaker")
    save_file({"speaker_wavs": torch.zeros(1, 8, 7)}, tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match="a voice of width 8, expected 12: it is of another model"):
        say("speaker", str(tmp_path / "other.safetensors"))
    save_file({"voice": torch.zeros(1, 12, 7)}, tmp_path / "none.safetensors")
    with pytest.raises(ConfigError, match=r"holds voice; expected speaker_wavs"):
        say("speaker", str(tmp_path / "none.safetensors"))
    with pytest.raises(ConfigError, match="6 voices: expected 1 to 5"):
        say("speaker", *[voice] * 6)
    with pytest.raises(ConfigError, match="'3.0' is none of the values"):
        say("speaker", voice, guidance=3.0)
    with pytest.raises(ConfigError, match="2 voices: this model speaks in one"):
        say("prefix", "a.wav", "b.wav")
    write_wav(tmp_path / "short.wav", torch.zeros(FRAME_SAMPLES))
    with pytest.raises(ConfigError, match="too short for a voice"):
        say("prefix", str(tmp_path / "short.wav"))


def test_the_command_says_what_is_wrong(tmp_path):
    for folder, message in (
        (tmp_path, "expected a text to speech model"),
        (GOLDEN / "listener-small", "not text to speech"),
    ):
        done = CliRunner().invoke(app, ["say", "red", "--out", str(tmp_path / "o.wav"), "--model", str(folder)])
        assert done.exit_code == 2 and message in done.output
        assert not (tmp_path / "o.wav").exists()
