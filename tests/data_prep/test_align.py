"""Words of recordings: the paths of CTC against all paths, real aligners on synthesised speech, and their calls."""

import itertools
import json

import numpy as np
import pytest
import soundfile
from voices import needs_speech

from data_prep.align import align
from data_prep.align_error import measure_error
from data_prep.aligners import CtcAligner, SphinxAligner, open_aligner, spread
from data_prep.check import check
from data_prep.ctc import ctc_path, greedy_path
from data_prep.records import Record, SaidRecord, WordRecord, write_records
from data_prep.steps import How
from data_prep.tts import Voice, synthesise
from mmspeech.config import ConfigError

RATE_HZ = 24_000


def collapsed(path, blank=0):
    return [one for one, _ in itertools.groupby(path) if one != blank]


@pytest.mark.parametrize("labels", [[1], [1, 2], [1, 1], [2, 1, 2], [1, 1, 1]])
def test_the_best_ctc_path_is_the_best_of_all(labels):
    for seed in range(6):
        scores = np.log(np.random.default_rng(seed).dirichlet(np.ones(3), 6))
        every = [path for path in itertools.product(range(3), repeat=6) if collapsed(path) == labels]
        worth = [sum(scores[frame, one] for frame, one in enumerate(path)) for path in every]
        best = every[int(np.argmax(worth))]
        runs = [
            (one, [frame for frame, _ in own]) for one, own in itertools.groupby(enumerate(best), key=lambda p: p[1])
        ]
        expected = [(one, frames[0], frames[-1] + 1) for one, frames in runs if one != 0]
        assert ctc_path(scores, labels, 0) == expected


def test_ctc_by_hand():
    scores = np.log(np.full((5, 3), 0.05))
    for frame, one in enumerate([1, 1, 0, 1, 2]):
        scores[frame, one] = np.log(0.9)
    assert ctc_path(scores, [1, 1, 2], 0) == greedy_path(scores, 0) == [(1, 0, 2), (1, 3, 4), (2, 4, 5)]
    with pytest.raises(ConfigError, match="2 frames are too few for 2 letters"):
        ctc_path(scores[:2], [1, 1], 0)  # between two of the same there is a blank


def test_words_of_a_text_take_the_times_of_what_was_heard():
    heard = [("a", 0.0, 0.1), ("read", 0.1, 0.5), ("bus", 0.6, 1.0)]
    found = spread("A red, bus!", heard, 2.0)
    assert [word for word, _, _ in found] == ["A", "red,", "bus!"]
    assert [times for _, *times in found] == [pytest.approx(times) for times in ([0.0, 0.1], [0.1, 0.5], [0.6, 1.0])]
    assert [word for word, _, _ in spread("a — red bus …", heard, 2.0)] == ["a —", "red", "bus …"]
    with pytest.raises(ConfigError, match="nothing of it matches"):
        spread("xyz", [("o", 0.0, 1.0)], 2.0)


@needs_speech
def test_sphinx_finds_words_within_a_frame():
    pytest.importorskip("pocketsphinx")
    texts = [
        "what colour is the circle on the left",
        "there are three green squares at the top",
        "tell me what you see",
    ]
    voices = [Voice(engine="flite", name=name) for name in ("slt", "rms", "awb")]
    errors_sec, given_up = measure_error(SphinxAligner(), voices, texts)
    assert not given_up and len(errors_sec) == 21 and errors_sec.mean() < 0.04 and np.median(errors_sec) < 0.02


@needs_speech
def test_sphinx_knows_no_word_too_many():
    pytest.importorskip("pocketsphinx")
    text = "The Zorblax, quietly, ate 22 apples!"
    said = synthesise("the zorblax quietly ate twenty two apples", Voice(engine="flite", name="rms"))
    aligner = SphinxAligner()
    found = aligner.words(said.wave, RATE_HZ, text.replace("22", "twenty two"))
    assert [word for word, _, _ in found] == ["The", "Zorblax,", "quietly,", "ate", "twenty", "two", "apples!"]
    assert np.mean([abs(own[1] - true[1]) for own, true in zip(found, said.words, strict=True)]) < 0.05
    for wave, told, why in (
        (said.wave, None, "needs to know what is said"),
        (said.wave, "...", "no word that could be listened for"),
        (said.wave[:100], "hello", "expected 0.1 s at least"),
    ):
        with pytest.raises(ConfigError, match=why):
            aligner.words(wave, RATE_HZ, told)


