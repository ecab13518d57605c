"""`preview`: one call to look at and listen to: its wav, what is shown in it, and a page with every word on the frame
grid."""

import base64
from collections import defaultdict
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import torch

from data_prep.calls import find_manifests, manifest_lines, parse_line, read_transcript
from data_prep.files import write_atomic, write_wav
from mmspeech.audio.codec import codec_hash
from mmspeech.audio.waveform import resample
from mmspeech.checkpoint import load_codec
from mmspeech.config import ConfigError
from mmspeech.data.collate import speaking_frames
from mmspeech.data.shards import SIDECAR, ShardSet, speaker_rows
from mmspeech.frames import FRAME_SAMPLES, SAMPLE_RATE_HZ, frames_to_seconds, seconds_to_frames
from mmspeech.tokens.text import EPAD_ID, PAD_ID, TextTokenizer, words_to_frames
from mmspeech.types import Visual, Word

FRAMES_PER_STRIP = 25  # two seconds
_ENVELOPE_POINTS = 400  # of a strip's waveform
_WAVE_HEIGHT_PX = 34
_SIDES = (("user", "user", 1), ("main", "model", 0))  # speaker, label, channel
_MIME = {b"\x89PNG": "image/png", b"\xff\xd8\xff\xe0": "image/jpeg", b"RIFF": "image/webp", b"GIF8": "image/gif"}


@dataclass
class Cell:
    """What the text stream holds in one frame: the piece to show and whether it is text, epad or pad."""

    text: str
    kind: str


@dataclass
class Shown:
    """What a page shows. wave: [N, 2] float32 at 24 kHz, the model and the user; None: there is no sound."""

    id: str
    duration_sec: float
    wave: np.ndarray | None
    words: list[Word]
    visuals: list[Visual]
    meta: dict[str, Any]


def preview(
    data: Path, out: Path, *, call: str | None = None, tokenizer: Path | None = None, codec: Path | None = None
) -> list[str]:
    """Write NAME.wav, its pictures and clips, and NAME.html (which holds all) of one call, the first or the one named.

    data: calls, or a shard set, whose sound is decoded with `codec` (None: not at all). With a tokenizer file the page
    shows the model's text tokens too. Returns the lines to print: one per frame in which something is said. Raises
    ConfigError for a call that is not there or cannot be read.
    """
    shown = _of_shards(data, call, codec) if (data / SIDECAR).is_file() else _of_calls(data, call)
    pieces = TextTokenizer(tokenizer) if tokenizer else None
    num_frames = seconds_to_frames(shown.duration_sec, round_up=True)
    tokens = token_cells(shown.words, num_frames, pieces) if pieces else None
    out.mkdir(parents=True, exist_ok=True)
    name = Path(shown.id).name
    if shown.wave is not None:
        write_wav(out / f"{name}.wav", shown.wave)
    for number, visual in enumerate(shown.visuals):
        suffix = _mime(visual).partition("/")[2].replace("jpeg", "jpg")
        write_atomic(out / f"{name}{f'-{number}' if number else ''}.{suffix}", visual.data)
    sound = (out / f"{name}.wav").read_bytes() if shown.wave is not None else None
    write_atomic(out / f"{name}.html", _page(shown, sound, tokens, num_frames).encode())
    return _lines(shown.words, tokens)


def _of_calls(data: Path, call: str | None) -> Shown:
    for manifest in find_manifests(data):
        for number, line in manifest_lines(manifest):
            entry = parse_line(line, where=f"{manifest}:{number}", folder=manifest.parent)
            if call in (None, entry.id):
                wave, rate_hz = _read(entry.audio)
                told = read_transcript(entry)
                own = resample(torch.from_numpy(wave.T.copy()), rate_hz, SAMPLE_RATE_HZ).numpy().T
                return Shown(entry.id, len(wave) / rate_hz, own, told.words, told.visuals, told.meta)
    raise ConfigError(f"{data}: no call {call!r} in it" if call else f"{data}: no calls in it")


