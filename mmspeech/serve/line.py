"""A call from the side of a connection: what the worker gives comes out in order, what the caller sends goes in."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from mmspeech.config import GenerationConfig
from mmspeech.frames import frames_to_seconds
from mmspeech.serve.call import Call, CallEnd
from mmspeech.serve.crew import Crew
from mmspeech.serve.protocol import MessageError
from mmspeech.serve.session import StepOut
from mmspeech.serve.settings import ServeConfig
from mmspeech.serve.worker import Worker
from mmspeech.vision.image import ImageError, load_image

OUTBOX_STEPS = 50  # four seconds; a reader that is further behind has left
LAST_WORDS_SEC = 0.5

log = logging.getLogger("mmspeech.serve")


class Line:
    """One call of a connection. Use as `async with`; iterate over it for what comes out, until the call ends."""

    def __init__(
        self,
        worker: Worker | Crew,
        config: ServeConfig,
        *,
        pool: ThreadPoolExecutor,
        sampling: GenerationConfig | None,
        seed: int,
        role: str | None = None,
        complain: Callable[[str], Awaitable[None]],
    ):
        self._worker, self._config, self._pool = worker, config, pool
        self._loop = asyncio.get_running_loop()
        self._outbox: asyncio.Queue[StepOut | CallEnd] = asyncio.Queue()
        self._complain, self._ended = complain, asyncio.Event()
        self._decoding: asyncio.Task | None = None
        self._newest: tuple[bytes, float | None] | None = None
        self.last_sound = self.began = time.monotonic()
        self.shown = self.dropped = self.broken = 0
        self._told_until = self.began
        self.listeners: list[Callable[[StepOut | CallEnd], None]] = []
        self.call = Call(self._deliver, sampling=sampling, seed=seed, role=role)

    async def __aenter__(self) -> "Line":
        self._worker.open(self.call)
        return self

    async def __aexit__(self, *_) -> None:
        self._worker.close(self.call)
        if self._decoding is not None:
            self._decoding.cancel()

    def _deliver(self, event: StepOut | CallEnd) -> None:
        """On the worker's thread."""
        self._loop.call_soon_threadsafe(self._take, event)

    def _take(self, event: StepOut | CallEnd) -> None:
        for listen in self.listeners:
            listen(event)
        if self._outbox.qsize() == OUTBOX_STEPS:
            self.hang_up("the replies were not read")
        if isinstance(event, CallEnd):
            self._ended.set()
        if self._outbox.qsize() < OUTBOX_STEPS or isinstance(event, CallEnd):
            self._outbox.put_nowait(event)

    async def events(self) -> AsyncIterator[StepOut | CallEnd]:
        """Steps as they come; the CallEnd is the last."""
        while True:
            event = await self._outbox.get()
            yield event
            if isinstance(event, CallEnd):
                return

    def hear(self, pcm: np.ndarray) -> None:
        """What the caller said."""
        if len(pcm):
            self.last_sound = time.monotonic()
            self.call.feed(pcm)

    def tell(self, words: str) -> None:
        """Let the model know something. MessageError while it still takes in what it was told before."""
        # A piece is a letter or more, and takes a frame.
        now, takes_sec = time.monotonic(), frames_to_seconds(len(words))
        until = max(now, self._told_until) + takes_sec
        if until - now > frames_to_seconds(self._config.told_characters):
            raise MessageError("the model is still being told what came before; send this again in a while")
        self._told_until = until
        self.call.tell(words)

    def hang_up(self, reason: str) -> None:
        """End the call, with words for the caller."""
        self._worker.close(self.call, reason)

    async def watch(self) -> None:
        """Until the call has ended and its last words had time to leave; end it when its time is over."""
        while not self._ended.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(1.0, self._config.idle_sec)):
                    await self._ended.wait()
            if (reason := self._overdue()) is not None:
                self.hang_up(reason)
        await asyncio.sleep(LAST_WORDS_SEC)

    def _overdue(self) -> str | None:
        """Why the call has to end by now, if it has."""
        now = time.monotonic()
        if now - self.began > self._config.call_sec:
            return f"calls last {self._config.call_sec:g} s at most"
        if now - self.last_sound > self._config.idle_sec:
            return f"no sound came for {self._config.idle_sec:g} s"
        return None

    def see(self, data: bytes, at_sec: float | None = None) -> None:
        """Show the picture of a file's bytes; none: forget all. While one is being decoded, only the newest of those
        that come waits. Of a broken one the caller is told."""
        self.dropped += self._newest is not None
        self._newest = (data, at_sec)
        if self._decoding is None or self._decoding.done():
            self._decoding = asyncio.create_task(self._decode_all())

    async def seen(self) -> None:
        """Until all pictures that came are decoded."""
        if self._decoding is not None:
            await asyncio.wait([self._decoding])

    async def _decode_all(self) -> None:
        while self._newest is not None:
            (data, at_sec), self._newest = self._newest, None
            if not data:
                self.call.forget()
                continue
            try:
                picture = await self._loop.run_in_executor(self._pool, _decode, data, self._config)
            except ImageError as error:
                self.broken += 1
                await self._complain(str(error))
                continue
            self.shown += 1
            self.call.see(picture, at_sec)


def _decode(data: bytes, config: ServeConfig):
    """On a thread of the pool. Larger pictures than any tower looks at are not kept."""
    if len(data) > config.picture_bytes:
        raise ImageError(f"a picture of {len(data)} bytes; at most {config.picture_bytes} are taken")
    picture = load_image(data, max_pixels=config.picture_pixels)
    picture.thumbnail((1024, 1024))
    return picture


async def first_of(*jobs: Coroutine) -> None:
    """Run jobs until one of them ends, then end the others. What that one raises is raised."""
    tasks = [asyncio.create_task(job) for job in jobs]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
