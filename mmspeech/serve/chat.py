"""`/api/chat`: a call in Kyutai's binary messages (see mmspeech.serve.protocol)."""

import asyncio
import contextlib
import json
import logging
from typing import TYPE_CHECKING

from aiohttp import WSMsgType, web

from mmspeech.serve import protocol
from mmspeech.serve.call import CallEnd
from mmspeech.serve.line import Line, first_of
from mmspeech.serve.protocol import Kind, MessageError, Sound, pack
from mmspeech.serve.worker import FullError

if TYPE_CHECKING:
    from mmspeech.serve.server import Desk

log = logging.getLogger("mmspeech.serve")


class Chat:
    """One connection."""

    WIRE_FACTOR = 1.0  # a message is as long as what is in it

    def __init__(self, desk: "Desk", socket: web.WebSocketResponse, request: web.Request):
        self._desk, self._socket, self._query = desk, socket, request.query
        self._address = request.remote or ""
        self._coloured = False

    async def run(self) -> None:
        """The whole call; nothing is raised to the server but its own faults."""
        try:
            sound = protocol.sound_of(self._query.get("audio", "opus"))
            sampling = self._desk.sampling(self._query)
            seed = self._desk.seed(self._query)
            asked = self._query.get("text_prompt")  # PersonaPlex's name
            role = self._desk.words(asked, "text_prompt") if asked else None
        except MessageError as error:
            await self._complain(str(error))
            return
        try:
            async with self._desk.call(
                self._address, sampling=sampling, seed=seed, role=role, tell_place=self._tell_place,
                complain=self._complain,
            ) as line:  # fmt: skip
                await self._send(protocol.metadata(self._desk.describe(sampling, seed)))
                await self._talk(line, sound)
        except FullError as error:
            await self._complain(str(error))

    async def _talk(self, line: Line, sound: Sound) -> None:
        first = await self._first_message()
        if first is not None:
            self._coloured = first[:1] == bytes([Kind.IMAGE])
            await self._take(first, line, sound)
            await line.seen()
        await self._send(pack(Kind.HANDSHAKE))
        await first_of(self._listen(line, sound), self._reply(line, sound), line.watch())

    async def _first_message(self) -> bytes | None:
        """What the client says before it is told to speak: a picture, if it has one."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._desk.config.handshake_sec):
                message = await self._socket.receive()
                if message.type == WSMsgType.BINARY:
                    return message.data
        return None

    async def _listen(self, line: Line, sound: Sound) -> None:
        async for message in self._socket:
            if message.type != WSMsgType.BINARY:
                await self._complain("text messages are not understood here; expected binary ones")
                continue
            await self._take(message.data, line, sound)
        line.hang_up("the caller hung up")

    async def _take(self, message: bytes, line: Line, sound: Sound) -> None:
        try:
            kind, payload = protocol.parse(message)
            if kind is not Kind.IMAGE and len(message) > self._desk.config.message_bytes:
                raise MessageError(f"{len(message)} bytes; at most {self._desk.config.message_bytes} are taken at once")
            if kind is Kind.AUDIO:
                line.hear(sound.decode(payload))
            elif kind is Kind.IMAGE:
                line.see(payload)
            elif kind is Kind.TEXT:
                line.tell(self._desk.words(payload.decode("utf-8", "replace"), "text"))
            elif kind is Kind.PING:
                await self._send(pack(Kind.PING))
            elif kind is Kind.RATING:
                log.info(json.dumps({"event": "rating", "rating": payload[:1].hex()}))
        except MessageError as error:
            self._desk.metrics.bad_messages.inc()
            await self._complain(str(error))

    async def _reply(self, line: Line, sound: Sound) -> None:
        async for event in line.events():
            if isinstance(event, CallEnd):
                if event.fault or event.reason != "the caller hung up":
                    await self._complain(event.reason)
                return
            await self._send(pack(Kind.AUDIO, sound.encode(event.pcm.numpy())))
            if event.text is not None:
                await self._send(protocol.text_piece(event.text, event.gate, coloured=self._coloured))

    async def _tell_place(self, ahead: int) -> None:
        await self._send(protocol.metadata({"queue": ahead + 1}))

    async def _complain(self, words: str) -> None:
        await self._send(pack(Kind.ERROR, words.encode()))

    async def _send(self, message: bytes) -> None:
        if not self._socket.closed:
            with contextlib.suppress(ConnectionError):
                await self._socket.send_bytes(message)