def _of_shards(data: Path, call: str | None, codec_dir: Path | None) -> Shown:
    shards = ShardSet(data)
    index = next((number for number, name in enumerate(shards.ids()) if call in (None, name)), None)
    if index is None:
        raise ConfigError(f"{data}: no call {call!r} in it")
    sample, wave = shards[index], None
    if codec_dir is not None:
        codec = load_codec(codec_dir)
        if codec_hash(codec) != shards.info.codec.hash:
            raise ConfigError(f"{codec_dir}: not the codec of {data} ({shards.info.codec.hash}); give that one")
        with torch.no_grad():
            wave = codec.decode(torch.stack(speaker_rows(sample.codes.long())))[:, 0].numpy().T
    seconds = frames_to_seconds(sample.codes.shape[1])
    return Shown(sample.id, seconds, wave, sample.words, sample.visuals, sample.meta)


def token_cells(words: list[Word], num_frames: int, tokenizer: TextTokenizer) -> list[Cell]:
    """The model's text stream, one cell per frame."""
    special = {PAD_ID: Cell("·", "pad"), EPAD_ID: Cell("▸", "epad")}
    frames = words_to_frames(words, num_frames, tokenizer).tolist()
    return [special.get(token) or Cell(tokenizer.piece(token).strip(), "text") for token in frames]


