"""Parts of a blob against fetches that a test conducts: no byte is lost, whatever fails when."""

import asyncio
import contextlib
import math
import os
from collections.abc import AsyncIterator, Callable
from typing import cast

import pytest

from proxy import parts
from proxy.blob_stream import BlobStream, Interrupted
from proxy.pace import Pace
from proxy.parts import Lead, Memory, PartedStream, PartMeans, _Part

MIB = 1024 * 1024
DATA = os.urandom(12 * MIB)
Chunks = AsyncIterator[bytes]


class Body:
    """A stream of what a test makes up."""

    def __init__(self, start: int, total: int, chunks: Chunks) -> None:
        self.start = start
        self.total = total
        self._chunks = chunks

    async def read(self) -> bytes:
        return await anext(self._chunks, b"")


def means(bodies: Callable[[int, int | None], Chunks], total: int, level: int = 2) -> PartMeans:
    """As if so many connections had been found to be faster."""
    pace = Pace(4)
    pace.level, pace.share, pace.rate, pace._calm_until = level, 1e5, 2e5, math.inf

    @contextlib.asynccontextmanager
    async def fetch(start: int, stop: int | None) -> AsyncIterator[BlobStream]:
        yield cast(BlobStream, Body(start, total, bodies(start, stop)))

    return PartMeans(pace, Memory(64 * MIB), fetch, contextlib.ExitStack)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries follow each other at once."""
    monkeypatch.setattr(parts, "pause", lambda *_: 0.0)


async def test_a_part_that_fails_as_the_lead_reaches_it_costs_no_byte() -> None:
    fail = asyncio.Event()

    async def bodies(start: int, stop: int | None) -> Chunks:
        if stop is not None:
            yield DATA[start : start + 10]
            await fail.wait()
            raise Interrupted("reset")
        for at in range(start, len(DATA), 192 * 1024):  # of which no part's start is a multiple
            yield DATA[at : at + 192 * 1024]
            await asyncio.sleep(0)

    how, got = means(bodies, len(DATA)), b""
    async with contextlib.aclosing(PartedStream(await Lead.open(how.fetch(0, None)), len(DATA), how)) as stream:
        with contextlib.suppress(Interrupted):
            while data := await stream.read():
                got += data
                if not fail.is_set() and stream._parts and len(got) >= stream._parts[0].start:
                    fail.set()
                    how.pace.refused(0.0)
                    await asyncio.sleep(0.01)  # while this piece is written, the part fails
    assert got == DATA[: len(got)]
    assert len(got) >= MIB


async def test_a_part_that_fails_while_the_lead_is_waited_for_costs_no_byte() -> None:
    fail, failed = asyncio.Event(), asyncio.Event()

    async def bodies(start: int, stop: int | None) -> Chunks:
        if stop is not None:
            yield DATA[start : start + 10]
            await fail.wait()
            failed.set()
            raise Interrupted("reset")
        yield DATA[start : start + MIB - 1000]
        fail.set()
        await failed.wait()
        await asyncio.sleep(0.01)
        for at in range(start + MIB - 1000, len(DATA), 192 * 1024):
            yield DATA[at : at + 192 * 1024]

    how, got = means(bodies, len(DATA)), b""
    async with contextlib.aclosing(PartedStream(await Lead.open(how.fetch(0, None)), len(DATA), how)) as stream:
        with contextlib.suppress(Interrupted):
            while data := await stream.read():
                got += data
    assert got == DATA[: len(got)]
    assert len(got) > MIB


async def test_a_part_of_which_every_byte_has_come_is_not_asked_for_again() -> None:
    asked = []

    async def bodies(start: int, stop: int | None) -> Chunks:
        asked.append((start, stop))
        yield DATA[start:stop]
        raise Interrupted("ClientPayloadError")  # chunked, and its end was cut off

    part = _Part(10, 20, 100, means(bodies, 100))
    await part.run()
    assert (asked, part.error, part.left) == ([(10, 20)], None, 0)
