"""Reading, writing and resampling audio; every bad file is one line that names it."""

import os

import numpy as np
import pytest
import soundfile
import torch

from mmspeech.audio.waveform import AudioError, read_audio, resample, write_wav
from mmspeech.config import ConfigError
from mmspeech.frames import (
    FRAME_RATE_HZ,
    FRAME_SAMPLES,
    SAMPLE_RATE_HZ,
)

TONE_HZ = 440.0


def tone(rate_hz: int, seconds: float = 0.5, channels: int = 1) -> np.ndarray:
    time_sec = np.arange(int(rate_hz * seconds)) / rate_hz
    return np.repeat(0.5 * np.sin(2 * np.pi * TONE_HZ * time_sec)[:, None], channels, axis=1).astype(np.float32)


def refuse(path, match: str) -> None:
    """`read_audio` refuses `path` in one line that names it."""
    with pytest.raises(AudioError, match=match) as caught:
        read_audio(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_constants_agree():
    assert SAMPLE_RATE_HZ / FRAME_RATE_HZ == FRAME_SAMPLES
    assert issubclass(AudioError, ConfigError)


@pytest.mark.parametrize("extension", ["wav", "flac", "ogg", "mp3", "aiff"])
def test_reads_common_formats(tmp_path, extension):
    path = tmp_path / f"tone.{extension}"
    soundfile.write(path, tone(48_000, channels=2), 48_000)
    wave = read_audio(path)
    assert wave.shape == (1, 12_000) and wave.dtype == torch.float32
    reference = torch.from_numpy(tone(SAMPLE_RATE_HZ)[:, 0])
    assert (wave[0, 1000:-1000] - reference[1000:-1000]).abs().max() < 0.05


def test_reads_opus(tmp_path):
    path = tmp_path / "tone.opus"
    soundfile.write(path, tone(48_000), 48_000, format="OGG", subtype="OPUS")
    assert read_audio(path).shape == (1, 12_000)


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 22_050, 44_100, 192_000])
def test_resamples_any_rate(tmp_path, rate_hz):
    path = tmp_path / "tone.wav"
    soundfile.write(path, tone(rate_hz), rate_hz)
    wave = read_audio(path)
    assert abs(wave.shape[-1] - 12_000) <= 1
    reference = torch.from_numpy(tone(SAMPLE_RATE_HZ)[:, 0])
    assert (wave[0, 1000:11_000] - reference[1000:11_000]).abs().max() < 1e-3


@pytest.mark.parametrize("channels", [1, 2, 6, 8, 16])
def test_averages_channels(tmp_path, channels):
    path = tmp_path / "many.wav"
    samples = np.tile(np.linspace(-0.5, 0.5, channels, dtype=np.float32), (100, 1))
    samples[:, 0] += 0.25
    soundfile.write(path, samples, SAMPLE_RATE_HZ, subtype="FLOAT")
    torch.testing.assert_close(read_audio(path), torch.full((1, 100), samples[0].mean().item()))


def test_reads_in_blocks(tmp_path, monkeypatch):
    path = tmp_path / "long.wav"
    soundfile.write(path, tone(SAMPLE_RATE_HZ), SAMPLE_RATE_HZ, subtype="FLOAT")
    monkeypatch.setattr("mmspeech.audio.waveform._BLOCK_SAMPLES", 1000)
    torch.testing.assert_close(read_audio(path)[0], torch.from_numpy(tone(SAMPLE_RATE_HZ)[:, 0]))


def test_wrong_extension_does_not_matter(tmp_path):
    path = tmp_path / "really_flac.wav"
    soundfile.write(path, tone(SAMPLE_RATE_HZ), SAMPLE_RATE_HZ, format="FLAC")
    assert read_audio(path).shape == (1, 12_000)


def test_missing_and_folder(tmp_path):
    refuse(tmp_path / "nope.wav", "no such audio file; check the path")
    refuse(tmp_path, "is a folder; expected one audio file")


