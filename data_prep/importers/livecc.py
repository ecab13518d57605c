"""LiveCC: parts of YouTube videos with what is said over them, word by word in time (Live-CC-5M, Live-WhisperX-526K).

Files: live_cc_5m_with_seeks.jsonl or live_whisperx_526k_with_seeks.jsonl, lines of [{"role": "user", "content":
[{"type": "video", "video": "video/youtube/ID.mp4", "video_start": 16.8, "video_end": 158.8}, {"type": "text", "text",
"previous", "title", "category"}]}, {"role": "assistant", "content": [{"type": "text_stream", "text_stream":
[[16.8, 16.9, "all"], ...]}]}], times in seconds of the video; the last line is an index of the file, a list of numbers.
The videos, which the user has downloaded, are in the folder or in --media.
A record is the part of a video from meta.video_start to meta.video_end, and its captions: words up to the end of a
sentence or a pause, with times that count from the beginning of the part.
Licence: Apache-2.0 as the cards say, for research; the videos are their owners'. Where:
hf.co/datasets/chenjoya/Live-CC-5M, hf.co/datasets/chenjoya/Live-WhisperX-526K. All is train.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.importers.base import Context, Row, field, json_lines, one_file, short_hash, text, told
from data_prep.records import Record
from data_prep.steps import DroppedError
from mmspeech.config import ConfigError

LICENCE = "Apache-2.0"
PAUSE_SEC, LONGEST_SEC = 0.7, 12.0  # a caption ends before a pause, and is not longer
_ENDS = (".", "!", "?", "。", "！", "？")

Words = list[tuple[float, float, str]]


def rows(folder: Path, split: str) -> Iterator[Any]:
    for line in json_lines(one_file(folder, "*.jsonl")):
        if isinstance(line, list) and all(isinstance(one, int) for one in line):
            continue  # the index
        if isinstance(line, list):
            yield {"conversation": line}
        else:
            yield line if isinstance(line, ConfigError) else ConfigError("expected a list of two messages")


def key(row: Row) -> str:
    """Parts of one video may begin together, so the words count too."""
    video = _content(row, 0, "video")
    stem = field(video, "video").rpartition("/")[2].rpartition(".")[0]
    return f"{stem}-{short_hash(video, _content(row, 1, 'text_stream'))}"


def record(row: Row, context: Context) -> Record:
    video = _content(row, 0, "video")
    path = context.find(field(video, "video"))
    begin, end = (float(field(video, name, (int, float))) for name in ("video_start", "video_end"))
    if not 0 <= begin < end:
        raise ConfigError(f"video_start {begin}, video_end {end}; expected seconds, the end after the start")
    stream = field(_content(row, 1, "text_stream"), "text_stream", list)
    captions = [_caption(words) for words in phrases(_inside(stream, begin, end))]
    if not captions:
        raise DroppedError("empty text")
    asked = next((one for one in row["conversation"][0]["content"] if one.get("type") == "text"), {})
    meta = {name: asked.get(name) for name in ("title", "category", "previous")} | {"prompt": asked.get("text")}
    meta |= {"video_start": begin, "video_end": end}
    return context.record(key(row), visuals=[{"kind": "clip", "path": path}], captions=captions, meta=told(meta))


def phrases(words: Words) -> Iterator[Words]:
    """Words in groups: up to the end of a sentence, a pause, or LONGEST_SEC."""
    group: Words = []
    for word in words:
        if group and (word[0] - group[-1][1] > PAUSE_SEC or word[1] - group[0][0] > LONGEST_SEC):
            yield group
            group = []
        group.append(word)
        if word[2].endswith(_ENDS):
            yield group
            group = []
    if group:
        yield group


def _content(row: Row, message: int, kind: str) -> dict[str, Any]:
    messages = field(row, "conversation", list)
    if len(messages) <= message:
        raise ConfigError(f"{len(messages)} messages; expected the user's and the assistant's")
    for one in field(messages[message], "content", list):
        if field(one, "type") == kind:
            return one
    raise ConfigError(f"no content of type '{kind}' in message {message + 1}")


def _inside(stream: list[Any], begin: float, end: float) -> Words:
    """Words of the part, in its own time."""
    words: Words = []
    for one in stream:
        if not (isinstance(one, list) and len(one) == 3 and isinstance(one[2], str)):
            raise ConfigError(f"text_stream: expected [start, end, word], got {str(one)[:60]}")
        start_sec, end_sec, word = float(one[0]), float(one[1]), one[2].strip()
        if word and begin <= start_sec < end:
            words.append((start_sec - begin, min(max(end_sec, start_sec), end) - begin, word))
    return sorted(words, key=lambda word: word[0])


def _caption(words: Words) -> dict[str, Any]:
    said = text(" ".join(word for _, _, word in words))
    return {"text": said, "start_sec": round(words[0][0], 3), "end_sec": round(words[-1][1], 3)}
