"""The spool: any readers, each at its own offset, and the last byte not before its time."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from proxy.files import Extent, Handle
from proxy.oci.byterange import Span
from proxy.oci.digest import Digest
from proxy.oci.errors import OciError, Problem
from proxy.origin import Source
from proxy.reading import ComingBlob
from proxy.spool import STRETCH, End, Spool
from proxy.telemetry import Outcome

DATA = bytes(range(200))


@pytest.fixture
def handle(tmp_path: Path) -> Iterator[Handle]:
    """The file behind a spool."""
    path = tmp_path / "spool"
    path.write_bytes(DATA)
    made = Handle(os.open(path, os.O_RDONLY), len(DATA))
    yield made
    os.close(made.fd)
    made._fd = -1


@pytest.fixture
def spool() -> Spool:
    """A spool that nobody has opened."""
    return Spool(Digest.of(DATA))


async def waiting(task: "asyncio.Task[int] | asyncio.Task[None]") -> bool:
    """Whether a task still waits after everything that could happen has happened."""
    for _ in range(10):
        await asyncio.sleep(0)
    return not task.done()


async def test_the_last_byte_is_held_back_until_verified(spool: Spool, handle: Handle) -> None:
    spool.open(handle, len(DATA))
    assert spool.readable == 0
    for watermark, readable in ((0, 0), (1, 0), (2, 1), (len(DATA), len(DATA) - 1)):
        spool.advance(watermark)
        assert spool.readable == readable
    spool.finish(End.VERIFIED)
    assert spool.readable == len(DATA)


@pytest.mark.parametrize("end", [End.FAILED, End.UNCACHED])
async def test_no_other_end_lets_the_last_byte_go(spool: Spool, handle: Handle, end: End) -> None:
    spool.open(handle, len(DATA))
    spool.advance(len(DATA))
    spool.finish(end)
    assert spool.readable == len(DATA) - 1


async def test_the_last_byte_that_readers_were_told_of_is_held_back_too(spool: Spool, handle: Handle) -> None:
    spool.open(handle, 100)
    spool.advance(len(DATA))
    assert spool.readable == 99
    spool.finish(End.VERIFIED)
    assert (spool.end, spool.readable) == (End.FAILED, 99)
    assert spool.error is not None


async def test_a_verified_blob_that_is_shorter_than_was_said_is_no_success(spool: Spool, handle: Handle) -> None:
    spool.open(handle, len(DATA) + 1)
    spool.advance(len(DATA))
    spool.finish(End.VERIFIED)
    assert spool.end is End.FAILED


async def test_an_unknown_size_is_known_once_verified(spool: Spool, handle: Handle) -> None:
    spool.open(handle, None)
    spool.advance(len(DATA))
    spool.finish(End.VERIFIED)
    assert (spool.size, spool.readable) == (len(DATA), len(DATA))


async def test_readers_wait_for_the_opening(spool: Spool, handle: Handle) -> None:
    reader = asyncio.create_task(spool.opened())
    assert await waiting(reader)
    spool.open(handle, 5)
    await reader
    await spool.opened()  # and late ones do not


async def test_readers_of_what_never_opened_get_its_error(spool: Spool) -> None:
    early = asyncio.create_task(spool.opened())
    assert await waiting(early)
    spool.finish(End.FAILED, OciError(Problem.BLOB_UNKNOWN, "none such"))
    for reader in (early, asyncio.create_task(spool.opened())):
        with pytest.raises(OciError, match="none such"):
            await reader
    assert not spool.is_open


async def test_readers_of_what_the_cache_would_not_take_get_no_error(spool: Spool) -> None:
    spool.finish(End.UNCACHED)
    await spool.opened()
    assert not spool.is_open


async def test_each_reader_wakes_when_its_own_byte_is_there(
    spool: Spool, handle: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.spool.STRETCH", 1)
    spool.open(handle, len(DATA))
    readers = {offset: asyncio.create_task(spool.beyond(offset)) for offset in (0, 9, 10, 150)}
    spool.advance(11)
    assert [await waiting(readers[offset]) for offset in readers] == [False, False, True, True]
    spool.advance(150)
    assert [await waiting(readers[offset]) for offset in readers] == [False, False, False, True]
    spool.advance(152)
    assert await readers[150] == 151


async def test_a_late_joiner_does_not_wait(spool: Spool, handle: Handle) -> None:
    spool.open(handle, len(DATA))
    spool.advance(100)
    assert await spool.beyond(0) == 99
    assert await spool.read(0, 99) == DATA[:99]


@pytest.mark.parametrize("end", list(End))
async def test_every_end_wakes_every_reader(spool: Spool, handle: Handle, end: End) -> None:
    spool.open(handle, None)
    spool.advance(5)
    readers = [asyncio.create_task(spool.beyond(offset)) for offset in (4, 5, 1000)]
    assert all([await waiting(reader) for reader in readers])
    spool.finish(end)
    assert await asyncio.gather(*readers) == [spool.readable] * 3


async def test_the_first_end_counts(spool: Spool, handle: Handle) -> None:
    spool.open(handle, None)
    spool.advance(5)
    spool.finish(End.FAILED, OciError(Problem.UPSTREAM_INVALID, "wrong"))
    spool.finish(End.VERIFIED)
    assert (spool.end, spool.readable) == (End.FAILED, 4)


async def test_the_file_stays_open_until_the_last_reader_leaves(spool: Spool, handle: Handle) -> None:
    spool.join()
    spool.join()
    spool.open(handle, len(DATA))
    spool.advance(len(DATA))
    spool.finish(End.VERIFIED)
    spool.leave()
    assert await spool.read(190, 10) == DATA[190:]
    spool.leave()
    with pytest.raises(ValueError, match="no file"):
        await spool.read(0, 1)


async def test_the_file_stays_open_until_the_end_though_all_readers_left(spool: Spool, handle: Handle) -> None:
    spool.join()
    spool.open(handle, len(DATA))
    spool.leave()
    spool.advance(10)
    spool.join()
    assert await spool.read(0, 9) == DATA[:9]
    spool.leave()
    spool.finish(End.VERIFIED)
    with pytest.raises(ValueError, match="no file"):
        await spool.read(0, 1)


async def test_the_spool_has_a_file_of_its_own(spool: Spool, handle: Handle) -> None:
    spool.join()
    own = handle.duplicate()
    spool.open(own, len(DATA))
    own.close()
    spool.advance(10)
    assert await spool.read(0, 5) == DATA[:5]
    spool.finish(End.FAILED)
    spool.leave()


async def test_what_is_right_is_given_out_before_the_disk_has_it(spool: Spool, handle: Handle) -> None:
    spool.open(handle, None)
    spool.advance(len(DATA))
    judged, ended = asyncio.create_task(spool.judged()), asyncio.create_task(spool.ended())
    assert await waiting(judged)
    spool.vouch()
    assert (await spool.beyond(len(DATA) - 1), await spool.beyond(len(DATA)), spool.size) == (len(DATA),) * 3
    await judged
    assert await waiting(ended)
    spool.finish(End.VERIFIED)
    await ended


async def test_what_the_disk_loses_once_it_is_right_is_given_out_no_more(spool: Spool, handle: Handle) -> None:
    spool.open(handle, len(DATA))
    spool.advance(len(DATA))
    spool.vouch()
    spool.finish(End.FAILED)
    assert await spool.beyond(len(DATA) - 1) == len(DATA) - 1


async def test_nothing_else_than_readers_were_told_is_right(spool: Spool, handle: Handle) -> None:
    spool.open(handle, len(DATA) + 1)
    spool.advance(len(DATA))
    spool.vouch()
    assert (spool.is_over, spool.readable) == (False, len(DATA) - 1)


async def test_readers_hear_of_little_after_a_moment_and_of_much_at_once(
    spool: Spool, handle: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.spool.PAUSE", 3600.0)
    spool.open(handle, None)
    spool.advance(2)
    assert await spool.beyond(0) == 1
    reader = asyncio.create_task(spool.beyond(1))
    assert await waiting(reader)
    spool.advance(4)
    assert await waiting(reader)
    spool.advance(4 + STRETCH)
    assert not await waiting(reader)
    monkeypatch.setattr("proxy.spool.PAUSE", 0.01)
    reader = asyncio.create_task(spool.beyond(3 + STRETCH))
    assert await waiting(reader)
    spool.advance(6 + STRETCH)
    assert await reader == 5 + STRETCH


async def test_what_is_being_written_is_said_to_grow_until_it_ends(spool: Spool, handle: Handle) -> None:
    spool.open(handle, len(DATA))
    spool.join()
    spool.advance(len(DATA))
    growing = spool.extent(0, 10)
    assert (growing.grows, growing.behind(4).grows) == (True, True)
    spool.finish(End.VERIFIED)
    assert not spool.extent(0, 10).grows
    spool.leave()


@pytest.mark.parametrize(
    ("span", "stretches"),
    [
        (None, [(0, 49), (49, 149), (149, 199), (199, 200)]),
        (Span(0, 120), [(0, 49), (49, 120)]),
    ],
)
async def test_a_reader_gets_what_there_is_in_one_stretch_but_for_the_very_last_byte(
    spool: Spool, handle: Handle, span: Span | None, stretches: list[tuple[int, int]]
) -> None:
    spool.open(handle, len(DATA))
    spool.advance(50)
    spool.join()
    blob = ComingBlob(cast(Source, None), spool, len(DATA), Outcome.JOIN)
    marks, got = iter((150, len(DATA))), []
    async for piece in blob.read(span):
        assert isinstance(piece, Extent)
        got.append((piece.offset, piece.end))
        if (more := next(marks, None)) is not None:
            spool.advance(more)
        else:
            spool.vouch()
    assert got == stretches
    blob.close()
    spool.finish(End.VERIFIED)


@pytest.mark.parametrize("size", [None, len(DATA)])
async def test_who_is_behind_does_not_get_the_very_last_byte_once_the_disk_has_failed_meanwhile(
    spool: Spool, handle: Handle, size: int | None
) -> None:
    """Also where nobody said beforehand which one that is."""
    spool.open(handle, size)
    spool.join()
    spool.advance(len(DATA))
    spool.vouch()
    blob = ComingBlob(cast(Source, None), spool, size, Outcome.JOIN)
    pieces = blob.read(None)
    piece = await anext(pieces)
    assert isinstance(piece, Extent)
    spool.finish(End.FAILED)
    with pytest.raises(OciError):
        await anext(pieces)
    assert (piece.offset, piece.end) == (0, len(DATA) - 1)
    blob.close()