def test_empty_and_not_audio(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(b"")
    refuse(path, r"empty file \(0 bytes\)")
    path.write_bytes(b"once upon a time " * 100)
    refuse(path, "not audio, truncated or damaged; expected a whole wav")
    path.write_bytes(os.urandom(4000))
    refuse(path, "not audio")
    raw = tmp_path / "a.raw"
    raw.write_bytes(bytes(400))
    refuse(raw, "headerless samples")


@pytest.mark.parametrize("extension", ["wav", "flac", "ogg", "aiff", "mp3"])
@pytest.mark.parametrize("part", [0.5, 0.97])
def test_truncated(tmp_path, extension, part):
    path = tmp_path / f"cut.{extension}"
    soundfile.write(path, tone(48_000, seconds=2.0), 48_000)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    refuse(path, "truncated")


@pytest.mark.parametrize("size", [3, 11, 14, 30, 43])
def test_only_a_piece_of_the_header(tmp_path, size):
    path = tmp_path / "cut.wav"
    soundfile.write(path, tone(SAMPLE_RATE_HZ), SAMPLE_RATE_HZ)
    path.write_bytes(path.read_bytes()[:size])
    refuse(path, "truncated")


def test_wav_of_unknown_length_is_read(tmp_path):
    """Programs that write to a pipe cannot know the length and leave the largest number there."""
    path = tmp_path / "piped.wav"
    soundfile.write(path, tone(SAMPLE_RATE_HZ), SAMPLE_RATE_HZ)
    data = bytearray(path.read_bytes())
    data[4:8] = data[40:44] = b"\xff" * 4
    path.write_bytes(data)
    assert read_audio(path).shape == (1, 12_000)


def test_no_samples_and_too_short(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros((0, 1), np.float32), SAMPLE_RATE_HZ)
    refuse(path, "audio without samples")
    soundfile.write(path, np.zeros((1, 1), np.float32), 192_000)
    refuse(path, "too short, 1 samples at 192000 Hz")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite(tmp_path, value):
    path = tmp_path / "a.wav"
    samples = tone(SAMPLE_RATE_HZ, channels=2)
    samples[777, 1] = value
    soundfile.write(path, samples, SAMPLE_RATE_HZ, subtype="FLOAT")
    refuse(path, "NaN or infinite")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(SAMPLE_RATE_HZ), SAMPLE_RATE_HZ)
    path.chmod(0)
    refuse(path, "cannot be opened")


@pytest.mark.parametrize("shape", [(500,), (1, 500), (2, 500)])
def test_write_then_read(tmp_path, shape):
    path = tmp_path / "new" / "folder" / "out.wav"
    wave = (torch.randint(-32_768, 32_768, shape) / 32_768).float()
    write_wav(path, wave)
    info = soundfile.info(path)
    assert (info.samplerate, info.subtype, info.channels) == (
        SAMPLE_RATE_HZ,
        "PCM_16",
        1 if len(shape) == 1 else shape[0],
    )
    samples, _ = soundfile.read(path, dtype="float32", always_2d=True)
    torch.testing.assert_close(torch.from_numpy(samples.T), wave.reshape(-1, 500), rtol=0, atol=0)
    assert [p.name for p in path.parent.iterdir()] == ["out.wav"]


def test_write_clips(tmp_path):
    write_wav(tmp_path / "a.wav", torch.tensor([2.0, -2.0, 1.0, 0.0]))
    samples, _ = soundfile.read(tmp_path / "a.wav", dtype="int16")
    assert samples.tolist() == [32_767, -32_768, 32_767, 0]


def test_write_takes_arrays_and_gradients(tmp_path):
    write_wav(tmp_path / "a.wav", np.zeros(10), 16_000)
    write_wav(tmp_path / "b.wav", torch.zeros(10, dtype=torch.bfloat16, requires_grad=True))
    assert read_audio(tmp_path / "a.wav").shape == (1, 15)


def test_write_refuses_and_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.wav"
    write_wav(path, torch.zeros(100))
    before = path.read_bytes()
    with pytest.raises(AudioError, match=r"a\.wav: cannot write shape \(3, 10\)"):
        write_wav(path, torch.zeros(3, 10))
    with pytest.raises(AudioError, match=r"a\.wav: not written, .* NaN or infinite"):
        write_wav(path, torch.tensor([0.0, float("nan")]))
    with pytest.raises(AudioError, match="is a folder; expected the name of a wav file"):
        write_wav(tmp_path, torch.zeros(10))
    with pytest.raises(AudioError, match="cannot be written"):
        write_wav(path / "below" / "b.wav", torch.zeros(10))

    def broken(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr("mmspeech.audio.waveform.soundfile.write", broken)
    with pytest.raises(AudioError, match=r"cannot be written \(No space left on device\)"):
        write_wav(path, torch.ones(100))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.wav"]


def test_resample_shapes():
    assert resample(torch.zeros(2, 3, 480), 48_000, 24_000).shape == (2, 3, 240)
    assert resample(torch.zeros(100), 8_000, 24_000).shape == (300,)
    wave = torch.randn(2, 50)
    torch.testing.assert_close(resample(wave, 24_000, 24_000), wave)


def test_resample_removes_what_does_not_fit():
    time_sec = torch.arange(48_000, dtype=torch.float64) / 48_000
    high = torch.sin(2 * torch.pi * 15_000 * time_sec)
    assert resample(high, 48_000, 24_000)[1000:-1000].abs().max() < 1e-3
