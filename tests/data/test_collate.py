"""Collate: text, codes, weights and pictures stay on one frame grid; variants hold what they promise."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from mmspeech.data.collate import Augmentation, Layout, PictureFormat, crop, joined, speaking_frames, stack
from mmspeech.tokens.text import BOS_ID, EPAD_ID, PAD_ID, train_tokenizer
from mmspeech.types import Sample, Visual, Word
from mmspeech.vision.memory import onset_of

FRAME_SEC = 0.08
SILENCE = (7, 9)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    return train_tokenizer(["what is there", "a red star", "yes no"] * 30, 40, file)


def picture(colour: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(file, "PNG")
    return file.getvalue()


def make_sample(num_frames: int = 100, name: str = "call") -> Sample:
    """The user asks from frame 10 to 25, the model answers from frame 40 to 60; a picture comes at frame 5."""
    codes = torch.arange(4 * num_frames).view(4, num_frames) % 16
    words = [
        Word("what", 10 * FRAME_SEC, 15 * FRAME_SEC, "user"),
        Word("is", 20 * FRAME_SEC, 25 * FRAME_SEC, "user"),
        Word("red", 40 * FRAME_SEC, 50 * FRAME_SEC),
        Word("star", 52 * FRAME_SEC, 60 * FRAME_SEC),
    ]
    words = [Word(w.text, w.start_sec + 0.01, w.end_sec - 0.01, w.speaker) for w in words]
    return Sample(name, codes.to(torch.int16), words, [Visual(picture(), 5 * FRAME_SEC - 0.01)])


def make_layout(tokenizer, **changes) -> Layout:
    options = {"silence_codes": SILENCE, "codebook_size": 16, "silent_share": 0.0} | changes
    return Layout(tokenizer=tokenizer, **options)


def lay(layout, sample, variant="dialogue", keep_visuals=True, seed=0, max_frames=400):
    rng = np.random.default_rng(seed)
    return layout(sample, variant=variant, max_frames=max_frames, keep_visuals=keep_visuals, rng=rng)


def test_dialogue_puts_only_the_models_words_on_the_text_stream(tokenizer):
    sample = make_sample()
    row = lay(make_layout(tokenizer), sample)
    red = tokenizer.encode("red")
    assert row.codes[0, 40 : 40 + len(red)].tolist() == red
    assert row.codes[0, 39] == EPAD_ID and (row.codes[0, :39] == PAD_ID).all()
    assert torch.equal(row.codes[1:], sample.codes.long())
    assert row.visuals == sample.visuals
    assert (row.text_weight == 1).all()


def test_audio_is_learnt_where_the_model_speaks_and_in_a_share_of_silence(tokenizer):
    sample = make_sample()
    weight = lay(make_layout(tokenizer), sample).audio_weight
    assert (weight[39:63] == 1).all() and weight.sum() == 24
    assert lay(make_layout(tokenizer, silent_share=1.0), sample).audio_weight.sum() == 100
    some = lay(make_layout(tokenizer, silent_share=0.3), sample).audio_weight.sum()
    assert 24 + 10 < some < 24 + 40


def test_speechless_has_no_audio_and_learns_only_the_answer(tokenizer):
    row = lay(make_layout(tokenizer), make_sample(), "speechless")
    assert (row.codes[1:] == -1).all() and row.audio_weight.sum() == 0
    what = tokenizer.encode("what")
    assert row.codes[0, 10 : 10 + len(what)].tolist() == what
    assert row.text_weight[:39].sum() == 0 and (row.text_weight[39:63] == 1).all() and row.text_weight[63:].sum() == 0
    assert row.visuals


def test_transcribe_writes_the_users_words_late_after_a_mark(tokenizer):
    sample = make_sample()
    row = lay(make_layout(tokenizer, transcribe_delay_frames=3), sample, "transcribe")
    what, red = tokenizer.encode("what"), tokenizer.encode("red")
    assert row.codes[0, 0] == BOS_ID and row.text_weight[0] == 0 and (row.text_weight[1:] == 1).all()
    assert row.codes[0, 13 : 13 + len(what)].tolist() == what
    assert row.codes[0, 40 : 40 + len(red)].tolist() != red
    assert (row.codes[1:3] == torch.tensor(SILENCE)[:, None]).all() and row.audio_weight.sum() == 0
    assert torch.equal(row.codes[3:], sample.codes[2:].long()) and not row.visuals


def test_dropped_visuals_leave_no_picture(tokenizer):
    assert lay(make_layout(tokenizer), make_sample(), keep_visuals=False).visuals == []


def test_joined_calls_are_the_calls_one_after_another(tokenizer):
    layout, first, second = make_layout(tokenizer), make_sample(70, "a"), make_sample(90, "b")
    row = lay(layout, joined([first, second], (0, 25), layout.silence_codes))
    alone = [lay(layout, sample) for sample in (first, second)]
    assert row.id == "a+b" and row.codes.shape == (5, 70 + 25 + 90)
    for before, own in zip((0, 95), alone, strict=True):
        span = slice(before, before + own.codes.shape[1])
        assert torch.equal(row.codes[:, span], own.codes)
        assert torch.equal(row.audio_weight[span], own.audio_weight)
    assert (row.codes[0, 70:95] == PAD_ID).all() and (row.text_weight == 1).all()
    assert torch.equal(row.codes[1:, 70:95], torch.tensor([*SILENCE, *SILENCE])[:, None].expand(-1, 25))
    assert [onset_of(visual.start_sec) for visual in row.visuals] == [5, 95 + 5]


def test_calls_without_pictures_are_joined_first(tokenizer):
    layout, blind = make_layout(tokenizer), make_sample(50, "blind")
    blind.visuals.clear()
    whole = joined([make_sample(70, "a"), blind, make_sample(90, "b")], (0, 0, 8), layout.silence_codes)
    assert whole.id == "blind+a+b" and [onset_of(visual.start_sec) for visual in whole.visuals] == [55, 133]
    single = make_sample()
    assert joined([single], (0,), layout.silence_codes) is single


def test_crop_keeps_words_and_pictures_with_their_sound():
    sample = make_sample()
    for seed in range(20):
        cut = crop(sample, max_frames=60, rng=np.random.default_rng(seed))
        assert cut.codes.shape == (4, 60)
        # Codes count up modulo 16, so a few places fit.
        starts = [s for s in range(41) if torch.equal(sample.codes[:, s : s + 60], cut.codes)]
        whole = [(w.text, round(w.start_sec / FRAME_SEC - 0.125) - s) for s in starts for w in sample.words]
        for word in cut.words:
            assert (word.text, round(word.start_sec / FRAME_SEC - 0.125)) in whole
            assert 0 <= word.start_sec < 60 * FRAME_SEC
        assert min(starts) <= 10  # the question is whole
        assert onset_of(cut.visuals[0].start_sec) in {5 - s for s in starts}


def test_crops_begin_between_turns():
    sample = make_sample(200)
    later = [Word("what", 120 * FRAME_SEC, 130 * FRAME_SEC, "user"), Word("yes", 140 * FRAME_SEC, 144 * FRAME_SEC)]
    sample.words += later
    begins = {crop(sample, max_frames=60, rng=np.random.default_rng(seed)).words[0].text for seed in range(60)}
    assert begins == {"what"}
    sample.words = [word for word in sample.words if word.speaker == "main"]
    assert torch.equal(crop(sample, max_frames=60, rng=np.random.default_rng(1)).codes, sample.codes[:, :60])


def test_a_picture_after_the_crop_is_not_seen():
    sample = make_sample(300)
    sample.visuals[0].start_sec = 299 * FRAME_SEC
    cut = crop(sample, max_frames=20, rng=np.random.default_rng(0))
    assert cut.visuals == []


def test_augmentation_touches_only_the_users_rows(tokenizer):
    sample = make_sample(400)
    disturbed = make_layout(tokenizer, augmentation=Augmentation(drop_acoustic=1.0, replace_codes=0.2))
    row = lay(disturbed, sample, seed=3)
    assert torch.equal(row.codes[1:3], sample.codes[:2].long())
    assert (row.codes[4] == -1).all() and (row.codes[3] != -1).all()
    changed = (row.codes[3] != sample.codes[2]).float().mean()
    assert 0 < changed < 0.4
    again = lay(disturbed, sample, seed=3)
    assert torch.equal(again.codes, row.codes)
    keeping = make_layout(tokenizer, augmentation=Augmentation(drop_acoustic=1.0, keep_codebooks=2))
    assert torch.equal(lay(keeping, sample, seed=3).codes[3:], sample.codes[2:].long())


def test_stack_pads_with_nothing_and_no_weight(tokenizer):
    layout = make_layout(tokenizer)
    rows = [lay(layout, make_sample(60, "a")), lay(layout, make_sample(100, "b"), keep_visuals=False)]
    rows.append(lay(layout, make_sample(80, "c")))
    batch = stack(rows, pictures=PictureFormat(16, (0.5,) * 3, (0.5,) * 3))
    assert batch.codes.shape == (3, 5, 100) and batch.ids == ["a", "b", "c"]
    assert (batch.codes[0, :, 60:] == -1).all() and (batch.codes[0, 0, :60] >= 0).all()
    assert batch.text_weight[0, 60:].sum() == 0 and batch.audio_weight[0, 60:].sum() == 0
    assert batch.pixels.shape == (2, 3, 16, 16) and batch.picture_rows.tolist() == [0, 2]
    assert batch.onset_frames.tolist() == [5, 5] and batch.picture_keys[0] == batch.picture_keys[1]
    assert batch.pixels[0, 0, 0, 0] == pytest.approx(1.0) and batch.pixels[0, 1, 0, 0] == pytest.approx(-1.0)
    assert stack(rows).pixels is None


def test_speaking_frames_are_those_of_one_speaker():
    words = make_sample().words
    exact = speaking_frames(words, 100, speaker="user", widened=False)
    assert exact.nonzero()[:, 0].tolist() == [*range(10, 15), *range(20, 25)]
