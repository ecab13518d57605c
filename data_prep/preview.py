"""`preview`: one call to look at and listen to: its wav, its picture, and a page with every word on the frame grid."""

import base64
import html
import math
import shutil
from pathlib import Path

from data_prep.calls import Call, Transcript, read_manifest, read_transcript
from data_prep.files import write_atomic
from mmspeech.audio.waveform import FRAME_RATE_HZ
from mmspeech.config import ConfigError

FRAMES_PER_ROW = 25  # two seconds
_PAGE = """<!doctype html><meta charset="utf-8"><title>{name}</title>
<style>body{{font:14px sans-serif;margin:2em}} table{{border-collapse:collapse;margin:.6em 0}} td,th{{border:1px solid #ccc;
width:3.4em;height:1.4em;font-weight:normal;text-align:left;overflow:visible;white-space:nowrap}} th{{border:0;color:#888;
font-size:11px}} .user{{background:#eee}} .main{{background:#cfe8ff}} img{{image-rendering:pixelated;width:288px}}</style>
<h1>{name}</h1><p>{facts}</p>{picture}<p><audio controls src="{audio}"></audio> left: the model, right: the user</p>
<h2>Turns</h2><ol>{turns}</ol><h2>Words, one column per frame of 80 ms</h2>{grid}
"""


def grid(transcript: Transcript, num_frames: int) -> dict[str, list[str]]:
    """Speaker -> [T] texts: a word where it starts, "-" while it sounds, "" else."""
    rows = {speaker: [""] * num_frames for speaker in ("user", "main")}
    for word in transcript.words:
        first, last = (math.floor(sec * FRAME_RATE_HZ) for sec in (word.start_sec, word.end_sec))
        row = rows[word.speaker]
        for frame in range(first + 1, min(last + 1, num_frames)):
            row[frame] = row[frame] or "-"
        if first < num_frames:
            row[first] = f"{row[first].strip('-')} {word.text}".strip()
    return rows


def preview(data: Path, out: Path, *, call: str | None = None) -> list[str]:
    """Write NAME.wav, NAME.html and pictures of one call (the first, or the one named) to `out`.

    Returns the lines to print: one per frame in which a word starts. Raises ConfigError for a call that is not there.
    """
    calls = read_manifest(data)
    chosen = next((one for one in calls if call in (None, one.id)), None)
    if chosen is None:
        raise ConfigError(f"{data}: no call {call!r}; expected one of {len(calls)}, such as {calls[0].id!r}")
    if not chosen.audio.is_file():
        raise ConfigError(f"{chosen.audio}: not there; run the step that makes it again")
    transcript = read_transcript(chosen)
    rows = grid(transcript, math.ceil(chosen.duration_sec * FRAME_RATE_HZ))
    out.mkdir(parents=True, exist_ok=True)
    name = chosen.audio.stem
    shutil.copyfile(chosen.audio, out / f"{name}.wav")
    for number, visual in enumerate(transcript.visuals):
        write_atomic(out / f"{name}{f'-{number}' if number else ''}.png", visual.image)
    write_atomic(out / f"{name}.html", _page(chosen, transcript, rows).encode())
    return _lines(rows)


def _lines(rows: dict[str, list[str]]) -> list[str]:
    lines = [f"{'frame':>5} {'second':>6}  {'user':<16} model"]
    for frame, (user, main) in enumerate(zip(rows["user"], rows["main"], strict=True)):
        if user.strip("-") or main.strip("-"):
            lines.append(f"{frame:>5} {frame / FRAME_RATE_HZ:>6.2f}  {user:<16} {main}".rstrip())
    return lines


def _page(call: Call, transcript: Transcript, rows: dict[str, list[str]]) -> str:
    strips = []
    for start in range(0, len(rows["user"]), FRAMES_PER_ROW):
        frames = range(start, min(start + FRAMES_PER_ROW, len(rows["user"])))
        head = "".join(f"<th>{frame / FRAME_RATE_HZ:.2f}</th>" for frame in frames)
        strips.append(f"<table><tr><th></th>{head}</tr>{_row('user', rows, frames)}{_row('main', rows, frames)}</table>")
    pictures = [base64.b64encode(visual.image).decode() for visual in transcript.visuals]
    facts = {key: transcript.meta[key] for key in ("split", "voice") if key in transcript.meta}
    return _PAGE.format(
        name=html.escape(call.id),
        facts=html.escape(f"{call.duration_sec:.2f} s {facts}"),
        picture="".join(f'<img alt="what the model sees" src="data:image/png;base64,{data}">' for data in pictures),
        audio=html.escape(call.audio.name),
        turns="".join(_turn(turn) for turn in transcript.meta.get("turns", [])),
        grid="".join(strips),
    )


def _row(speaker: str, rows: dict[str, list[str]], frames: range) -> str:
    label = {"user": "user", "main": "model"}[speaker]
    cells = (rows[speaker][frame] for frame in frames)
    marked = (f'<td class="{speaker}">{html.escape(text.strip("-"))}</td>' if text else "<td></td>" for text in cells)
    return f"<tr><th>{label}</th>{''.join(marked)}</tr>"


def _turn(turn: dict) -> str:
    cut = " (interrupted)" if turn["interrupted"] else ""
    said = f"{turn['question_start_sec']:.2f} s {turn['question']} / {turn['answer_start_sec']:.2f} s {turn['answer']}{cut}"
    return f"<li>{html.escape(said)}</li>"
