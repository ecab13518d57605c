"""Dialogues spoken: voices of this machine, a command, an endpoint; manners; calls that say when each word was."""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import soundfile
from PIL import Image
from voices import needs_speech

from data_prep.check import check
from data_prep.conversation import Manners, lay_out
from data_prep.records import Record, SaidRecord, SeenRecord, write_records
from data_prep.speak import SpeakSettings, speak
from data_prep.spoken_form import spoken_words
from data_prep.steps import How
from data_prep.tts import Utterance, Voice, synthesise
from data_prep.voices import HeardVoices, grouped, open_voices
from mmspeech.config import ConfigError

RATE_HZ = 24_000
WORD_SEC = 0.3


class Tones:
    """A pool of voices that hum 0.3 s for each word."""

    def draw(self, rng, language):
        return f"caller {rng.integers(100)}"

    def model(self, language):
        return "model"

    def say(self, text, voice, language):
        words = [(word, n * WORD_SEC, (n + 1) * WORD_SEC) for n, word in enumerate(text.split())]
        return Utterance(np.full(int(len(words) * WORD_SEC * RATE_HZ), 0.3, np.float32), words, [])


def turns(*texts, **extra):
    return tuple(SaidRecord(speaker="main" if n % 2 else "user", text=text, **extra) for n, text in enumerate(texts))


LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
CAST = {"user": "a", "main": "b"}


def laid(*texts, seed=0, **manners):
    return lay_out(
        turns(*texts), Tones(), CAST, language="en", manners=Manners(**manners), rng=np.random.default_rng(seed)
    )


def test_turns_follow_each_other_as_told():
    call = laid("a b", "c d e", "f", gap_spread_sec=0.0, gap_mean_sec=0.4, pause_share=0.0)
    assert [(one["speaker"], one["text"]) for one in call.said] == [("user", "a b"), ("main", "c d e"), ("user", "f")]
    for before, after in zip(call.said, call.said[1:], strict=False):
        assert after["start_sec"] - before["end_sec"] == pytest.approx(0.4, abs=2e-3) and not before["interrupted"]
    assert call.end_sec > call.said[-1]["end_sec"] + 0.4
    words = call.tracks["main"].words
    assert [word for word, _, _ in words] == ["c", "d", "e"] and words[0][1] == pytest.approx(
        call.said[1]["start_sec"], abs=1e-3
    )


def test_gaps_are_those_of_the_manners_and_some_overlap():
    gaps = []
    for seed in range(150):
        call = laid("a b c d", "e f g h", "i j k l", seed=seed, barge_in_share=0.0)
        gaps += [
            after["start_sec"] - before["end_sec"] for before, after in zip(call.said, call.said[1:], strict=False)
        ]
    assert np.mean(gaps) == pytest.approx(0.25, abs=0.05) and np.std(gaps) == pytest.approx(0.25, abs=0.05)
    assert min(gaps) < -0.1 and min(gaps) >= -0.6 - 1e-3


def test_nobody_speaks_over_themselves_whatever_the_manners():
    wild = {"gap_mean_sec": -0.5, "gap_spread_sec": 0.5, "barge_in_share": 0.6, "backchannel_share": 1.0}
    for seed in range(200):
        call = laid("a", LONG, "b", "c", LONG, LONG, "d, e", seed=seed, **wild)
        for track in call.tracks.values():
            times = [(start, end) for _, start, end in track.words]
            assert times == sorted(times)
            assert all(after[0] >= before[1] - 1e-6 for before, after in zip(times, times[1:], strict=False))
        assert len(call.said) == 7


def test_the_model_stops_when_interrupted_and_its_words_end_there():
    call = laid("a", LONG, "stop please", barge_in_share=1.0, backchannel_share=0.0)
    answer, barge = call.said[1:]
    assert answer["interrupted"] and answer["end_sec"] == pytest.approx(barge["start_sec"] + 0.3, abs=2e-3)
    words = call.tracks["main"].words
    assert 1 <= len(words) < 14 and words[-1][1] < answer["end_sec"]
    assert not laid("stop please", LONG, barge_in_share=1.0).said[1]["interrupted"]  # nothing follows


