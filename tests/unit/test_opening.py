"""What is stored is opened at once where the kernel has the way to it in memory, and else in a thread.

And whether what is in it can be sent at once.
"""

import errno
import fcntl
import os
import re
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy.files import Handle, Tree, cached, hop, tree
from proxy.stores.directory import open_tree

KEY = "blobs/sha256/aa/aa"
SHM = Path("/dev/shm")  # noqa: S108  a mount below another, where there is one
KERNEL = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))
at_once = pytest.mark.skipif(KERNEL < (5, 12), reason="this kernel opens nothing from memory alone")


@pytest.fixture
async def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Tree]:
    """A store's directory with one file that has been opened before, on whatever file system: tmpfs cannot tell."""
    monkeypatch.setattr(cached, "tells", lambda _fd: True)
    made = await hop(open_tree, tmp_path / "store")
    await made.write(KEY, b"body", committed=True)
    await opened(made)
    yield made
    made.close()


@pytest.fixture
def hops(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was done in a thread."""
    made: list[str] = []

    async def counted(call: Callable[..., Any], *args: Any) -> Any:
        made.append(call.__name__)
        return await hop(call, *args)

    monkeypatch.setattr(tree, "hop", counted)
    return made


async def opened(store: Tree) -> bytes:
    """What is in the file, opened anew, which nobody else may lock meanwhile."""
    handle = await store.open(KEY)
    assert handle is not None
    with pytest.raises(BlockingIOError):
        await hop(lock, store.root / KEY)
    body = await handle.read(0, handle.size + 1)
    handle.close()
    return body


def lock(path: Path) -> None:
    """Lock a file as eviction does."""
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(fd)


@at_once
async def test_what_the_kernel_knows_the_way_to_is_opened_without_a_thread(store: Tree, hops: list[str]) -> None:
    assert [await opened(store) for _ in range(3)] == [b"body"] * 3
    assert hops == []


async def test_what_is_gone_is_looked_for_in_a_thread_and_not_there(store: Tree, hops: list[str]) -> None:
    await store.remove(KEY)
    assert await store.open(KEY) is None
    assert hops == ["_open_committed"]


async def test_a_file_is_opened_in_a_thread_where_the_kernel_will_not_do_it_at_once(
    store: Tree, hops: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cached, "OPENAT2", 1_000_000)  # as on a kernel that does not know the call
    assert await opened(store) == b"body"
    assert hops == ["_open_committed"]


@pytest.mark.parametrize(
    ("number", "waits"), [(errno.EOPNOTSUPP, True), pytest.param(errno.EAGAIN, False, marks=at_once)]
)
async def test_a_file_system_that_cannot_tell_what_it_has_in_memory_is_never_asked_at_once(
    tmp_path: Path, hops: list[str], monkeypatch: pytest.MonkeyPatch, number: int, waits: bool
) -> None:
    def refusing(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "preadv", refusing)
    made = await hop(open_tree, tmp_path / "store")
    await made.write(KEY, b"body", committed=True)
    hops.clear()
    for _ in range(3):
        assert await opened(made) == b"body"
    made.close()
    assert hops == ["_open_committed"] * (3 if waits else 1)


async def test_below_a_root_that_others_may_write_to_every_directory_on_the_way_is_looked_at(
    tmp_path: Path, hops: list[str]
) -> None:
    root = tmp_path / "store"
    root.mkdir()
    root.chmod(0o1777)
    made = await hop(open_tree, root)
    await made.write(KEY, b"body", committed=True)
    hops.clear()
    for _ in range(2):
        assert await opened(made) == b"body"
    made.close()
    assert hops == ["_open_committed"] * 2


async def test_a_file_that_cannot_be_looked_at_is_trouble_and_closed(
    store: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def failing(fd: int) -> os.stat_result:
        seen.append(fd)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as faulty:
        faulty.setattr(os, "fstat", failing)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            await store.open(KEY)
    assert len(seen) == 1
    assert not await hop(os.path.lexists, f"/proc/self/fd/{seen[0]}")


@at_once
async def test_a_handle_that_was_opened_at_once_knows_its_size(store: Tree, hops: list[str]) -> None:
    handle = await store.open(KEY)
    assert isinstance(handle, Handle)
    assert (handle.size, hops) == (4, [])
    handle.close()


@pytest.mark.skipif(not SHM.is_mount(), reason="nothing is mounted there")
def test_what_is_mounted_further_down_is_never_opened_at_once() -> None:
    with tempfile.NamedTemporaryFile(dir=SHM) as file:
        place = Path(file.name)
        for root, key, is_opened in (
            (place.parent, place.name, True),
            (place.parent.parent, f"shm/{place.name}", False),
        ):
            fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
            opened = cached.open_below(fd, key)
            os.close(fd)
            assert (opened is not None) == is_opened
            if opened is not None:
                os.close(opened)


PAGES = 64


@pytest.fixture
def pages(tmp_path: Path) -> Iterator[int]:
    """A file of some pages, on disk and in memory, which the kernel may let go of one by one as they were written."""
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    for number in range(PAGES):
        os.pwrite(fd, os.urandom(cached.PAGE), number * cached.PAGE)
    os.fsync(fd)
    yield fd
    os.close(fd)


@pytest.fixture
def told(pages: int) -> None:
    """For tests that are about a kernel and a file system which can tell what is in memory."""
    if KERNEL < (6, 5) or not cached.tells(pages) or not cached.is_in_memory(pages, 0, PAGES * cached.PAGE):
        pytest.skip("nobody can tell here what is in memory")


def forget(fd: int, first: int, count: int) -> None:
    """Have the kernel keep so many pages of a file on disk only."""
    os.posix_fadvise(fd, first * cached.PAGE, count * cached.PAGE, os.POSIX_FADV_DONTNEED)


@pytest.mark.parametrize(("start", "count"), [(0, 1), (cached.PAGE - 1, 2), (5, PAGES * cached.PAGE - 5)])
def test_what_was_just_written_is_in_memory(pages: int, told: None, start: int, count: int) -> None:
    assert cached.is_in_memory(pages, start, count)


def test_what_the_kernel_has_let_go_of_is_not_in_memory_and_neither_is_what_has_a_part_in_it(
    pages: int, told: None
) -> None:
    forget(pages, PAGES // 2, 16)
    assert not cached.is_in_memory(pages, 0, PAGES * cached.PAGE)
    assert not cached.is_in_memory(pages, (PAGES // 2 + 1) * cached.PAGE, 1)
    assert cached.is_in_memory(pages, 0, (PAGES // 2) * cached.PAGE)
    assert cached.is_in_memory(pages, (PAGES // 2 + 16) * cached.PAGE, cached.PAGE)


def test_what_lies_behind_the_end_of_a_file_is_not_in_memory(pages: int) -> None:
    assert not cached.is_in_memory(pages, (PAGES - 1) * cached.PAGE, cached.PAGE + 1)


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EOPNOTSUPP, errno.EIO])
def test_what_is_on_its_way_from_the_disk_is_not_in_memory(
    pages: int, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refusing(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "preadv", refusing)
    assert not cached.is_in_memory(pages, 0, cached.PAGE)


@pytest.mark.parametrize("missing", range(0, PAGES * cached.PAGE, cached.STEP))
def test_what_is_on_its_way_from_the_disk_before_what_is_in_memory_is_not(
    pages: int, told: None, monkeypatch: pytest.MonkeyPatch, missing: int
) -> None:
    preadv = os.preadv

    def on_its_way(fd: int, buffers: list[bytearray], offset: int, flags: int) -> int:
        if missing <= offset < missing + cached.STEP - 1:
            raise BlockingIOError
        return preadv(fd, buffers, offset, flags)

    monkeypatch.setattr(os, "preadv", on_its_way)
    assert not cached.is_in_memory(pages, 0, PAGES * cached.PAGE)


def test_on_a_kernel_that_cannot_tell_nothing_is_in_memory(pages: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached, "CACHESTAT", 1_000_000)
    assert not cached.is_in_memory(pages, 0, cached.PAGE)
