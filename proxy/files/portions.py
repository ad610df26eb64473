"""What the event loop sends by itself, a portion in each of its turns: who wants something else is not kept waiting."""

import asyncio
from collections import deque

PORTION = 1024 * 1024  # bytes of a turn: a tenth of a millisecond's


class Portions:
    """Shares the turns of the event loop out among those who have something to send, in their order."""

    def __init__(self) -> None:
        self._left = PORTION  # bytes of this turn
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()
        self._ends = False  # it is told of this turn's end

    async def turn(self, count: int) -> None:
        """Wait for a turn in which so many bytes may be sent: any number, as long as its portion is not used up."""
        if self._left > 0 and not self._waiting:
            self._take(count)
            return
        admitted = asyncio.get_running_loop().create_future()
        self._waiting.append((admitted, count))
        await admitted

    def _take(self, count: int) -> None:
        self._left -= count
        if not self._ends:
            self._ends = True
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        self._ends, self._left = False, PORTION
        while self._waiting and self._left > 0:
            admitted, count = self._waiting.popleft()
            if not admitted.done():  # else it has been given up
                self._take(count)
                admitted.set_result(None)