@pytest.fixture(scope="module")
def small_ctc(tmp_path_factory):
    """An untrained wav2vec 2.0 with the letters of the alphabet, as a directory."""
    from transformers import (
        Wav2Vec2Config,
        Wav2Vec2CTCTokenizer,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2ForCTC,
        Wav2Vec2Processor,
    )

    folder = tmp_path_factory.mktemp("ctc")
    vocabulary = {
        token: n for n, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ'"])
    }
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    tokenizer = Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))
    Wav2Vec2Processor(Wav2Vec2FeatureExtractor(), tokenizer).save_pretrained(folder)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
             "conv_dim": (8, 8), "conv_stride": (5, 64), "conv_kernel": (10, 64), "num_feat_extract_layers": 2,
             "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "vocab_size": len(vocabulary),
             "pad_token_id": 0}  # fmt: skip
    Wav2Vec2ForCTC(Wav2Vec2Config(**small)).save_pretrained(folder)
    return folder


def test_a_ctc_model_of_transformers_aligns_and_transcribes(small_ctc):
    aligner = open_aligner(f"ctc:{small_ctc}")
    wave = np.random.default_rng(0).standard_normal(2 * RATE_HZ).astype(np.float32) * 0.1
    found = aligner.words(wave, RATE_HZ, "A red bus, isn't it? 42")
    assert [word for word, _, _ in found] == ["A", "red", "bus,", "isn't", "it?", "42"]
    starts = [start for _, start, _ in found]
    assert starts == sorted(starts) and starts[0] >= 0 and found[-1][2] <= 2.0 + 1e-6
    heard = aligner.words(wave, RATE_HZ)
    assert all(0 <= a < b <= 2.0 + 1e-6 for _, a, b in heard)
    with pytest.raises(ConfigError, match="none of its letters"):
        aligner.words(wave, RATE_HZ, "42 …")
    for name, why in (
        ("ctc:/no/such", "cannot be loaded"),
        ("ctc:", "expected sphinx"),
        ("whisper:/no", "cannot be loaded"),
    ):
        with pytest.raises(ConfigError, match=why):
            open_aligner(name)


def test_letters_that_sound_are_where_the_scores_say(small_ctc):
    aligner = CtcAligner(str(small_ctc))
    path = [(aligner._ids["h"], 0, 2), (aligner._ids["i"], 3, 4), (aligner._between, 4, 5), (aligner._ids["x"], 6, 9)]
    assert aligner._grouped(path, 0.1) == [
        ("hi", 0.0, pytest.approx(0.4)),
        ("x", pytest.approx(0.6), pytest.approx(0.9)),
    ]


def stereo(folder, name, seconds=3.0, channels=2):
    rng = np.random.default_rng(len(name))
    soundfile.write(folder / name, 0.1 * rng.standard_normal((int(16_000 * seconds), channels)), 16_000)
    return name


def words(*spans):
    return tuple(WordRecord(text=f"w{n}", start_sec=a, end_sec=b, speaker=who) for n, (who, a, b) in enumerate(spans))


def run(folder, records, backend="given", diarise=None):
    write_records(folder / "in", records, root=folder)
    tally = align(folder / "in", folder / "out", backend=backend, diarise=diarise, how=How())
    problems = folder / "out" / "manifest.err"
    return tally, problems.read_text() if problems.exists() else ""


def call_of(folder, name):
    wave, rate_hz = soundfile.read(folder / "out" / f"{name}.wav")
    assert rate_hz == RATE_HZ
    return wave, json.loads((folder / "out" / f"{name}.json").read_text())


