"""A clip encoder in a call: what it sees frame by frame is what training lays out, and it can be forgotten."""

import pytest
import torch
from clips import numbered_picture, png
from conftest import save_small
from small_model import MEMORY, small_model

from mmspeech.checkpoint import load_model
from mmspeech.config import GenerationConfig
from mmspeech.data.visuals import PictureFormat, see_visuals
from mmspeech.frames import FRAME_SAMPLES
from mmspeech.lm.sight import see_calls
from mmspeech.serve.engine import CallBatch
from mmspeech.types import Visual
from mmspeech.vision.memory import Memory

WINDOW = {"window_frames": 4, "window_fps": 2.0}
STAMPS_SEC = (0.0, 0.3, 0.95, 1.0, 1.6, 2.7)
NUM_STEPS = 45


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    tower = {
        "model_type": "videomae", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "patch_size": 8, "image_size": 32, "num_frames": 4, "tubelet_size": 2,
    }  # fmt: skip
    vision = {"tower": "hf:videomae", "image_size_px": 32, "tower_dim": 32, "tower_args": tower, **WINDOW}
    return load_model(save_small(tmp_path_factory.mktemp("clips"), small_model(**MEMORY) | {"vision": vision}))


def shown(number: int) -> bytes:
    return png(numbered_picture(number, (48, 48)))


@torch.no_grad()
def test_frame_by_frame_it_sees_what_training_lays_out(bundle):
    greedy = GenerationConfig(text_temperature=0, audio_temperature=0)
    calls, pcm = CallBatch(bundle, sampling=greedy), torch.zeros(1, FRAME_SAMPLES)
    whole = CallBatch(bundle, sampling=greedy)
    tower = bundle.model.tower
    form = PictureFormat(32, tower.mean, tower.std, Memory.of(bundle.config.lm.fusion), **WINDOW)
    visuals = [Visual(shown(20 * number), at_sec) for number, at_sec in enumerate(STAMPS_SEC)]
    frames = see_visuals(visuals, num_frames=NUM_STEPS, form=form)
    onset = torch.tensor([frame.onset_frame for frame in frames])
    features = tower(form.pixels(frames))[0]
    whole.generator.see(see_calls(bundle.model, features, torch.zeros_like(onset), onset, batch_size=1))
    for step in range(NUM_STEPS):
        for visual in visuals:
            if (step - 1) / 12.5 < visual.start_sec <= step / 12.5:
                calls.see([visual.data], at_sec=visual.start_sec)
        one, all_at_once = calls.step(pcm), whole.step(pcm)
        assert torch.equal(one.wave, all_at_once.wave), step
        if one.out is not None:
            torch.testing.assert_close(one.out.layer_gates, all_at_once.out.layer_gates, atol=1e-4, rtol=0)
    assert calls.frame_counts[0].shown == len(STAMPS_SEC)


@torch.no_grad()
def test_what_is_forgotten_is_in_no_window(bundle):
    fresh, forgetful = CallBatch(bundle), CallBatch(bundle)
    forgetful.see([shown(10)], at_sec=0.0)
    for calls in (fresh, forgetful):
        calls.step(torch.zeros(1, FRAME_SAMPLES))
    forgetful.forget()
    for calls in (fresh, forgetful):
        calls.see([shown(200)], at_sec=0.3)
        calls.step(torch.zeros(1, FRAME_SAMPLES))
        calls.step(torch.zeros(1, FRAME_SAMPLES))
        calls.step(torch.zeros(1, FRAME_SAMPLES))
        calls.step(torch.zeros(1, FRAME_SAMPLES))
    windows = [calls.state_tensors()[-2] for calls in (fresh, forgetful)]
    assert windows[0].shape == (1, 4, 3, 32, 32) and torch.equal(*windows)