def test_listeners_say_that_they_listen():
    heard = [laid(LONG, "ok", seed=seed, backchannel_share=1.0, pause_share=0.0) for seed in range(20)]
    for call in heard:
        extra = [word for word in call.tracks["main"].words if word[1] < call.said[0]["end_sec"] and word[0] != "ok"]
        assert extra and len(call.said) == 2
        assert call.said[0]["start_sec"] + 1 < extra[0][1] < call.said[0]["end_sec"] - 0.3
    assert not laid(LONG, "ok", backchannel_share=0.0).tracks["main"].words[1:]


def test_turns_of_a_clip_wait_for_what_happens():
    record = (*turns("what now", "it fell"), SaidRecord(speaker="user", text="and now", start_sec=9.0))
    call = lay_out(record, Tones(), CAST, language="en", manners=Manners(), rng=np.random.default_rng(0))
    assert call.said[2]["start_sec"] == 9.0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It's 23, isn't it?", [("It's", "It's"), ("23,", "twenty three"), ("isn't", "isn't"), ("it?", "it")]),
        ("the 2nd café — ok", [("the", "the"), ("2nd", "second"), ("café —", "cafe"), ("ok", "ok")]),
        ("1,234.5 at 10:30", [("1,234.5", "one thousand two hundred and thirty four point five"), ("at", "at"),
                              ("10:30", "ten thirty")]),
        ("v1.2.3 is 100%", [("v1.2.3", "v one two three"), ("is", "is"), ("100%", "one hundred percent")]),
    ],
)  # fmt: skip
def test_written_words_are_said(text, words):
    assert [(one, " ".join(said)) for one, said in spoken_words(text, ascii_only=True)] == words


def test_other_languages_and_nothing_to_say():
    assert spoken_words("21 Äpfel", "de") == [("21", ["einundzwanzig"]), ("Äpfel", ["Äpfel"])]
    for nothing in ("", "…", "— ?"):
        with pytest.raises(ConfigError, match="nothing to say"):
            spoken_words(nothing)
    with pytest.raises(ConfigError, match="no words for the number"):
        spoken_words("7", "xx")
    with pytest.raises(ConfigError, match="words were timed"):
        grouped([("a", ["a"])], [])


@pytest.fixture
def data(tmp_path):
    Image.new("RGB", (40, 30), "red").save(tmp_path / "p.png")
    said = [
        ("What is that?", "That is a red bus, number 42, and it stands at the stop."),
        ("Who waits there?", "Two people wait, and a dog; all of them look at the bus."),
        ("Danke, and goodbye!", "You are welcome."),
    ]
    made = [
        Record(
            id=f"s/{n}",
            source="s",
            licence="CC-BY-4.0",
            visuals=(SeenRecord(path="p.png"),),
            turns=turns(*[text for pair in said[: n + 1] for text in pair]),
            meta={"user_speaker": "anna"} if n else {},
        )
        for n in range(3)
    ]
    write_records(tmp_path / "in", made, root=tmp_path)
    return tmp_path / "in"


def calls_of(folder):
    entries = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    return [(entry, json.loads((folder / entry["path"]).with_suffix(".json").read_text())) for entry in entries]


