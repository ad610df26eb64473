"""Puts one answer on the wire, exactly as planned."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from .peer import Peer
from .reply import BEFORE_HEAD, PIECE, Drip, Ending, Framing, Reply


@dataclass(frozen=True, slots=True)
class Dispatch:
    """One answer on its way to one client."""

    reply: Reply
    peer: Peer
    bodiless: bool
    count: Callable[[int], None]

    async def run(self) -> bool:
        """Send it; True when the connection may be used again."""
        plan = self.reply.delivery
        try:
            return await self._run()
        finally:
            for gate in (*(hold.gate for hold in plan.holds), *(extra.gate for extra in plan.trailing)):
                if gate is not None:
                    gate.sent.set()

    async def _run(self) -> bool:
        plan = self.reply.delivery
        await self._holds_at(BEFORE_HEAD)
        if plan.cut != BEFORE_HEAD:
            await self._answer()
        match plan.ending:
            case Ending.RESET:
                await self.peer.reset()
            case Ending.FIN:
                await self.peer.finish()
            case Ending.KEEP if self.reply.framing is Framing.CLOSE:
                await self.peer.finish()
            case Ending.KEEP:
                return True
        return False

    async def _answer(self) -> None:
        if self.reply.raw is not None:
            await self.peer.send(self.reply.raw)
        else:
            await self._head()
            if not self.bodiless:
                await self._body()
        for extra in self.reply.delivery.trailing:
            if extra.gate is not None:
                await extra.gate.hold(self.peer.gone)
            await self.peer.send(extra.data)

    async def _head(self) -> None:
        head, drip = self.reply.head(), self.reply.delivery.head
        if drip is None:
            return await self.peer.send(head)
        for start in range(0, len(head), drip.size):
            await drip.steps.take(self.peer.gone)
            await self.peer.send(head[start : start + drip.size])
        return None

    async def _body(self) -> None:
        body, drip, end = memoryview(self.reply.body), self.reply.delivery.body, _end(self.reply)
        await self._holds_at(0)
        for start, stop in pairwise(_stops(self.reply, end)):
            await self._step(drip)
            await self.peer.send(_framed(self.reply, body, start, stop))
            self.count(stop - start)
            await self._holds_at(stop)
        if self.reply.framing is Framing.CHUNKED and self.reply.delivery.cut is None:
            await self.peer.send(b"0\r\n\r\n")

    async def _step(self, drip: Drip | None) -> None:
        if drip is not None:
            await drip.steps.take(self.peer.gone)

    async def _holds_at(self, position: int) -> None:
        end = _end(self.reply)
        for hold in self.reply.delivery.holds:
            if min(hold.at, end) == position:
                await hold.gate.hold(self.peer.gone)


def _end(reply: Reply) -> int:
    cut = reply.delivery.cut
    return len(reply.body) if cut is None else max(0, min(cut, len(reply.body)))


def _stops(reply: Reply, end: int) -> list[int]:
    """Where a write ends: at gates, steps, chunk boundaries, and not later than a piece's length."""
    return sorted({0, end, *(stop for stop in _marks(reply, end) if 0 <= stop <= end)})


def _marks(reply: Reply, end: int) -> Iterator[int]:
    yield from (hold.at for hold in reply.delivery.holds)
    yield from range(0, end, reply.delivery.body.size if reply.delivery.body else PIECE)
    if reply.framing is Framing.CHUNKED:
        yield from range(0, end, reply.chunk)


def _framed(reply: Reply, body: memoryview, start: int, stop: int) -> bytes | memoryview:
    """A stretch of the body; a cut may fall inside a chunk, and then the chunk stays open."""
    if reply.framing is not Framing.CHUNKED:
        return body[start:stop]
    opens = start % reply.chunk == 0
    closes = stop % reply.chunk == 0 or stop == len(body)
    size = f"{min(reply.chunk, len(body) - start):x}\r\n".encode() if opens else b""
    return size + bytes(body[start:stop]) + (b"\r\n" if closes else b"")