def test_given_words_pass_through_and_what_is_mono_is_split(tmp_path):
    known = words(("user", 0.2, 0.6), ("main", 1.0, 1.5), ("user", 2.0, 2.4))
    base = {"source": "s", "licence": "CC0-1.0"}
    records = [
        Record(id="two", audio=stereo(tmp_path, "2.wav"), words=known, **base),
        Record(id="one", audio=stereo(tmp_path, "1.wav", channels=1), words=known, **base),
        Record(id="bare", audio=stereo(tmp_path, "b.wav", channels=1), **base),
        Record(id="mute", audio=stereo(tmp_path, "m.wav"), **base),
        Record(id="many", audio=stereo(tmp_path, "n.wav", channels=3), words=known, **base),
        Record(id="text", turns=(SaidRecord(speaker="user", text="hi"),), **base),
        Record(id="gone", audio="gone.wav", **base),
    ]
    tally, problems = run(tmp_path, records)
    assert (tally.entries, tally.failed) == (2, 5) and not [
        f for f in check(tmp_path / "out").faults if ".err" not in f
    ]
    for name in ("two", "one"):
        wave, told = call_of(tmp_path, name)
        expected = [[w.text, [w.start_sec, w.end_sec], f"SPEAKER_{w.speaker.upper()}"] for w in known]
        assert told["alignments"] == expected and wave.shape == (3 * RATE_HZ, 2)
    assert np.abs(wave[int(1.1 * RATE_HZ) : int(1.4 * RATE_HZ), 1]).max() == 0  # the model speaks: no user there
    assert np.abs(wave[int(1.1 * RATE_HZ) : int(1.4 * RATE_HZ), 0]).max() > 0.1
    for why in ("bare: b.wav: mono, and nothing tells who speaks", "mute: mute: no words", "many: n.wav: 3 channels",
                "text: text: no recording", "gone: gone.wav: no such file"):  # fmt: skip
        assert why in problems


@needs_speech
def test_what_is_known_to_be_said_is_found_in_a_stereo_recording_and_in_turns_recorded_one_by_one(tmp_path):
    pytest.importorskip("pocketsphinx")
    turns, truth = [], []
    for n, text in enumerate(("what do you see there", "i see a red circle on the left")):
        said = synthesise(text, Voice(engine="flite", name=("rms", "slt")[n]))
        soundfile.write(tmp_path / f"t{n}.wav", said.wave, RATE_HZ)
        turns.append(SaidRecord(speaker=("user", "main")[n], text=text.capitalize() + ".", audio=f"t{n}.wav"))
        truth.append(said)
    wave = np.zeros((5 * RATE_HZ, 2))
    for channel, start, said in ((1, 0.5, truth[0]), (0, 2.4, truth[1])):
        wave[int(start * RATE_HZ) :, channel][: len(said.wave)] = said.wave
    soundfile.write(tmp_path / "whole.wav", wave, RATE_HZ)
    told = tuple(turn.model_copy(update={"audio": None}) for turn in turns)
    base = {"source": "s", "licence": "CC0-1.0"}
    records = [
        Record(id="turns", turns=tuple(turns), **base),
        Record(id="whole", audio="whole.wav", turns=told, **base),
    ]
    tally, problems = run(tmp_path, records, backend="sphinx")
    assert tally.entries == 2, problems
    first_sec = 0.2
    starts = {"whole": (0.5, 2.4), "turns": (first_sec, first_sec + truth[0].duration_sec + 0.2)}
    for name, (user_sec, main_sec) in starts.items():
        found = call_of(tmp_path, name)[1]["alignments"]
        assert [word for word, *_ in found][:5] == ["What", "do", "you", "see", "there."]
        expected = [user_sec + a for _, a, _ in truth[0].words] + [main_sec + a for _, a, _ in truth[1].words]
        errors = [abs(one[1][0] - true) for one, true in zip(found, expected, strict=True)]
        assert np.mean(errors) < 0.05, (name, errors)


def test_diarisation_says_what_it_needs(tmp_path):
    record = Record(id="a", source="s", licence="x", audio=stereo(tmp_path, "1.wav", channels=1))
    with pytest.raises(ConfigError, match="expected pyannote:NAME"):
        run(tmp_path, [record], diarise="other")
    try:
        import pyannote.audio  # noqa: F401
    except ModuleNotFoundError:
        with pytest.raises(ConfigError, match="pip install pyannote.audio"):
            run(tmp_path, [record], diarise="pyannote:x")
    assert not (tmp_path / "out").exists()
