"""`/v1/realtime`: a call in JSON events with the names of OpenAI's Realtime interface, as far as full duplex has them.

From the client: `session.update` {"session": {"temperature", "top_k", "seed", "instructions"}} before the first sound;
`input_audio_buffer.append` {"audio": base64 of 24 kHz mono 16-bit samples}; `input_image` {"image": base64 or a data
URL, "at_sec"?}; `input_image.clear`; `conversation.item.create` {"item": {"content": [{"type": "input_text",
"text"}]}}, words for the model to know. From the server: `session.created`, `session.updated`, `session.queue`
{"position"}, `response.audio.delta` and `response.text.delta` {"delta", "gate", "start_sec"}, `session.ended`
{"reason"}, `error` {"error": {"code", "message"}}. Both sides speak at once: there are no turns to commit, create or
cancel, and such events are answered with an error that says so.
"""

import base64
import binascii
import contextlib
import json
import math
from typing import TYPE_CHECKING, Any

from aiohttp import WSMsgType, web

from mmspeech.serve.call import CallEnd
from mmspeech.serve.line import Line, first_of
from mmspeech.serve.protocol import MessageError, PlainSound
from mmspeech.serve.worker import FullError

if TYPE_CHECKING:
    from mmspeech.serve.server import Desk

TURN_EVENTS = (
    "input_audio_buffer.commit", "input_audio_buffer.clear", "response.create", "response.cancel",
)  # fmt: skip
_SESSION_KEYS = {"temperature": ("text_temperature", "audio_temperature"), "top_k": ("text_topk", "audio_topk")}


class Realtime:
    """One connection."""

    WIRE_FACTOR = 1.5  # base64 in JSON

    def __init__(self, desk: "Desk", socket: web.WebSocketResponse, request: web.Request):
        self._desk, self._socket = desk, socket
        self._address = request.remote or ""
        self._sound_in, self._sound_out = PlainSound(), PlainSound()
        self._asked: dict[str, str] = {}  # in /api/chat's names
        self._sampling, self._seed = desk.sampling({}), desk.seed({})

    async def run(self) -> None:
        """The whole call; nothing is raised to the server but its own faults."""
        try:
            async with self._desk.call(
                self._address, sampling=self._sampling, seed=self._seed, tell_place=self._tell_place,
                complain=self._complain,
            ) as line:  # fmt: skip
                await self._send("session.created", session=self._desk.describe(self._sampling, self._seed))
                await first_of(self._listen(line), self._reply(line), line.watch())
        except FullError as error:
            await self._complain(str(error), code="full")

    async def _listen(self, line: Line) -> None:
        async for message in self._socket:
            try:
                if message.type != WSMsgType.TEXT:
                    raise MessageError("binary messages are not understood here; expected JSON events")
                await self._take(_event(message.data), line)
            except MessageError as error:
                self._desk.metrics.bad_messages.inc()
                await self._complain(str(error))
        line.hang_up("the caller hung up")

    async def _take(self, event: dict[str, Any], line: Line) -> None:
        kind = event["type"]
        match kind:
            case "input_audio_buffer.append":
                payload = _decoded(event, "audio")
                if len(payload) > self._desk.config.message_bytes:
                    raise MessageError(
                        f"{len(payload)} bytes; at most {self._desk.config.message_bytes} of sound at once"
                    )
                line.hear(self._sound_in.decode(payload))
            case "input_image":
                at_sec = event.get("at_sec")
                if at_sec is not None and not (isinstance(at_sec, int | float) and math.isfinite(at_sec)):
                    raise MessageError("at_sec: expected seconds of the call")
                line.see(_decoded(event, "image"), at_sec)
            case "input_image.clear":
                line.see(b"")
            case "conversation.item.create":
                line.tell(self._desk.words(_text_of(event.get("item")), kind))
            case "session.update":
                await self._update(event.get("session"), line)
            case _ if kind in TURN_EVENTS:
                raise MessageError(f"{kind}: both sides speak at once here, there are no turns; keep sending sound")
            case _:
                raise MessageError(f"{str(kind)[:60]!r}: no such event; see the documentation of /v1/realtime")

    async def _update(self, session: Any, line: Line) -> None:
        if not isinstance(session, dict):
            raise MessageError("session.update: expected an object `session`")
        if line.call.counts.steps or line.call.waiting()[0]:
            raise MessageError("session.update: the call has begun; settings are of a whole call")
        known = {*_SESSION_KEYS, "seed", "instructions"}
        query = {name: str(session[key]) for key, names in _SESSION_KEYS.items() if key in session for name in names}
        query |= {"seed": str(session["seed"])} if "seed" in session else {}
        if not known & session.keys():
            raise MessageError(f"session.update: expected some of {', '.join(sorted(known))}")
        if "instructions" in session:
            line.call.role = self._desk.words(session["instructions"], "instructions")
        self._sampling = line.call.sampling = self._desk.sampling(self._asked | query)
        self._asked |= query
        if "seed" in query:
            self._seed = line.call.seed = self._desk.seed(query)
        await self._send("session.updated", session=self._desk.describe(self._sampling, self._seed))

    async def _reply(self, line: Line) -> None:
        async for event in line.events():
            if isinstance(event, CallEnd):
                if event.fault:
                    await self._complain(event.reason, code="server_error")
                await self._send("session.ended", reason=event.reason)
                return
            sound = base64.b64encode(self._sound_out.encode(event.pcm.numpy())).decode()
            await self._send("response.audio.delta", delta=sound)
            if event.text is not None:
                times = {"gate": round(event.gate, 4), "start_sec": round(event.start_sec, 4)}
                await self._send("response.text.delta", delta=event.text, **times)

    async def _tell_place(self, ahead: int) -> None:
        await self._send("session.queue", position=ahead + 1)

    async def _complain(self, words: str, *, code: str = "invalid_event") -> None:
        await self._send("error", error={"code": code, "message": words})

    async def _send(self, kind: str, **values: Any) -> None:
        if not self._socket.closed:
            with contextlib.suppress(ConnectionError):
                await self._socket.send_str(json.dumps({"type": kind, **values}))


def _text_of(item: Any) -> str | None:
    """The words of a conversation item; None where it is none, or has something else in it."""
    content = item.get("content") if isinstance(item, dict) else None
    parts = content if isinstance(content, list) and content else [None]
    if any(not isinstance(part, dict) or not isinstance(part.get("text"), str) for part in parts):
        return None
    return " ".join(part["text"] for part in parts)


def _event(text: str) -> dict[str, Any]:
    try:
        event = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise MessageError("not JSON; expected an event such as {'type': 'input_audio_buffer.append', ...}") from error
    if not isinstance(event, dict) or not isinstance(event.get("type"), str):
        raise MessageError("an event is a JSON object with a `type`")
    return event


def _decoded(event: dict[str, Any], key: str) -> bytes:
    """The bytes of base64 under `key`, or of a data URL there."""
    given = event.get(key)
    if not isinstance(given, str):
        raise MessageError(f"{event['type']}: expected base64 under {key!r}")
    try:
        return base64.b64decode(given.rpartition(",")[2] if given.startswith("data:") else given, validate=True)
    except (binascii.Error, ValueError) as error:
        raise MessageError(f"{event['type']}: {key!r} is not base64") from error
