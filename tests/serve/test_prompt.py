"""What a call is given beforehand and on its way: prompts, and text that it is told."""

import sys

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from mmspeech.audio.waveform import write_wav
from mmspeech.cli import app
from mmspeech.serve.engine import CallBatch
from mmspeech.serve.prompt import PAUSE_FRAMES, Prompt, PromptError, PromptFrames, silence_codes, tone_codes
from mmspeech.serve.script import Script
from mmspeech.serve.session import Session, Transcript
from mmspeech.tokens.streams import StreamLayout

FRAME = 1920
DELAYS = [(0, 0, 1, 1, 0, 1, 1), (0,) * 7, (0, 2, 2, 3, 1, 2, 2), (2, 0, 1, 1, 0, 1, 1)]


def speech(frames: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(frames, FRAME, generator=torch.Generator().manual_seed(seed))


def voice(seconds: float = 1.0) -> torch.Tensor:
    times = torch.arange(round(seconds * 24_000)) / 24_000
    return 0.3 * torch.sin(2 * torch.pi * 180 * times) * torch.sin(2 * torch.pi * 3 * times).abs()


def columns(calls: CallBatch, pcm: torch.Tensor, tells: dict | None = None) -> list[tuple[int, int, list[int], bool]]:
    """(frame, text id, codes, told) of every step of a batch of one that has a frame. tells: step -> arguments."""
    rows = []
    for index, frame in enumerate(pcm):
        if tells and index in tells:
            calls.tell(**tells[index])
        result = calls.step(frame[None])
        if result.out is not None:
            out = result.out
            rows.append((result.frames[0], int(out.text_ids[0]), out.codes[0].tolist(), result.told[0]))
    return rows


def test_a_prompt_is_voice_then_role_with_pauses_over_a_tone(small_bundle):
    frames = Prompt("the circle is red", voice()).frames(small_bundle)
    silence, tone = silence_codes(small_bundle.codec), tone_codes(small_bundle.codec)
    words = small_bundle.tokenizer.encode("<system> the circle is red <system>")
    voiced = 13  # one second, its last frame padded
    pause = [3] * PAUSE_FRAMES
    assert frames.text_ids == [3] * voiced + pause + words + pause
    assert len(frames.own) == len(frames.user) == len(frames.text_ids)
    assert frames.own[voiced:] == [silence] * (len(frames.own) - voiced)
    assert all(codes == tone for codes in frames.user) and tone != silence
    only_role = Prompt("the circle is red").frames(small_bundle)
    assert only_role.text_ids == words + pause and only_role.own == [silence] * len(words + pause)
    only_voice = Prompt(voice=voice()).frames(small_bundle)
    assert only_voice.own == frames.own[: voiced + PAUSE_FRAMES]


def test_the_voice_is_set_to_its_loudness():
    pyloudnorm = pytest.importorskip("pyloudnorm")
    for gain in (0.05, 1.0, 3.0):
        level = pyloudnorm.Meter(24_000).integrated_loudness(Prompt(voice=gain * voice()).voice.double().numpy())
        assert level == pytest.approx(-24, abs=0.1)
    clicks = torch.zeros(24_000)
    clicks[::6000] = 0.5
    assert float(Prompt(voice=clicks).voice.abs().max()) <= 1


def test_the_steps_of_a_prompt_are_what_it_says(small_bundle):
    """In the frames that the generator gives, after their delays; and the call begins behind them."""
    prompt = Prompt("the circle is red", voice()).frames(small_bundle)
    calls, lag = CallBatch(small_bundle), max(small_bundle.config.lm.delays)
    calls.begin(0, prompt=prompt, seed=3)
    rows = columns(calls, speech(len(prompt.text_ids) + lag + 5))
    length = len(prompt.text_ids)
    assert [text_id for _, text_id, _, _ in rows[:length]] == prompt.text_ids
    assert [codes for _, _, codes, _ in rows[:length]] == prompt.own
    assert [frame for frame, *_ in rows] == list(range(-length, 5))
    assert not any(told for *_, told in rows)


def test_a_call_with_a_prompt_has_its_own_clock(small_bundle):
    red = Image.new("RGB", (40, 30), "red")
    session = Session(small_bundle, seed=1, picture=red, prompt=Prompt("the circle is red", voice()))
    plain = Session(small_bundle, seed=1, picture=red)
    steps, others = ([call.step(frame) for frame in speech(12)] for call in (session, plain))
    assert [step.frame for step in steps] == [step.frame for step in others]
    assert [step.start_sec for step in steps] == [step.start_sec for step in others]
    assert session.frames.shown == 1 and all(step.gate > 0 for step in steps[1:])
    assert not steps[0].pcm.any() and not torch.equal(steps[-1].pcm, others[-1].pcm)


def test_the_same_prompt_in_company(small_bundle):
    """A place that begins with a prompt disturbs nobody, and gets the call that it would get alone."""
    prompt = Prompt("hello").frames(small_bundle)
    length, pcm = len(prompt.text_ids), speech(60)
    alone, others = CallBatch(small_bundle, seed=[7]), CallBatch(small_bundle, batch_size=3, seed=[5, 6, 7])
    together = CallBatch(small_bundle, batch_size=3, seed=[5, 6, 7])
    quiet = torch.zeros(FRAME)
    for index in range(length + 12):
        if index == 4:
            together.begin(1, seed=9, prompt=prompt)
        mine = quiet if 4 <= index < 4 + length else pcm[index]
        batch = together.step(torch.stack([pcm[index], mine, pcm[index + 9]]))
        other = others.step(torch.stack([pcm[index], pcm[index], pcm[index + 9]]))
        for row in (0, 2):
            assert batch.frames[row] == other.frames[row] and batch.start_sec[row] == other.start_sec[row]
            assert torch.allclose(batch.wave[row], other.wave[row], atol=1e-5)
        if 4 <= index < 4 + length:
            assert not batch.wave[1].any() and batch.frames[1] < 0 and batch.start_sec[1] < 0.08
        if index == 4:
            alone.begin(0, seed=9, prompt=prompt)
            while alone.is_prompting(0):
                alone.think(torch.full((1, 3), -1))
        if index >= 4 + length:
            single = alone.step(mine[None])
            assert torch.equal(single.out.codes[0], batch.out.codes[1]) and single.frames[0] == batch.frames[1]
            assert torch.allclose(single.wave[0], batch.wave[1], atol=1e-5)


def test_prompts_that_cannot_be(small_bundle):
    for wrong, mention in [
        ({}, "a role, a voice"),
        ({"role": "  "}, "a role, a voice"),
        ({"voice": torch.zeros(24_000)}, "nothing is heard"),
        ({"voice": voice(0.2)}, "0.4 s at least"),
        ({"voice": torch.full((24_000,), torch.nan)}, "finite"),
        ({"voice": torch.rand(2, 24_000)}, r"got \[2, 24000\]"),
    ]:
        with pytest.raises(PromptError, match=mention):
            Prompt(**wrong)
    with pytest.raises(PromptError, match="no letter of it"):
        Prompt("東京").frames(small_bundle)
    with pytest.raises(PromptError, match="the model remembers 50; shorten"):
        Prompt(voice=voice(5.0)).frames(small_bundle)


def test_without_pyloudnorm_a_voice_is_refused_and_a_role_is_not(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyloudnorm", None)
    with pytest.raises(PromptError, match="pip install"):
        Prompt(voice=voice())
    Prompt("hello")


# Text on the way


def test_told_text_takes_consecutive_frames_and_is_no_word(small_bundle):
    session, lag = Session(small_bundle, seed=2), max(small_bundle.config.lm.delays)
    pieces = [small_bundle.tokenizer.piece(token) for token in small_bundle.tokenizer.encode("there are two squares")]
    transcript, told, spoken = Transcript(), {}, {}
    for index, frame in enumerate(speech(30)):
        if index == 6:
            assert session.tell("there are two squares") == len(pieces)
        step = session.step(frame)
        if step.told is not None:
            told[step.frame] = step.told
            assert step.text is None
        if step.text is not None:
            spoken[step.frame] = step.text
            transcript.add(step.text, start_sec=step.start_sec, gate=step.gate)
    assert list(told.items()) == list(enumerate(pieces, start=6))
    assert not set(spoken) & set(told) and 6 + lag < 30
    assert transcript.text == "".join(spoken[frame] for frame in sorted(spoken)).strip().replace("  ", " ")


@pytest.mark.parametrize("silent", [False, True])
def test_the_voice_goes_on_unless_it_is_to_be_still(small_bundle, silent):
    tells = {5: {"text": "the circle is red", "silent": silent}}
    ids, silence = small_bundle.tokenizer.encode("the circle is red"), silence_codes(small_bundle.codec)
    rows = columns(CallBatch(small_bundle, seed=2), speech(20), tells)
    assert [text for _, text, _, told in rows if told] == ids
    during = [codes for _, _, codes, told in rows if told]
    after = [codes for frame, _, codes, told in rows if frame >= 5 + len(ids)]
    assert (during == [silence] * len(ids)) == silent
    assert any(codes != silence for codes in after)
    free = columns(CallBatch(small_bundle, seed=2), speech(20))
    assert rows[:4] == free[:4] and rows != free


def test_what_is_told_follows_what_is_being_told(small_bundle):
    tokenizer = small_bundle.tokenizer
    calls = CallBatch(small_bundle, seed=2)
    calls.begin(0, seed=2, prompt=Prompt("hello").frames(small_bundle))
    calls.tell("the circle", silent=True)
    tells = {3: {"text": "is red"}, 4: {"text": "two blue squares", "max_pieces": 2}}
    rows = columns(calls, speech(45), tells)
    told = [(frame, text_id) for frame, text_id, _, told in rows if told]
    ids = tokenizer.encode("the circle") + tokenizer.encode("is red") + tokenizer.encode("two blue squares")[:2]
    assert told == list(enumerate(ids))  # the prompt ends, and they begin


def test_text_without_letters_is_not_told(small_bundle):
    calls = CallBatch(small_bundle, seed=2)
    assert calls.tell("東京") == calls.tell("") == 0
    assert columns(calls, speech(8)) == columns(CallBatch(small_bundle, seed=2), speech(8))


def test_what_one_call_is_told_others_do_not_feel(small_bundle):
    pcm = speech(16)
    together, alone = CallBatch(small_bundle, batch_size=2, seed=[4, 5]), CallBatch(small_bundle, seed=[5])
    told = []
    for index in range(16):
        if index == 3:
            together.tell("the circle is red", 0, silent=True)
        batch, single = together.step(pcm[index].expand(2, -1)), alone.step(pcm[index][None])
        told += [batch.told[0]]
        assert not batch.told[1]
        if batch.out is not None:
            assert torch.equal(batch.out.text_ids[1:], single.out.text_ids)
            assert torch.equal(batch.out.codes[1:], single.out.codes)
    assert sum(told) == len(small_bundle.tokenizer.encode("the circle is red"))


def test_what_was_told_ends_with_its_call(small_bundle):
    calls = CallBatch(small_bundle, seed=2)
    calls.tell("the circle is red", silent=True)
    calls.step(torch.zeros(1, FRAME))
    calls.begin(0, seed=2)
    assert columns(calls, speech(8)) == columns(CallBatch(small_bundle, seed=2), speech(8))


@pytest.mark.parametrize("delays", DELAYS)
def test_scripts_know_all_delays(delays):
    """A prompt and then a silent tell, laid in steps: a code of frame f comes in step f + delay."""
    layout = StreamLayout(3, delays, text_card=64, audio_card=32)
    prompt = PromptFrames([3, 20, 21, 3], [[k + 3 * f for k in range(3)] for f in range(4)], [[9, 9, 9]] * 4)
    script = Script(layout, prompt)
    script.tell([30, 31], own=[7, 7, 7])
    cues, told = [], []
    for _ in range(14):
        cues.append(script.next())
        told.append(script.told)
    assert [cue is not None and cue.user is not None for cue in cues] == [True] * 4 + [False] * 10
    texts = {step: cue.text_id for step, cue in enumerate(cues) if cue is not None and cue.text_id >= 0}
    assert texts == {frame + delays[0]: text for frame, text in enumerate([3, 20, 21, 3, 30, 31])}
    for k in range(3):
        codes = {step: cue.own[k] for step, cue in enumerate(cues) if cue is not None and cue.own[k] >= 0}
        assert codes == {f + delays[1 + k]: code for f, code in enumerate([k, k + 3, k + 6, k + 9, 7, 7])}
    given = [step - max(delays) for step, was in enumerate(told) if was]
    assert given == [4, 5]


def test_talk_takes_a_voice_and_a_role(small_checkpoint, tmp_path):
    write_wav(tmp_path / "ask.wav", speech(10).flatten())
    write_wav(tmp_path / "voice.wav", voice())
    command = ["talk", "--model", str(small_checkpoint), "--max-sec", "0.5", "--role", "the circle is red"]
    command += ["--audio", str(tmp_path / "ask.wav"), "--out", str(tmp_path / "reply.wav")]
    done = CliRunner().invoke(app, [*command, "--voice", str(tmp_path / "voice.wav")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "reply.wav").stat().st_size > FRAME
    done = CliRunner().invoke(app, [*command, "--voice", str(tmp_path / "no.wav")])
    assert done.exit_code == 2 and "no.wav: no such audio file" in done.output
