"""What the codec keeps of speech: word error of recordings before and after encoding and decoding them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from eval.manifest import Spoken, read_recordings
from eval.recognise import Recogniser, word_error
from eval.responder import Responder
from eval.scoring import normalise
from eval.task import Settings
from mmspeech.audio.waveform import AudioError, read_audio, resample, write_wav
from mmspeech.config import ConfigError
from mmspeech.frames import SAMPLE_RATE_HZ, seconds_to_samples

if TYPE_CHECKING:
    from mmspeech.audio.codec import Codec
    from mmspeech.checkpoint import Bundle


def build(settings: Settings, bundle: "Bundle | None", responder: Responder | None) -> "CodecResynthesis":
    """The task over the manifest of `settings`, for the bundle's codec; nobody answers here."""
    lines = read_recordings(settings.manifest, limit=settings.limit)
    return CodecResynthesis(lines=lines, settings=settings, codec=bundle.codec)


class CodecResynthesis:
    """The recogniser knows the sentences of the manifest; its error on the recordings themselves is the floor."""

    name, version = "codec_resynthesis", 1

    def __init__(self, *, lines: list[Spoken], settings: Settings, codec: "Codec"):
        self.lines = lines
        self.settings = settings
        self.codec = codec
        self.recogniser = Recogniser([*(line.text for line in lines), *(settings.sentences or ())])

    def load(self, line: Spoken) -> tuple[Spoken, np.ndarray]:
        if not line.audio.is_file():
            raise ConfigError(f"{line.audio}: no such file")
        return line, read_part(line)

    def run(self, items: list[tuple[Spoken, np.ndarray]], *, seeds: list[int]) -> list[dict[str, Any]]:
        return [self._record(line, wave) for line, wave in items]

    def _record(self, line: Spoken, wave: np.ndarray) -> dict[str, Any]:
        again = resynthesise(self.codec, wave)
        if self.settings.audio_dir is not None:
            write_wav(self.settings.audio_dir / f"{line.id}.wav", again, self.codec.sample_rate_hz)
        said = normalise(line.text)
        heard = self.recogniser.words(again, self.codec.sample_rate_hz)
        before = self.recogniser.words(wave, self.codec.sample_rate_hz)
        errors, count = word_error(said, heard)
        return {
            "kind": "all",
            "voice": line.voice,
            "text": line.text,
            "heard": " ".join(heard),
            "heard_before": " ".join(before),
            "word_errors": errors,
            "word_errors_before": word_error(said, before)[0],
            "words_said": count,
        }

    def summarise(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        said = sum(r["words_said"] for r in records) or None
        return {
            "count": len(records),
            "word_error": said and sum(r["word_errors"] for r in records) / said,
            "word_error_before": said and sum(r["word_errors_before"] for r in records) / said,
            "words_said": said or 0,
            "words_unknown": self.recogniser.unknown,
        }


def read_part(line: Spoken) -> np.ndarray:
    """The samples that a line means, [N] at 24 kHz. Raises AudioError."""
    whole = read_audio(line.audio) if line.channel is None else read_channels(line.audio)
    if line.channel is not None:
        if line.channel >= len(whole):
            raise AudioError(f"{line.audio}: has {len(whole)} channels; the manifest asks for channel {line.channel}")
        whole = whole[line.channel : line.channel + 1]
    end = None if line.end_sec is None else seconds_to_samples(line.end_sec)
    return whole[0, seconds_to_samples(line.start_sec) : end].numpy()


def read_channels(path: Path) -> torch.Tensor:
    """A file as [channels, N] at 24 kHz. Raises AudioError."""
    import soundfile

    try:
        wave, rate_hz = soundfile.read(str(path), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise AudioError(f"{path}: not readable as audio ({error})") from error
    return resample(torch.from_numpy(np.ascontiguousarray(wave.T)), rate_hz, SAMPLE_RATE_HZ)


@torch.no_grad()
def resynthesise(codec: "Codec", wave: np.ndarray) -> np.ndarray:
    """wave [N] -> codes -> wave [N], in time with the input (the decoder's delay is taken off)."""
    delay = codec.decoder_delay_samples
    padded = torch.nn.functional.pad(torch.from_numpy(wave)[None, None], (0, delay))
    return codec.decode(codec.encode(padded))[0, 0, delay : delay + len(wave)].float().numpy()
