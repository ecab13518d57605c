import io

import pytest
import torch
from PIL import Image

from mmspeech.config import GenerationConfig
from mmspeech.serve.engine import CallBatch
from mmspeech.serve.eyes import FrameInbox, SightError
from mmspeech.serve.session import ReplyWatch, Session, Transcript
from mmspeech.vision.image import ImageError

FRAME = 1920
GREEDY = GenerationConfig(text_temperature=0, audio_temperature=0)
RED, BLUE = Image.new("RGB", (40, 30), "red"), Image.new("RGB", (64, 64), "blue")


def speech(frames: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(frames, FRAME, generator=torch.Generator().manual_seed(seed))


def run(session: Session, pcm: torch.Tensor) -> list:
    return [session.step(frame) for frame in pcm]


def test_frames_are_aligned_and_timed(small_bundle):
    steps = run(Session(small_bundle, picture=RED), speech(12))
    lag = max(small_bundle.config.lm.delays)
    assert [step.frame for step in steps] == [-1] * lag + list(range(12 - lag))
    assert all(step.pcm.shape == (FRAME,) and step.pcm.dtype == torch.float32 for step in steps)
    assert all(not step.pcm.any() for step in steps[:lag])
    delay_sec = small_bundle.codec.decoder_delay_samples / 24_000
    for index, step in enumerate(steps):
        assert step.start_sec == pytest.approx(index * 0.08 + delay_sec)
    assert all(0 <= step.gate <= 1 for step in steps)


def test_the_reply_is_the_decoded_codes(small_bundle):
    """What is played is what the codec makes of the model's own codes, offline."""
    calls, codes, waves = CallBatch(small_bundle, sampling=GREEDY), [], []
    for frame in speech(10):
        result = calls.step(frame[None])
        if result.out is not None:
            codes.append(result.out.codes)
            waves.append(result.wave)
    with torch.no_grad():
        offline = small_bundle.codec.decode(torch.stack(codes, dim=2))[:, 0]
    assert torch.allclose(torch.cat(waves, dim=1), offline, atol=1e-5)


def test_same_seed_same_call_and_other_seed_another(small_bundle):
    pcm = speech(25)
    one, again, other = (
        torch.cat([step.pcm for step in run(Session(small_bundle, seed=seed, picture=RED), pcm)]) for seed in (1, 1, 2)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_two_calls_on_one_model_do_not_meet(small_bundle):
    pcm = speech(15), speech(15, seed=1)
    alone = [
        run(Session(small_bundle, GREEDY, picture=picture), p) for p, picture in zip(pcm, (RED, None), strict=True)
    ]
    sessions = Session(small_bundle, GREEDY, picture=RED), Session(small_bundle, GREEDY)
    for index in range(15):
        for k in range(2):
            step = sessions[k].step(pcm[k][index])
            assert torch.equal(step.pcm, alone[k][index].pcm) and step.gate == alone[k][index].gate


def test_calls_in_lockstep_equal_single_calls(small_bundle):
    """Rows with different sound, seeds and pictures (one blind) give the calls they would give alone."""
    pcm = torch.stack([speech(15), speech(15, seed=1), speech(15, seed=2)])
    pictures, seeds = [RED, None, BLUE], [5, 6, 7]
    together = CallBatch(small_bundle, batch_size=3, seed=seeds)
    together.see(pictures)
    alone = [CallBatch(small_bundle, seed=seed) for seed in seeds]
    for calls, picture in zip(alone, pictures, strict=True):
        calls.see([picture])
    for index in range(15):
        batch = together.step(pcm[:, index])
        single = [calls.step(pcm[row : row + 1, index]) for row, calls in enumerate(alone)]
        if batch.out is None:
            continue
        for row, result in enumerate(single):
            assert torch.equal(batch.out.text_ids[row : row + 1], result.out.text_ids)
            assert torch.equal(batch.out.codes[row : row + 1], result.out.codes)
            assert torch.allclose(batch.wave[row : row + 1], result.wave, atol=1e-5)


def test_a_picture_shown_late_changes_nothing_before_it(small_bundle):
    pcm = speech(20)
    blind = run(Session(small_bundle, GREEDY), pcm)
    session = Session(small_bundle, GREEDY)
    late = []
    for index, frame in enumerate(pcm):
        if index == 10:
            session.see(RED)
        late.append(session.step(frame))
    lag = max(small_bundle.config.lm.delays)
    assert all(torch.equal(a.pcm, b.pcm) for a, b in zip(blind[:10], late[:10], strict=True))
    assert all(step.gate == 0 for step in blind) and all(step.gate == 0 for step in late[:10])
    assert all(step.gate > 0 for step in late[10 + lag :])
    session.see(None)
    run(session, speech(lag))
    assert session.step(pcm[0]).gate == 0


def test_a_blind_model_refuses_pictures_in_one_line(small_bundle):
    from dataclasses import replace

    blind = replace(small_bundle, config=small_bundle.config.model_copy(update={"vision": None}))
    with pytest.raises(SightError, match="cannot see"):
        Session(blind, picture=RED)


def test_wrong_shapes_are_refused(small_bundle):
    with pytest.raises(ValueError, match=r"expected pcm \[1, 1920\]"):
        Session(small_bundle).step(torch.zeros(100))
    with pytest.raises(ValueError, match="expected 2 pictures"):
        CallBatch(small_bundle, batch_size=2).see([None])


def test_words_are_put_together_from_pieces():
    transcript = Transcript()
    for index, piece in enumerate([" the", " cir", "cle", " ", "is", " red", "."]):
        transcript.add(piece, start_sec=index * 0.08, gate=index / 10)
    assert transcript.text == "the circle is red."
    assert [word.start_sec for word in transcript.words] == pytest.approx([0.0, 0.08, 0.24, 0.4])
    assert transcript.words[1].gate == pytest.approx(0.15)


def frames_until_end(watch: ReplyWatch, spoken: dict[int, bool], limit: int = 1000) -> int:
    loud, quiet = torch.full((FRAME,), 0.1), torch.zeros(FRAME)
    for index in range(limit):
        if watch.add(loud if index in spoken else quiet, has_text=spoken.get(index, False)):
            return index
    raise AssertionError("never ended")


def test_a_reply_ends_after_silence():
    """Question of 1 s (12.5 frames, 12 whole), reply in frames 15 to 24, then 1.5 s of silence."""
    spoken = dict.fromkeys(range(15, 25), True)
    assert frames_until_end(ReplyWatch(question_sec=1.0), spoken) == 24 + 19


def test_no_reply_ends_with_patience_and_a_long_one_with_the_limit():
    assert frames_until_end(ReplyWatch(question_sec=1.0, patience_sec=4.0), {}) == pytest.approx(12 + 50, abs=1)
    for_ever = dict.fromkeys(range(1000), True)
    assert frames_until_end(ReplyWatch(question_sec=1.0, max_sec=8.0), for_ever) == pytest.approx(12 + 100, abs=1)


def test_hum_does_not_keep_a_call_open():
    spoken = {index: index < 20 for index in range(1000)}
    assert frames_until_end(ReplyWatch(question_sec=1.0), spoken) == 19 + 2 * 19


def test_words_before_the_question_ended_are_no_answer():
    spoken = dict.fromkeys(range(0, 5), True) | dict.fromkeys(range(40, 50), True)
    assert frames_until_end(ReplyWatch(question_sec=2.0), spoken) == 49 + 19


def noise_picture(seed: int) -> Image.Image:
    pixels = torch.randint(0, 256, (24, 24, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def hidden_of(bundle, plan: dict[int, list[tuple[int, float | None]]], *, steps: int = 30) -> torch.Tensor:
    """[T, D] of a call; plan: before which step which pictures (by number) are shown, with their stamps."""
    calls, rows = CallBatch(bundle, sampling=GREEDY), []
    for index, frame in enumerate(speech(steps)):
        for number, at_sec in plan.get(index, []):
            calls.show(noise_picture(number), 0, at_sec=at_sec)
        calls.think(calls.listen(frame[None]))
        rows.append(calls.generator.trace.hidden[0])
    return torch.stack(rows)


def test_frames_wait_for_their_time_and_change_nothing_before_it(remembering_bundle):
    """Shown beforehand or just in time is the same, and a frame with stamp t is not felt before t."""
    in_time = hidden_of(remembering_bundle, {3: [(1, 0.21)], 10: [(2, 0.8)], 17: [(3, None)]})
    ahead = hidden_of(remembering_bundle, {0: [(1, 0.21)], 4: [(2, 0.8)], 17: [(3, None)]})
    assert torch.equal(in_time, ahead)
    other = hidden_of(remembering_bundle, {0: [(1, 0.21)], 4: [(9, 0.8)], 17: [(3, None)]})
    same = (ahead == other).all(dim=1).tolist()
    assert all(same[:10]) and not any(same[10:])


def test_many_frames_come_and_memory_stays_as_it_is(remembering_bundle):
    calls = CallBatch(remembering_bundle, batch_size=2, sampling=GREEDY)
    sizes = []
    for index, frame in enumerate(speech(40)):
        calls.show(noise_picture(index), index % 2)
        calls.step(frame[None].expand(2, -1))
        tensors = calls.state_tensors()
        sizes.append((len(tensors), sum(tensor.nbytes for tensor in tensors), [t.data_ptr() for t in tensors]))
    assert all(size == sizes[0] for size in sizes)
    assert [counts.shown for counts in calls.frame_counts] == [20, 20]


def test_the_newest_frame_wins_and_the_others_are_counted():
    inbox, red, blue = FrameInbox(), RED, BLUE
    inbox.put(red, at_sec=None, step=5)
    inbox.put(blue, at_sec=None, step=5)
    assert inbox.take(step=5).size == BLUE.size and inbox.take(step=6) is None
    assert (inbox.counts.shown, inbox.counts.dropped, inbox.counts.broken) == (1, 1, 0)
    for late_sec in (0.1, 0.4, -3.0):  # what is seen now is of 0.4 s
        inbox.put(red, at_sec=late_sec, step=7)
    assert inbox.take(step=7) is None and inbox.counts.dropped == 4
    inbox.put(red, at_sec=0.41, step=7)  # late, but newer
    assert inbox.take(step=7) is not None
    inbox.put(red, at_sec=2.0, step=8)
    inbox.put(red, at_sec=1.5, step=8)  # older than one that waits
    inbox.put(red, at_sec=2.0, step=8)  # the same again
    assert inbox.take(step=24) is None and inbox.counts.dropped == 6
    assert inbox.take(step=25) is not None
    inbox.put(red, at_sec=9.0, step=26)
    inbox.put(blue, at_sec=None, step=26)
    assert inbox.take(step=26).size == BLUE.size and inbox.counts.dropped == 7


def test_broken_frames_are_counted_and_the_call_goes_on(small_bundle):
    session, pcm = Session(small_bundle, GREEDY, picture=RED), speech(4)
    session.step(pcm[0])
    for bad in (b"", b"no picture", png(RED)[:60]):
        session.see(bad)
        session.step(pcm[1])
    session.see(BLUE, at_sec=float("nan"))
    assert session.frames.broken == 4 and session.frames.shown == 1
    session.see(png(BLUE))
    session.step(pcm[2])
    assert session.frames.shown == 2 and session.frames.dropped == 0
    with pytest.raises(ImageError, match="is not a picture"):
        Session(small_bundle, picture=b"no picture")
    with pytest.raises(ValueError, match="nothing at 3.0 s: .* call forget"):
        session.see(None, at_sec=3.0)


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def test_to_forget_is_to_see_nothing(remembering_bundle):
    pcm, lag = speech(12), max(remembering_bundle.config.lm.delays)
    session = Session(remembering_bundle, GREEDY, picture=RED)
    gates = []
    for index, frame in enumerate(pcm):
        if index == 4:
            session.see(BLUE, at_sec=60.0)
            session.forget()
            session.see(BLUE, at_sec=0.2)  # of a time before that
        if index == 8:
            session.see(BLUE)
        gates.append(session.step(frame).gate)
    seeing = [gate > 0 for gate in gates[lag:]]
    assert seeing == [index < 4 or index >= 8 for index in range(len(seeing))]
    assert (session.frames.shown, session.frames.dropped) == (2, 2)
