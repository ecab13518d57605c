"""`mmspeech say`: text spoken by a delayed-streams text to speech model, in a voice of choice."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn
from torch import Tensor

from mmspeech.audio.waveform import read_audio, write_wav
from mmspeech.checkpoint import read_tensors
from mmspeech.commands.common import check_device
from mmspeech.config import ConfigError, GenerationConfig
from mmspeech.formats.speaker import SpeakerBundle, load_speaker
from mmspeech.frames import FRAME_SAMPLES, SAMPLE_RATE_HZ, frames_to_seconds
from mmspeech.hub import fetched, fetched_file
from mmspeech.lm.conditions import Vectors, nothing_like, voices_as_vectors
from mmspeech.lm.speak import SpeakJob, speak
from mmspeech.tokens.script import ScriptReader, parse_script

VOICES = "kyutai/tts-voices"
MAX_VOICES = 5
SETTLING_FRAMES = 2  # of the codec, at the very beginning, before the first word; they may click
PREFIX_TAIL_FRAMES = 2  # of a voice's codes, which have heard only padding behind them


@dataclass(frozen=True)
class SayOptions:
    """How it is said. guidance None: 2 where the model takes guidance. num_codebooks None: all."""

    voices: tuple[str, ...] = ()
    guidance: float | None = None
    num_codebooks: int | None = None
    temperature: float = 0.6
    seed: int = 0


@dataclass(frozen=True)
class Saying:
    """A script about to be spoken. skip_frames: of the model's, before the first that is given."""

    reader: ScriptReader
    job: SpeakJob
    skip_frames: int

    def words(self) -> list[tuple[str, float]]:
        """Each word that has begun, with its start in seconds on the clock of the sound."""
        return [(text, max(frames_to_seconds(frame - self.skip_frames), 0.0)) for text, frame in self.reader.begun]


def run_say(turns: list[str], model: str, out: Path, options: SayOptions, *, as_json: bool, device: str) -> None:
    """Write what `turns` say to `out`; with `as_json` print each word with its start."""
    place = check_device(device)
    if turns == ["-"]:
        turns = [line for line in sys.stdin.read().splitlines() if line.strip()]
    bundle = load_speaker(fetched(model), num_codebooks=options.num_codebooks, device=place)
    saying, pieces = prepare(bundle, turns, options), []
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), console=Console(stderr=True)) as progress:
        task = progress.add_task("speaking")
        for pcm in spoken(bundle, saying):
            pieces.append(pcm)
            word = saying.reader.begun[-1][0] if saying.reader.begun else ""
            progress.update(task, description=f"{frames_to_seconds(len(pieces)):6.1f} s  {word}")
    write_wav(out, torch.cat(pieces))
    for word, start_sec in saying.words() if as_json else ():
        print(json.dumps({"word": word, "start_sec": round(start_sec, 2)}))


def prepare(bundle: SpeakerBundle, turns: list[str], options: SayOptions) -> Saying:
    """Raises ConfigError when there is nothing to say, and for what the model can not do."""
    config = bundle.model.config
    words = parse_script(turns, bundle.tokenizer, mark_turns=_takes_voices(bundle))
    reader = ScriptReader(words, card=config.text_card + 1, lookahead_words=config.lookahead_words)
    conditions, guidance = _conditions(bundle, options)
    rows = [conditions] if guidance == 1.0 else [conditions, nothing_like(conditions)]
    prefixes = None if _takes_voices(bundle) or not options.voices else [_prefix(bundle, options.voices)]
    sampling = GenerationConfig(text_temperature=options.temperature, audio_temperature=options.temperature)
    job = SpeakJob(
        [reader], bundle.model.conditions(rows), sampling, [options.seed], prefixes=prefixes, guidance=guidance,
        num_codebooks=options.num_codebooks,
    )  # fmt: skip
    return Saying(reader, job, SETTLING_FRAMES + (prefixes[0].shape[1] if prefixes else 0))


def spoken(bundle: SpeakerBundle, saying: Saying) -> Iterator[Tensor]:
    """The sound of one frame [1920] at 24 kHz after the other, as it is made."""
    state, reader = bundle.codec.init_decoder_state(1), saying.reader
    for number, codes in enumerate(speak(bundle.model, saying.job)):
        pcm = bundle.codec.decode(codes[:, :, None], state=state)[0, 0].clamp(-1, 1).cpu()
        is_over = reader.end_frame is not None and number >= reader.end_frame + SETTLING_FRAMES
        if number >= saying.skip_frames and not is_over:
            yield pcm


def _conditions(bundle: SpeakerBundle, options: SayOptions) -> tuple[dict[str, str | Vectors | None], float]:
    """What the model is told, and how much it is to be guided beside that: models that learned to be guided by a label
    are not guided again."""
    parts = bundle.model.config.conditions.parts
    told: dict[str, str | Vectors | None] = {"control": "ok"} if "control" in parts else {}
    if _takes_voices(bundle):
        if not options.voices:
            raise ConfigError(f"this model needs --voice: a voice file of its own, or a name in {VOICES}")
        voices = [_voice(bundle, name) for name in options.voices]
        told["speaker_wavs"] = voices_as_vectors(voices, max_voices=MAX_VOICES)
    guidance = 2.0 if options.guidance is None else options.guidance
    if "cfg" not in parts:
        return told, guidance
    return told | {"cfg": f"{guidance:.1f}"}, 1.0


def _takes_voices(bundle: SpeakerBundle) -> bool:
    return "speaker_wavs" in bundle.model.config.conditions.parts


def _voice(bundle: SpeakerBundle, name: str) -> Tensor:
    """[T, dim] of a voice file, or of that name among the published voices."""
    file = Path(name) if name.endswith(".safetensors") else fetched_file(VOICES, name + bundle.voice_suffix)
    tensors = read_tensors(file)
    voice = tensors.get("speaker_wavs")
    if voice is None or voice.dim() != 3 or len(voice) != 1:
        raise ConfigError(f"{file}: holds {', '.join(tensors)}; expected speaker_wavs [1, dim, length], a voice")
    expected = bundle.model.config.conditions.parts["speaker_wavs"].dim
    if voice.shape[1] != expected:
        raise ConfigError(f"{file}: a voice of width {voice.shape[1]}, expected {expected}: it is of another model")
    return voice[0].T.float()


def _prefix(bundle: SpeakerBundle, voices: tuple[str, ...]) -> Tensor:
    """Codes [K, T] of a recording, which this model goes on from in its voice."""
    if len(voices) > 1:
        raise ConfigError(f"{len(voices)} voices: this model speaks in one, that of a recording it is given")
    file = Path(voices[0])
    wave = read_audio(file if file.is_file() else fetched_file(VOICES, voices[0]))[0]
    if len(wave) < (PREFIX_TAIL_FRAMES + 1) * FRAME_SAMPLES:
        raise ConfigError(f"{file}: {len(wave) / SAMPLE_RATE_HZ:.2f} s is too short for a voice; some 10 s are good")
    codes = bundle.codec.encode(wave[None, None].to(bundle.model.device))[0, :, :-PREFIX_TAIL_FRAMES]
    missing = bundle.model.config.num_codebooks - len(codes)
    return torch.nn.functional.pad(codes, (0, 0, 0, missing), value=-1)
