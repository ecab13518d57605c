"""Where callers wait for a place, in the order in which they came."""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from mmspeech.serve.settings import ServeConfig
from mmspeech.serve.worker import FullError


class Lobby:
    """Gives out places; not more than the settings allow, and not too many to one address."""

    def __init__(self, config: ServeConfig):
        self._config = config
        self._taken = 0
        self._waiting: deque[asyncio.Event] = deque()
        self._by_address: Counter[str] = Counter()
        self._moved = asyncio.Condition()
        self.closed = False

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @asynccontextmanager
    async def place(self, address: str, tell: Callable[[int], Awaitable[None]]) -> AsyncIterator[None]:
        """Hold a place inside the block. `tell` hears how many are in front whenever that changes. FullError when there
        is no room to wait either."""
        self._admit(address)
        self._by_address[address] += 1
        try:
            await self._wait(tell)
            try:
                yield
            finally:
                self._taken -= 1
        finally:
            self._by_address[address] -= 1
            await self._move()

    def _admit(self, address: str) -> None:
        config = self._config
        if self.closed:
            raise FullError("the server is shutting down")
        if self._by_address[address] >= config.per_address:
            raise FullError(f"{config.per_address} calls from your address are on already; end one of them first")
        if self._taken >= config.places and len(self._waiting) >= config.queue:
            raise FullError(f"all {config.places} places and the queue are full; try again in a few minutes")

    async def _wait(self, tell: Callable[[int], Awaitable[None]]) -> None:
        ticket = asyncio.Event()
        self._waiting.append(ticket)
        told = None
        try:
            async with self._moved:
                while self._waiting[0] is not ticket or self._taken >= self._config.places:
                    ahead = self._waiting.index(ticket)
                    if ahead != told:
                        told = ahead
                        await tell(ahead)
                    await self._moved.wait()
                    if self.closed:
                        raise FullError("the server is shutting down")
                self._taken += 1
        finally:
            self._waiting.remove(ticket)
            await self._move()

    async def _move(self) -> None:
        async with self._moved:
            self._moved.notify_all()

    async def close(self) -> None:
        """Let nobody in any more, and send away who waits."""
        self.closed = True
        await self._move()
