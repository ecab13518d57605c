"""The shipped model in calls that last longer than what it remembers, and longer than those it learnt from."""

from pathlib import Path

import pytest
import torch

from mmspeech.audio.waveform import in_frames, read_audio
from mmspeech.checkpoint import load_model
from mmspeech.frames import FRAME_SAMPLES, frames_to_seconds
from mmspeech.serve.engine import settle_threads
from mmspeech.serve.session import Session, Transcript
from mmspeech.vision.image import load_image

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
ANSWER_FRAMES = 60


@pytest.fixture
def bundle():
    bundle = load_model()
    settle_threads(bundle.model)
    return bundle


def asked(session: Session, name: str) -> str:
    """What comes in answer to a recording."""
    frames = in_frames(read_audio(EXAMPLES / f"{name}.wav")[0])
    words = Transcript()
    for frame in [*frames, *torch.zeros(ANSWER_FRAMES, FRAME_SAMPLES)]:
        out = session.step(frame)
        if out.text is not None:
            words.add(out.text, start_sec=out.start_sec, gate=out.gate)
    return words.text


def test_who_asks_after_a_long_silence_is_answered_and_so_is_who_asks_on(bundle):
    context = bundle.config.lm.temporal.context
    session = Session(bundle, picture=load_image(EXAMPLES / "scene.png"))
    for _ in range(context + 60):
        session.step(torch.zeros(FRAME_SAMPLES))
    assert frames_to_seconds(context) >= 15.0
    for _ in range(3):
        assert "red" in asked(session, "what_colour")
    session.see(load_image(EXAMPLES / "night.png"))
    assert "red" not in asked(session, "what_colour")
