"""`mmspeech transcribe`: the words of a recording with their times, by a delayed-streams speech to text model."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
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
# Of the heads that tell pauses, the one Kyutai's own programs go by; its class 0 says that the speaker is done.
TURN_HEAD, TURN_CLASS, TURN_PROBABILITY = 2, 0, 0.5


@dataclass(frozen=True)
class TurnEnd:
    """The speaker seems to be done, and it is somebody else's turn; told without the delay of words."""

    at_sec: float


def run_transcribe(audio: Path, model: str, *, as_json: bool, device: str) -> None:
    """Print the words of `audio`; with `as_json` one object a word and a turn's end, as soon as it is known."""
    place = check_device(device)
    wave = read_audio(audio)[0]
    bundle = load_listener(fetched(model), device=place)
    words = []
    for heard in listen(bundle, wave, show=not as_json):
        if isinstance(heard, Word):
            words.append(heard.text)
        if as_json:
            print(json.dumps(_told(heard)), flush=True)
    if not as_json:
        print(" ".join(words))


def _told(heard: Word | TurnEnd) -> dict[str, str | float]:
    if isinstance(heard, TurnEnd):
        return {"turn_end_sec": heard.at_sec}
    return {"word": heard.text, "start_sec": heard.start_sec, "end_sec": heard.end_sec}


def listen(bundle: ListenerBundle, wave: Tensor, *, show: bool = False) -> Iterator[Word | TurnEnd]:
    """The words of wave [N] at 24 kHz, each when it is finished, and, from models with heads for it, the ends of turns,
    each once before the next word. Memory does not grow with the recording."""
    config = bundle.model.config
    lead = round(config.prefix_sec * SAMPLE_RATE_HZ)
    tail = round((config.delay_sec + MARGIN_SEC) * SAMPLE_RATE_HZ)
    padded = torch.nn.functional.pad(wave, (lead, tail + -(lead + len(wave) + tail) % FRAME_SAMPLES))
    device = bundle.model.temporal.text_linear.weight.device
    state, encoder = bundle.model.begin(1), bundle.codec.init_encoder_state(1)
    late_sec = config.prefix_sec + config.delay_sec
    pieces: list[int] = []
    start_sec, is_turn = 0.0, False
    frames = padded.view(-1, FRAME_SAMPLES)
    shown = track(frames, "listening", console=Console(stderr=True), transient=True, disable=not show)
    for number, pcm in enumerate(shown):
        codes = bundle.codec.encode(pcm[None, None].to(device), state=encoder)
        ids, pauses = bundle.model.step(codes[:, :, 0], state=state)
        token, now_sec = int(ids), frames_to_seconds(number) - late_sec
        if is_turn and _is_done(pauses):
            is_turn = False
            yield TurnEnd(round(frames_to_seconds(number + 1) - config.prefix_sec, 2))
        if token not in (config.text_pad_id, config.text_epad_id):
            if pieces and bundle.tokenizer.piece(token).startswith(" "):
                yield _word(bundle, pieces, start_sec, now_sec)
                pieces = []
            start_sec = start_sec if pieces else now_sec
            pieces.append(token)
            is_turn = True
        elif token == config.text_epad_id and pieces:
            yield _word(bundle, pieces, start_sec, now_sec)
            pieces = []
    if pieces:
        yield _word(bundle, pieces, start_sec, frames_to_seconds(len(frames)) - late_sec)


def _is_done(pauses: list[Tensor]) -> bool:
    return len(pauses) > TURN_HEAD and float(pauses[TURN_HEAD][0, TURN_CLASS]) > TURN_PROBABILITY


def _word(bundle: ListenerBundle, pieces: list[int], start_sec: float, end_sec: float) -> Word:
    return Word(bundle.tokenizer.decode(pieces), round(max(start_sec, 0.0), 2), round(max(end_sec, 0.0), 2))
