"""Clip encoders in calls: what training lays out is what a live call sees, frame by frame."""

from dataclasses import replace

import pytest
import torch
from clips import numbered_picture, png, write_clip
from PIL import Image

from mmspeech.config import GenerationConfig
from mmspeech.data.visuals import PictureFormat, lay_pictures, see_visuals
from mmspeech.frames import frames_to_seconds
from mmspeech.lm.sight import see_calls
from mmspeech.serve.engine import CallBatch
from mmspeech.types import Visual
from mmspeech.vision.memory import Memory
from mmspeech.vision.video import Video
from mmspeech.vision.window import windowed

pytest.importorskip("av")
GREEDY = GenerationConfig(text_temperature=0, audio_temperature=0)
STEPS, CLIP_AT_SEC, CLIP_FPS = 50, 0.87, 3.3  # frames at odd times, more of them than are remembered


@pytest.fixture(scope="module")
def visuals(tmp_path_factory) -> list[Visual]:
    """Two pictures, one of them in the middle of a clip of 2.4 s."""
    clip = write_clip(tmp_path_factory.mktemp("clip") / "c.mp4", num_frames=60).read_bytes()
    stills = [Visual(png(numbered_picture(number, (64, 48))), at_sec) for number, at_sec in ((200, 0.21), (90, 2.03))]
    return [stills[0], Visual(clip, CLIP_AT_SEC, "clip", fps=CLIP_FPS), stills[1]]


def coming(visuals: list[Visual]) -> list[tuple[float, Image.Image | bytes]]:
    """What a live call is shown of them: times and pictures, in order."""
    clip = visuals[1]
    times = [k / CLIP_FPS for k in range(int(2.4 * CLIP_FPS) + 1)]
    frames = Video(clip.data).frames(times)
    shown = [(CLIP_AT_SEC + at_sec, frame.picture) for at_sec, frame in zip(times, frames, strict=True)]
    shown += [(still.start_sec, still.data) for still in visuals if still.kind == "image"]
    return sorted(shown, key=lambda pair: pair[0])


def live(bundle, shown: list, *, steps: int = STEPS) -> tuple[CallBatch, torch.Tensor, torch.Tensor]:
    """A call shown each picture when it is due: it, hidden [T, D], and codes [1, R, T] as a batch would hold them."""
    calls, due = CallBatch(bundle, sampling=GREEDY), list(shown)
    sound = 0.1 * torch.randn(steps, 1, 1920, generator=torch.Generator().manual_seed(0))
    heard, own, hidden = [], [], []
    for step, pcm in enumerate(sound):
        while due and due[0][0] <= frames_to_seconds(step):
            at_sec, picture = due.pop(0)
            calls.show(picture, 0, at_sec=at_sec)
        heard.append(calls.listen(pcm))
        out = calls.think(heard[-1])
        hidden.append(calls.generator.trace.hidden[0])
        if out is not None:
            own.append(torch.cat([out.text_ids[:, None], out.codes], dim=1))
    lag = max(bundle.config.lm.delays)
    own, heard = torch.stack(own, dim=2)[..., : steps - 1 - lag], torch.stack(heard, dim=2)
    return calls, torch.stack(hidden), torch.cat([own, heard[..., 1 : own.shape[2] + 1]], dim=1)


def form_of(bundle) -> PictureFormat:
    tower = bundle.model.tower
    memory = Memory.of(bundle.config.lm.fusion)
    return PictureFormat(tower.image_size_px, tower.mean, tower.std, memory, tower.window)


@torch.no_grad()
def offline(bundle, laid, codes: torch.Tensor) -> torch.Tensor:
    """hidden [T, D] of the whole call at once."""
    model = bundle.model
    features, mask = model.tower(windowed(laid.pixels, laid.windows))
    visual = see_calls(model, features, laid.picture_rows, laid.onset_frames, batch_size=1, mask=mask)
    columns, _ = model.lm.layout.delay(codes)
    return model.lm(columns[..., :-1], visual=visual).hidden[0]


