"""What the codec keeps of speech: word error of recordings before and after encoding and decoding them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from eval.manifest import Spoken, read_recordings
from eval.recognise import Ears, open_ears, word_error
from eval.scoring import normalise
from eval.task import MissingDataError, Prompt, Reply, Responder, Settings, Task
from mmspeech.audio.waveform import AudioError, read_audio, resample
from mmspeech.config import ConfigError
from mmspeech.frames import SAMPLE_RATE_HZ, seconds_to_samples

if TYPE_CHECKING:
    from mmspeech.audio.codec import Codec
    from mmspeech.checkpoint import Bundle


def build(settings: Settings, bundle: "Bundle | None") -> "CodecResynthesis":
    """The task over the manifest of `settings`, for the bundle's codec; nobody answers here."""
    if settings.manifest is None:
        raise MissingDataError("give recordings and their words as --manifest, or a manifest of spoken calls")
    if bundle is None:
        raise MissingDataError("a codec is measured here; give the --model that has one")
    lines = read_recordings(settings.manifest, limit=settings.limit)
    return CodecResynthesis(lines, settings.manifest, bundle.codec, open_ears(settings, [line.text for line in lines]))


class CodecResynthesis(Task):
    """Score: the share of words kept. The recogniser knows the sentences of the manifest; its error on the recordings
    themselves is the floor."""

    name, version = "codec_resynthesis", 2

    def __init__(self, lines: list[Spoken], manifest: Path, codec: "Codec", ears: Ears):
        self.samples = lines
        self.files = [manifest]
        self._codec = codec
        self._ears = ears

    def prompt(self, sample: Spoken) -> Prompt:
        if not sample.audio.is_file():
            raise ConfigError(f"{sample.audio}: no such file")
        return Prompt(read_part(sample))

    def run(
        self, samples: list[Spoken], prompts: list[Prompt], responder: Responder, *, seeds: list[int]
    ) -> list[dict[str, Any]]:
        """The codec answers, whoever the responder is."""
        again = [Reply(wave=resynthesise(self._codec, prompt.wave)) for prompt in prompts]
        return [self.score(*whole) for whole in zip(samples, prompts, again, strict=True)]

    def score(self, sample: Spoken, prompt: Prompt, reply: Reply) -> dict[str, Any]:
        said = normalise(sample.text)
        heard = self._ears.words(reply.wave, self._codec.sample_rate_hz)
        before = self._ears.words(prompt.wave, self._codec.sample_rate_hz)
        errors, count = word_error(said, heard)
        return {
            "score": max(0.0, 1.0 - errors / max(count, 1)),
            "text": sample.text,
            "heard": " ".join(heard),
            "heard_before": " ".join(before),
            "word_errors": errors,
            "word_errors_before": word_error(said, before)[0],
            "words_said": count,
        }

    def right_reply(self, sample: Spoken) -> Reply:
        return Reply(wave=read_part(sample))

    def summarise(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        said = sum(r["words_said"] for r in records) or None
        return {
            "word_error": said and sum(r["word_errors"] for r in records) / said,
            "word_error_before": said and sum(r["word_errors_before"] for r in records) / said,
            "words_said": said or 0,
            "words_unknown": self._ears.unknown,
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
