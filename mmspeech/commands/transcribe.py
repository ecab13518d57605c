"""`mmspeech transcribe`: the words of a recording with their times, by a delayed-streams speech to text model."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from mmspeech.audio.waveform import read_audio
from mmspeech.commands.common import check_device
from mmspeech.formats.listener import ListenerBundle, load_listener
from mmspeech.frames import FRAME_SAMPLES, SAMPLE_RATE_HZ, frames_to_seconds
from mmspeech.hub import fetched
from mmspeech.types import Word

MARGIN_SEC = 1.0  # of silence behind the delay, for the last word to be finished


def run_transcribe(audio: Path, model: str, *, as_json: bool, device: str) -> None:
    """Print the words of `audio`; with `as_json` one object a word, as soon as it is known."""
    place = check_device(device)
    wave = read_audio(audio)[0]
    bundle = load_listener(fetched(model), device=place)
    words = []
    for word in listen(bundle, wave, show=not as_json):
        words.append(word.text)
        if as_json:
            print(json.dumps({"word": word.text, "start_sec": word.start_sec, "end_sec": word.end_sec}), flush=True)
    if not as_json:
        print(" ".join(words))


def listen(bundle: ListenerBundle, wave: Tensor, *, show: bool = False) -> Iterator[Word]:
    """The words of wave [N] at 24 kHz, each when it is finished. Memory does not grow with the recording."""
    config = bundle.model.config
    lead = round(config.prefix_sec * SAMPLE_RATE_HZ)
    tail = round((config.delay_sec + MARGIN_SEC) * SAMPLE_RATE_HZ)
    padded = torch.nn.functional.pad(wave, (lead, tail + -(lead + len(wave) + tail) % FRAME_SAMPLES))
    device = bundle.model.temporal.text_linear.weight.device
    state, encoder = bundle.model.begin(1), bundle.codec.init_encoder_state(1)
    late_sec = config.prefix_sec + config.delay_sec
    pieces: list[int] = []
    start_sec = 0.0
    frames = padded.view(-1, FRAME_SAMPLES)
    shown = track(frames, "listening", console=Console(stderr=True), transient=True, disable=not show)
    for number, pcm in enumerate(shown):
        codes = bundle.codec.encode(pcm[None, None].to(device), state=encoder)
        token = int(bundle.model.step(codes[:, :, 0], state=state)[0])
        now_sec = frames_to_seconds(number) - late_sec
        if token not in (config.text_pad_id, config.text_epad_id):
            if pieces and bundle.tokenizer.piece(token).startswith(" "):
                yield _word(bundle, pieces, start_sec, now_sec)
                pieces = []
            start_sec = start_sec if pieces else now_sec
            pieces.append(token)
        elif token == config.text_epad_id and pieces:
            yield _word(bundle, pieces, start_sec, now_sec)
            pieces = []
    if pieces:
        yield _word(bundle, pieces, start_sec, frames_to_seconds(len(frames)) - late_sec)


def _word(bundle: ListenerBundle, pieces: list[int], start_sec: float, end_sec: float) -> Word:
    return Word(bundle.tokenizer.decode(pieces), round(max(start_sec, 0.0), 2), round(max(end_sec, 0.0), 2))
