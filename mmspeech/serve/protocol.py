"""Kyutai's binary messages: one byte of kind, then the payload.

Ours add to them and break none: a picture may come at any time, and so may words that the model is to know (TEXT from a
client); errors and metadata are sent, pings are answered, and with the query `audio=pcm16` the sound is plain samples
(24 kHz, mono, 16 bits, little endian) in place of Ogg/Opus.
"""

import json
from collections.abc import Mapping
from enum import IntEnum
from typing import Any, Protocol

import numpy as np
from pydantic import ValidationError

from mmspeech.config import ConfigError, GenerationConfig
from mmspeech.frames import SAMPLE_RATE_HZ


class Kind(IntEnum):
    """The first byte of a message; who sends it."""

    HANDSHAKE = 0x00  # server: now speak
    AUDIO = 0x01  # both
    TEXT = 0x02  # server: a piece, a leading space begins a word; client: words for the model to know
    CONTROL = 0x03  # client: 3 begins the call again; others mean nothing in full duplex
    METADATA = 0x04  # server: JSON
    ERROR = 0x05  # server: words for people
    PING = 0x06  # both; a client's is answered
    COLOURED_TEXT = 0x07  # server: 0..10, how far the eyes were open, then a piece
    IMAGE = 0x08  # client: the bytes of a picture's file; empty: see nothing any more
    RATING = 0x0A  # client: 1..5


class MessageError(ConfigError):
    """A message that cannot be understood; the words are for its sender."""


def parse(message: bytes) -> tuple[Kind | None, bytes]:
    """Kind and payload; kind None for one that is not known, which is to be passed over. MessageError when empty."""
    if not message:
        raise MessageError("an empty message; expected one byte of kind, then the payload")
    try:
        return Kind(message[0]), message[1:]
    except ValueError:
        return None, message[1:]


def pack(kind: Kind, payload: bytes = b"") -> bytes:
    """A message."""
    return bytes([kind]) + payload


def metadata(values: Mapping[str, Any]) -> bytes:
    """A METADATA message."""
    return pack(Kind.METADATA, json.dumps(values).encode())


def text_piece(piece: str, gate: float, *, coloured: bool) -> bytes:
    """A TEXT message, or a COLOURED_TEXT one."""
    if not coloured:
        return pack(Kind.TEXT, piece.encode())
    return pack(Kind.COLOURED_TEXT, bytes([round(10 * min(1.0, max(0.0, gate)))]) + piece.encode())


def sampling_of(query: Mapping[str, str], own: GenerationConfig, *, top_k_limit: int) -> GenerationConfig:
    """The checkpoint's sampling with what a client asks for (Kyutai's query names). MessageError names a bad value."""
    values = own.model_dump()
    names = {"text_topk": "text_top_k", "audio_topk": "audio_top_k"}
    for name in ("text_temperature", "audio_temperature", "pad_mult", *names):
        if name in query:
            values[names.get(name, name)] = query[name]
    try:
        wanted = GenerationConfig.model_validate(values, strict=False)
    except ValidationError as error:
        first = error.errors()[0]
        raise MessageError(f"{first['loc'][0]}: {first['msg']}, got {str(first['input'])[:40]!r}") from error
    limited = {name: min(getattr(wanted, name) or top_k_limit, top_k_limit) for name in names.values()}
    return wanted.model_copy(update=limited)


def seed_of(query: Mapping[str, str]) -> int | None:
    """`seed`, or Kyutai's `text_seed`; None where neither is given. MessageError for one that is no number."""
    given = query.get("seed", query.get("text_seed"))
    if given is None:
        return None
    if not (given.isascii() and given.isdigit() and len(given) < 19):
        raise MessageError(f"seed: expected a whole number, got {given[:40]!r}")
    return int(given)


def words_of(given: object, name: str, *, limit: int) -> str:
    """What a client says in words, without the space around it. MessageError for nothing, and for too much."""
    words = given.strip() if isinstance(given, str) else ""
    if not words:
        raise MessageError(f"{name}: expected words, got {str(given)[:40]!r}")
    if len(words) > limit:
        raise MessageError(f"{name}: {len(words)} characters; at most {limit} are taken")
    return words


class Sound(Protocol):
    """How sound travels. `decode` raises MessageError."""

    def decode(self, payload: bytes) -> np.ndarray: ...

    def encode(self, pcm: np.ndarray) -> bytes: ...


class OpusSound:
    """One continuous Ogg/Opus stream in each direction."""

    def __init__(self):
        import sphn

        self._reader, self._writer = sphn.OpusStreamReader(SAMPLE_RATE_HZ), sphn.OpusStreamWriter(SAMPLE_RATE_HZ)

    def decode(self, payload: bytes) -> np.ndarray:
        """Bytes of the stream, cut anywhere -> the samples they complete [N]."""
        try:
            return self._reader.append_bytes(payload)
        except (ValueError, OSError, RuntimeError) as error:
            raise MessageError(f"sound that is no Ogg/Opus stream ({error})") from error

    def encode(self, pcm: np.ndarray) -> bytes:
        """A frame [1920] -> the bytes that it adds to the stream."""
        return self._writer.append_pcm(np.ascontiguousarray(pcm, np.float32))


class PlainSound:
    """Samples of 16 bits, little endian."""

    def __init__(self):
        self._odd = b""

    def decode(self, payload: bytes) -> np.ndarray:
        """Bytes, cut anywhere -> samples [N] in -1..1."""
        payload = self._odd + payload
        whole = len(payload) // 2 * 2
        self._odd = payload[whole:]
        return np.frombuffer(payload[:whole], "<i2").astype(np.float32) / 32768

    def encode(self, pcm: np.ndarray) -> bytes:
        return (np.clip(pcm, -1, 1) * 32767).astype("<i2").tobytes()


SOUNDS = {"opus": OpusSound, "pcm16": PlainSound}


def sound_of(name: str) -> Sound:
    """How a client wants sound to travel. MessageError for a name that is not known."""
    if name not in SOUNDS:
        raise MessageError(f"audio: expected one of {', '.join(SOUNDS)}, got {name[:40]!r}")
    return SOUNDS[name]()