@needs_speech
def test_calls_are_whole_and_can_be_checked(data, tmp_path):
    tally = speak(data, tmp_path / "out", SpeakSettings(), how=How())
    assert (tally.entries, tally.failed) == (3, 0) and not check(tmp_path / "out").faults
    calls = calls_of(tmp_path / "out")
    for entry, told in calls:
        wave, rate_hz = soundfile.read(tmp_path / "out" / entry["path"])
        assert (
            rate_hz == RATE_HZ
            and wave.shape[1] == 2
            and len(wave) == pytest.approx(entry["duration"] * RATE_HZ, abs=24)
        )
        assert entry["licence"] == told["licence"] == "CC-BY-4.0" and told["visuals"][0]["path"].startswith("media/")
        main = [word for word, _, who in told["alignments"] if who == "SPEAKER_MAIN"]
        assert main[:5] == ["That", "is", "a", "red", "bus,"] and "42," in main
        for word, (start, end), who in told["alignments"]:
            piece = wave[int(start * RATE_HZ) : int(end * RATE_HZ), int(who == "SPEAKER_USER")]
            assert len(piece) and np.abs(piece).max() > 0.003, word
    voices = [told["voices"] for _, told in calls]
    assert voices[1] == voices[2] != voices[0] and voices[0]["main"] == voices[1]["main"]  # anna keeps her voice
    assert len(list((tmp_path / "out" / "media").rglob("*.png"))) == 1
    again = speak(data, tmp_path / "again", SpeakSettings(), how=How(jobs=2))
    assert again.complete
    for entry, _ in calls:
        assert (tmp_path / "out" / entry["path"]).read_bytes() == (tmp_path / "again" / entry["path"]).read_bytes()


@needs_speech
def test_words_land_within_a_frame_of_the_synthesisers(data, tmp_path):
    """The words of a call against those of the voice alone, laid at the turn's beginning."""
    manners = Manners(pause_share=0.0, barge_in_share=0.0, backchannel_share=0.0)
    speak(data, tmp_path / "out", SpeakSettings(manners=manners, clean=True), how=How())
    errors = []
    for _, told in calls_of(tmp_path / "out"):
        for turn in told["said"]:
            voice = Voice.model_validate_json(told["voices"][turn["speaker"]])
            pairs = spoken_words(turn["text"], ascii_only=True)
            truth = grouped(pairs, synthesise(" ".join(w for _, said in pairs for w in said), voice).words)
            who = {"main": "SPEAKER_MAIN", "user": "SPEAKER_USER"}[turn["speaker"]]
            own = [
                one
                for one in told["alignments"]
                if one[2] == who and turn["start_sec"] - 0.01 <= one[1][0] < turn["end_sec"]
            ]
            assert [word for word, _, _ in own] == [word for word, _, _ in truth]
            errors += [
                abs(one[1][0] - turn["start_sec"] - start) for one, (_, start, _) in zip(own, truth, strict=True)
            ]
    assert max(errors) < 0.08 / 4


@needs_speech
def test_what_cannot_be_spoken_is_named_and_alone(data, tmp_path):
    more = [
        {"id": "s/8", "source": "s", "licence": "x"},
        {"id": "s/9", "source": "s", "licence": "x", "turns": [{"speaker": "user", "text": "…"}]},
        {"id": "s/10", "source": "s", "licence": "x", "visuals": [{"path": "../p.png"}],
         "turns": [{"speaker": "user", "text": "hi"}]},
        {"id": "s/11", "source": "s", "licence": "x", "visuals": [{"path": "gone.png"}],
         "turns": [{"speaker": "user", "text": "hi"}]},
    ]  # fmt: skip
    with (data / "manifest.jsonl").open("a") as opened:
        opened.writelines(json.dumps(one) + "\n" for one in more)
    tally = speak(data, tmp_path / "out", SpeakSettings(), how=How())
    assert (tally.entries, tally.failed) == (3, 4)
    told = (tmp_path / "out" / "manifest.err").read_text()
    for reason in (
        "s/8: s/8: no turns",
        "s/9: nothing to say",
        "s/10: path '../p.png' leads out of",
        "gone.png: no such",
    ):
        assert reason in told


HUMMER = """
import sys, numpy, soundfile
text, out = sys.argv[1:3]
wave = numpy.concatenate([numpy.r_[0.2 * numpy.ones(2400), numpy.zeros(800)] for _ in text.split()])
soundfile.write(out, wave, 8000)
"""


def even(wave, rate_hz, text):
    words = text.split()
    step = len(wave) / rate_hz / len(words)
    return [(word, n * step, (n + 1) * step) for n, word in enumerate(words)]


