"""Where a test holds an answer, and how it lets it go on."""

import asyncio


class PeerLeftError(ConnectionError):
    """The client left while its answer was held."""


async def either(event: asyncio.Event, gone: asyncio.Event, seconds: float | None = None) -> None:
    """Wait for the event, or for so many seconds; raise when the client leaves first."""
    waits = [asyncio.ensure_future(one.wait()) for one in (event, gone)]
    try:
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
    if gone.is_set() and not event.is_set():
        raise PeerLeftError


class Gate:
    """Holds an answer at one point until the test opens it."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        """Set once an answer stands at the gate and all bytes before it have left."""
        self.abandoned = asyncio.Event()
        """Set once a client has left while its answer stood at the gate."""
        self.sent = asyncio.Event()
        """Set once the answer behind the gate is out, or its client has left."""
        self.arrivals = 0
        self._opened = asyncio.Event()

    def open(self) -> None:
        """Let every answer through, now and later."""
        self._opened.set()

    def release(self) -> None:
        """Another word for open."""
        self.open()

    async def hold(self, gone: asyncio.Event) -> None:
        """Called by the server: stand here until opened."""
        self.arrivals += 1
        self.reached.set()
        try:
            await either(self._opened, gone)
        except PeerLeftError:
            self.abandoned.set()
            raise


class Steps:
    """Hands out an answer piece by piece: as the test steps, or at a fixed pace."""

    def __init__(self, every: float | None = None) -> None:
        self.taken = 0
        self.waiting = asyncio.Event()
        """Set once an answer waits for a step."""
        self._every = every
        self._allowed = 0
        self._opened = False
        self._changed = asyncio.Event()

    def step(self, n: int = 1) -> None:
        """Let n more pieces go."""
        self._allowed += n
        self._changed.set()

    def open(self) -> None:
        """Let all the rest go."""
        self._opened = True
        self._changed.set()

    def release(self) -> None:
        """Another word for open."""
        self.open()

    async def take(self, gone: asyncio.Event) -> None:
        """Called by the server: wait for the next piece's turn."""
        while not self._opened and self._allowed <= self.taken:
            self._changed.clear()
            self.waiting.set()
            await either(self._changed, gone, self._every)
            if self._every is not None:
                break
        self.waiting.clear()
        self.taken += 1
