"""Seconds, samples and frames."""

from mmspeech.frames import (
    frames_to_seconds,
    samples_to_frames,
    samples_to_seconds,
    seconds_to_frames,
    seconds_to_samples,
)


def test_conversions():
    assert seconds_to_samples(0.5) == 12_000 and seconds_to_samples(1.0, 16_000) == 16_000
    assert samples_to_seconds(12_000) == 0.5 and samples_to_seconds(16_000, 16_000) == 1.0
    assert frames_to_seconds(25) == 2.0
    assert [samples_to_frames(n) for n in (0, 1, 1920, 1921)] == [0, 1, 1, 2]
    assert seconds_to_frames(0.159) == 1 and seconds_to_frames(0.161) == 2
    assert seconds_to_frames(0.161, round_up=True) == 3 and seconds_to_frames(0.16, round_up=True) == 2


def test_frames_survive_seconds():
    for frames in range(5000):
        assert seconds_to_frames(frames_to_seconds(frames)) == frames
        assert seconds_to_frames(frames_to_seconds(frames), round_up=True) == frames
        assert seconds_to_frames(sum([0.08] * (frames % 100))) == frames % 100