def test_any_command_can_speak(tmp_path):
    (tmp_path / "hum.py").write_text(HUMMER)
    command = f"command:{sys.executable} {tmp_path / 'hum.py'} {{text}} {{out}}"
    voices = open_voices(command, names=("x", "y"), model_voice="x", aligner=even)
    said = voices.say("it's 42; rm -rf /", "x", "en")
    assert [word for word, _, _ in said.words] == ["it's", "42;", "rm", "-rf /"] and len(
        said.wave
    ) == 5 * RATE_HZ * 2 // 5
    assert voices.draw(np.random.default_rng(0), "en") == "y" and voices.model("en") == "x"
    for bad, told in (("command:echo {text}", "expected {text} and {out}"), ("flute", "tells no times of words")):
        with pytest.raises(ConfigError, match=told):
            open_voices(bad, aligner=even if bad != "flute" else None)
    with pytest.raises(ConfigError, match="no sound was written"):
        open_voices("command:true {text} {out}", aligner=even).say("hello", "", "en")
    with pytest.raises(ConfigError, match="expected flite"):
        open_voices("flute", aligner=even)


def test_an_endpoint_can_speak():
    asked = []

    class Speech(BaseHTTPRequestHandler):
        def do_POST(self):
            import io

            asked.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            held = io.BytesIO()
            soundfile.write(held, 0.1 * np.ones(16_000), 16_000, format="WAV")
            self.send_response(200)
            self.send_header("Content-Length", str(len(held.getvalue())))
            self.end_headers()
            self.wfile.write(held.getvalue())

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Speech)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    voices = open_voices(f"http://127.0.0.1:{server.server_port}/v1#tts", names=("nova",), aligner=even)
    said = voices.say("hello 2 you", "nova", "en")
    server.shutdown()
    assert asked == [
        ("/v1/audio/speech", {"model": "tts", "input": "hello two you", "voice": "nova", "response_format": "wav"})
    ]
    assert (
        len(said.wave) == RATE_HZ and said.words[1][0] == "2" and np.abs(said.wave).max() == pytest.approx(0.5, abs=0.1)
    )


def test_a_transformers_voice(tmp_path):
    """An untrained VITS of two speakers, as a directory."""
    from transformers import VitsConfig, VitsModel, VitsTokenizer

    vocab = {letter: n for n, letter in enumerate("_ abcdefghijklmnopqrstuvwxyz'")}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    VitsTokenizer(str(tmp_path / "vocab.json"), pad_token="_", phonemize=False).save_pretrained(tmp_path / "vits")
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 16, "flow_size": 16,
             "prior_encoder_num_flows": 1, "posterior_encoder_num_wavenet_layers": 1,
             "prior_encoder_num_wavenet_layers": 1,
             "spectrogram_bins": 17, "upsample_initial_channel": 16, "duration_predictor_filter_channels": 16,
             "num_speakers": 2, "speaker_embedding_size": 4, "vocab_size": len(vocab), "depth_separable_num_layers": 1,
             "duration_predictor_num_flows": 2}  # fmt: skip
    VitsModel(VitsConfig(**small)).save_pretrained(tmp_path / "vits")
    voices = open_voices(f"transformers:{tmp_path / 'vits'}", aligner=even)
    assert isinstance(voices, HeardVoices) and voices.model("en") == "0"
    said = voices.say("hello there", "1", "en")
    assert len(said.wave) > 100 and [word for word, _, _ in said.words] == ["hello", "there"]
    with pytest.raises(ConfigError, match="cannot be loaded"):
        open_voices("transformers:/no/such", aligner=even)


@needs_speech
def test_held_out_voices_stay_so():
    with pytest.raises(ConfigError, match="held out"):
        open_voices("flite", names=("kal",))
    pool = open_voices("flite")
    drawn = {json.loads(pool.draw(np.random.default_rng(n), "en"))["name"] for n in range(30)}
    assert drawn == {"slt", "rms", "awb"}
    german = json.loads(open_voices("flite+espeak").draw(np.random.default_rng(0), "de"))
    assert german["engine"] == "espeak" and german["name"].startswith("de")
    assert open_voices("espeak").say("Größe 21", json.dumps(german), "de").words[1][0] == "21"