def _read(path: Path) -> tuple[np.ndarray, int]:
    """[N, 2] float32 and its rate in Hz."""
    import soundfile

    try:
        wave, rate_hz = soundfile.read(str(path), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise ConfigError(f"{path}: not there or not audio ({error}); run the step that makes it again") from error
    if wave.shape[1] != 2 or not len(wave):
        got = f"{len(wave)} samples, {wave.shape[1]} channels"
        raise ConfigError(f"{path}: {got}; expected stereo, the model left and the user right")
    return wave, rate_hz


def _lines(words: list[Word], tokens: list[Cell] | None) -> list[str]:
    """One line per frame in which a word starts or the text stream holds text."""
    texts = {"user": defaultdict(list), "main": defaultdict(list), "token": defaultdict(list)}
    for word in words:
        texts[word.speaker][_frame(word)].append(word.text)
    for frame, cell in enumerate(tokens or []):
        if cell.kind == "text":
            texts["token"][frame].append(cell.text)
    user, model, token = (texts[key] for key in ("user", "main", "token"))
    lines = [f"{'frame':>5} {'second':>6}  {'user':<18} {'model':<18} {'text stream' if tokens else ''}".rstrip()]
    for frame in sorted({*user, *model, *token}):
        columns = (" ".join(column[frame]) for column in (user, model, token))
        shown = "{:<18} {:<18} {}".format(*columns)
        lines.append(f"{frame:>5} {frames_to_seconds(frame):>6.2f}  {shown}".rstrip())
    return lines


def _page(shown: Shown, sound: bytes | None, tokens: list[Cell] | None, num_frames: int) -> str:
    pictures = [f"{_tag(visual)}<br>from {visual.start_sec:.2f} s<br>" for visual in shown.visuals]
    facts = [f"{key} {shown.meta[key]}" for key in ("split", "source", "licence", "voice") if key in shown.meta]
    told = [*map(_turn, shown.meta.get("turns", [])), *map(_said, shown.meta.get("said", []))]
    legend = "Click a word to hear it." if sound else "No sound: give --codec to decode it."
    legend += " Text stream: ▸ EPAD (a word is about to begin), · PAD (nothing)." if tokens else ""
    legend += (
        " Loss: ■ the model's sound is learned here, elsewhere in a share of frames (data.silent_share); text always."
    )
    player = f'<audio controls src="{_data_uri("audio/wav", sound)}"></audio>' if sound else "<audio></audio>"
    template = Template(Path(__file__).with_suffix(".html").read_text(encoding="utf-8"))
    return template.substitute(
        name=escape(shown.id),
        columns=FRAMES_PER_STRIP,
        pictures="".join(pictures) or "nothing is shown: a blind call",
        player=player,
        facts=escape("; ".join([f"{shown.duration_sec:.2f} s", *facts])),
        turns="".join(f"<li>{escape(line)}</li>" for line in told),
        legend=legend,
        strips="".join(_strip(start, num_frames, shown, tokens) for start in range(0, num_frames, FRAMES_PER_STRIP)),
    )


def _strip(start: int, num_frames: int, shown: Shown, tokens: list[Cell] | None) -> str:
    """Two seconds: the time, the waves, the words of both sides, the text stream and the loss mask, in the page's
    grid."""
    frames = range(start, min(start + FRAMES_PER_STRIP, num_frames))
    parts = [_label("second")]
    parts += [_cell(f"{frames_to_seconds(frame):.2f}", "time", frame - start, frame) for frame in frames]
    for speaker, label, channel in _SIDES:
        parts.append(_label(label))
        if shown.wave is not None:
            first, last = start * FRAME_SAMPLES, (start + FRAMES_PER_STRIP) * FRAME_SAMPLES
            parts += [_envelope(shown.wave[first:last, channel], last - first, speaker), _label("")]
        parts += [_word(word, start) for word in shown.words if word.speaker == speaker and _frame(word) in frames]
    if tokens:
        parts.append(_label("text"))
        parts += [_cell(tokens[f].text, f"token {tokens[f].kind}", f - start, f) for f in frames]
    learned = speaking_frames(shown.words, num_frames, speaker="main")
    parts.append(_label("loss"))
    parts += [_cell("■", "token loss", f - start, f) for f in frames if learned[f]]
    return f'<div class="strip">{"".join(parts)}</div>'


def _frame(word: Word) -> int:
    return seconds_to_frames(word.start_sec)


def _label(text: str) -> str:
    return f'<div class="label">{text}</div>'


def _cell(text: str, kind: str, column: int, frame: int) -> str:
    return f'<div class="{kind}" data-frame="{frame}" style="grid-column:{column + 2}">{escape(text)}</div>'


def _word(word: Word, start: int) -> str:
    """A box from the frame in which a word starts up to the one in which it ends."""
    first = _frame(word) - start
    after = min(seconds_to_frames(word.end_sec) - start, FRAMES_PER_STRIP)
    times = f"{word.start_sec:.3f} to {word.end_sec:.3f} s"
    style = f"grid-column:{first + 2} / {max(first + 1, after) + 2}"
    sec = f"{word.start_sec:.3f}"
    text = escape(word.text)
    return f'<div class="word {word.speaker}" style="{style}" data-sec="{sec}" title="{times}">{text}</div>'


def _envelope(wave: np.ndarray, length: int, speaker: str) -> str:
    """[N] -> a small drawing of its loudness over `length` samples."""
    colour = {"user": "#d08a3a", "main": "#3a86d0"}[speaker]
    edges = np.linspace(0, length, _ENVELOPE_POINTS + 1).astype(int)
    loudness = [np.abs(wave[a:b]).max(initial=0.0) for a, b in zip(edges, edges[1:], strict=False)]
    middle = _WAVE_HEIGHT_PX / 2
    top = [f"{x} {middle - min(float(v), 1) * middle:.1f}" for x, v in enumerate(loudness)]
    bottom = [f"{x} {middle + min(float(v), 1) * middle:.1f}" for x, v in enumerate(loudness)]
    box = f'viewBox="0 0 {_ENVELOPE_POINTS} {_WAVE_HEIGHT_PX}" preserveAspectRatio="none"'
    points = ",".join([*top, *reversed(bottom)])
    return f'<svg class="wave" width="100%" {box}><polygon fill="{colour}" points="{points}"/></svg>'


def _turn(turn: dict) -> str:
    answers = f"{turn['answer']} [{' | '.join(turn['answers'])}]" + (" (interrupted)" if turn["interrupted"] else "")
    told = [f" → {c['start_sec']:.2f} s {c['text']} ({c['event_sec']:.2f} s)" for c in turn.get("comments", [])]
    asked = f"{turn['question_start_sec']:.2f} s {turn['question']} → {turn['answer_start_sec']:.2f} s {answers}"
    return asked + "".join(told)


def _said(turn: dict) -> str:
    interrupted = " (interrupted)" if turn["interrupted"] else ""
    who = "user" if turn["speaker"] == "user" else "model"
    return f"{turn['start_sec']:.2f} s {who}: {turn['text']}{interrupted}"


def _tag(visual: Visual) -> str:
    source = f'src="{_data_uri(_mime(visual), visual.data)}"'
    if visual.kind == "clip":
        return f'<video controls loop muted data-sec="{visual.start_sec:.3f}" {source}></video>'
    return f'<img alt="what the model sees" {source}>'


def _mime(visual: Visual) -> str:
    if visual.kind == "clip":
        return "video/mp4" if visual.data[4:8] == b"ftyp" else "video/webm"
    return _MIME.get(visual.data[:4], "image/png")


def _data_uri(mime: str, data: bytes) -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"