def test_a_live_clip_is_what_training_lays_out(clip_bundle, visuals):
    """Also: a frame changes nothing before it, and everything from it on, in both."""
    shown, form = coming(visuals), form_of(clip_bundle)
    calls, hidden, codes = live(clip_bundle, shown)
    frames = codes.shape[2]
    laid = lay_pictures([see_visuals(visuals, num_frames=frames, form=form)], form)
    assert (
        laid.windows.shape == (len(shown), form.window.frames)
        and calls.frame_counts[0].shown == len(shown) > form.memory.places
    )
    found = offline(clip_bundle, laid, codes)
    torch.testing.assert_close(found[:frames], hidden[:frames], atol=1e-4, rtol=0)

    stills = laid.pixels.clone()
    stills[:] = stills[0]
    assert (offline(clip_bundle, lay_like(laid, stills), codes) - found).abs().max() > 2e-3  # 20 times the tolerance
    changed = 5
    onset = int(laid.onset_frames[changed])
    other = laid.pixels.clone()
    other[changed] += 1
    same = (offline(clip_bundle, lay_like(laid, other), codes) == found).all(dim=1)
    assert same[:onset].all() and not same[onset]
    replaced = [*shown[:changed], (shown[changed][0], Image.new("RGB", (9, 9), "red")), *shown[changed + 1 :]]
    same = (live(clip_bundle, replaced)[1] == hidden).all(dim=1)
    assert same[:onset].all() and not same[onset]


def lay_like(laid, pixels: torch.Tensor):
    return type(laid)(**vars(laid) | {"pixels": pixels})


def test_a_crop_keeps_what_windows_hold(clip_bundle, visuals):
    """What is forgotten before the crop is decoded for windows, but not seen."""
    form = form_of(clip_bundle)
    cut_frames = 26 if form.window.fps == 6.25 else 25  # whole slots of the window: the crop has the whole call's
    whole, cut = (
        see_visuals(
            [Visual(v.data, v.start_sec - frames_to_seconds(by), v.kind, v.fps) for v in visuals],
            num_frames=60 - by, form=replace(form, memory=Memory(1 if by else 99)),
        )
        for by in (0, cut_frames)
    )  # fmt: skip
    assert any(frame.in_windows_only for frame in cut) and not any(frame.in_windows_only for frame in whole)
    found, expected = (windows_by_onset(frames, form, by) for frames, by in ((cut, cut_frames), (whole, 0)))
    assert found.items() <= expected.items() and len(found) == sum(not frame.in_windows_only for frame in cut) >= 1
    assert sum(onset <= cut_frames for onset in found) == 1  # the one that the crop begins with


def windows_by_onset(frames: list, form: PictureFormat, by: int) -> dict[int, tuple[str, ...]]:
    """The content of the window of every frame that is seen, by the whole call's clock."""
    laid = lay_pictures([[], frames], form)
    assert laid.picture_rows.tolist() == [1] * len(laid.onset_frames)
    held = [tuple(laid.picture_keys[place] for place in window) for window in laid.windows.tolist()]
    return dict(zip((laid.onset_frames + by).tolist(), held, strict=True))


def test_calls_side_by_side_have_windows_of_their_own(clip_bundle, visuals):
    """A row's keys are those it would have alone; what is forgotten is in no window either."""
    shown = [picture for _, picture in coming(visuals)]
    silence = torch.zeros(2, 1920)
    calls, alone = CallBatch(clip_bundle, batch_size=2), CallBatch(clip_bundle)
    for index, picture in enumerate(shown[:4]):
        calls.show(picture, 0)
        if index == 2:
            calls.show(shown[7], 1)
        calls.step(silence)
    sizes = [(tensor.data_ptr(), tensor.nbytes) for tensor in calls.state_tensors()]
    calls.forget([0])
    calls.show(shown[5], 0)
    calls.step(silence)
    assert [(tensor.data_ptr(), tensor.nbytes) for tensor in calls.state_tensors()] == sizes
    for row, picture in ((0, shown[5]), (1, shown[7])):
        alone.forget()
        alone.show(picture, 0)
        alone.step(silence[:1])
        first = slice(0, alone.generator.ring.tokens)
        for mine, other in zip(calls.generator.ring.state.pairs, alone.generator.ring.state.pairs, strict=True):
            torch.testing.assert_close(mine.keys[row, first], other.keys[0, first], atol=1e-5, rtol=0)
