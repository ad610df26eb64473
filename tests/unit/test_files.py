"""Files: durable first, named last; nothing followed that is not ours; one writer at a time."""

import asyncio
import contextlib
import errno
import fcntl
import gc
import hashlib
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from proxy import files
from proxy.files import Extent, Handle, Outlet, Senders, SpoolState, Tree, hop
from proxy.oci.digest import Hasher
from proxy.stores.directory import open_tree
from tests.faulty_disk import FAULTS, NOTHING, SHORT, FaultyDisk, Point, points

KEY = "spool/sha256-aa"
TARGET = "blobs/sha256/aa/aa"
RECORDED = ("fsync", "fchmod", "rename", "unlink", "pwrite", "pwritev", "utime")


class Calls:
    """What was asked of the disk, in order: the call, and the file or the last part of its name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[tuple[str, str]] = []
        self._failing: dict[str, int] = {}
        for name in RECORDED:
            monkeypatch.setattr(os, name, self._recording(name))

    def fail(self, name: str, number: int) -> None:
        """Let a call raise."""
        self._failing[name] = number

    def _recording(self, name: str) -> object:
        real = getattr(os, name)

        def call(what: object, *args: object, **kwargs: object) -> object:
            path = os.readlink(f"/proc/self/fd/{what}") if isinstance(what, int) else str(what)
            kind = "directory" if os.path.isdir(path) else path.rpartition("/")[2]
            self.made.append((name, kind))
            if name in self._failing:
                raise OSError(self._failing[name], os.strerror(self._failing[name]))
            return real(what, *args, **kwargs)

        return call


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Record the calls that change the disk."""
    return Calls(monkeypatch)


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> FaultyDisk:
    """The disk, to let single calls go wrong."""
    return FaultyDisk(monkeypatch)


async def spool(tree: Tree, body: bytes = b"") -> Handle:
    """A spool that this process has locked."""
    handle = await tree.open_spool(KEY)
    assert (await tree.inspect_spool(KEY, handle))[0] is SpoolState.OURS
    if body:
        writer = await tree.open_for_writing(KEY, handle)
        await written(writer, hashlib.sha256(), body)
        await closed(writer)
    return handle


async def written(writer: Handle, hasher: Hasher, *pieces: bytes) -> list[int]:
    """Write a new file; returns where what is written ended, each time that this was told."""
    told = list[int]()
    await files.pour(writer, 0, hasher, deque(memoryview(piece) for piece in pieces), told.append)
    return told


def is_there(fd: int) -> bool:
    """Whether a descriptor is open."""
    return os.path.lexists(f"/proc/self/fd/{fd}")


async def closed(*handles: Handle) -> None:
    """Close files, and wait until they are: it is done in a thread."""
    for handle in handles:
        fd = handle.fd
        handle.close()
        async with asyncio.timeout(10):
            while is_there(fd):  # noqa: ASYNC110  it has no event
                await asyncio.sleep(0.001)


def is_locked(path: Path, how: int = fcntl.LOCK_EX) -> bool:
    """Whether another process could not lock a file."""
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


# Publishing


async def test_a_blob_is_on_disk_before_it_has_its_name_and_named_before_it_is_told(tree: Tree, calls: Calls) -> None:
    handle = await spool(tree, b"body")
    calls.made.clear()
    await tree.commit_spool(KEY, handle, TARGET)
    assert calls.made == [
        ("fsync", "sha256-aa"),
        ("fchmod", "sha256-aa"),
        ("rename", "sha256-aa"),
        ("fsync", "directory"),
    ]
    path = tree.root / TARGET
    assert path.read_bytes() == b"body"
    assert path.stat().st_mode & 0o777 == 0o400
    assert not (tree.root / KEY).exists()
    await closed(handle)


async def test_a_failed_fsync_is_not_tried_again_and_nothing_is_named(tree: Tree, calls: Calls) -> None:
    handle = await spool(tree, b"body")
    calls.made.clear()
    calls.fail("fsync", errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        await tree.commit_spool(KEY, handle, TARGET)
    assert calls.made == [("fsync", "sha256-aa")]
    assert not (tree.root / TARGET).exists()
    await tree.discard_spool(KEY, handle)
    assert not (tree.root / KEY).exists()
    await closed(handle)


@pytest.mark.parametrize("committed", [False, True])
async def test_a_small_file_is_on_disk_before_it_has_its_name(tree: Tree, calls: Calls, committed: bool) -> None:
    await tree.write("repositories/a/b", b"body", committed=committed)
    assert [name for name, _ in calls.made] == ["fsync", "fchmod", "rename"]
    path = tree.root / "repositories/a/b"
    assert path.read_bytes() == b"body"
    assert path.stat().st_mode & 0o777 == (0o400 if committed else 0o600)


@pytest.mark.parametrize("call", ["fsync", "fchmod", "rename"])
async def test_a_small_file_that_fails_changes_nothing_and_leaves_nothing(tree: Tree, calls: Calls, call: str) -> None:
    await tree.write("repositories/a/b", b"before")
    calls.fail(call, errno.ENOSPC)
    with pytest.raises(OSError, match="No space"):
        await tree.write("repositories/a/b", b"after")
    assert (tree.root / "repositories/a/b").read_bytes() == b"before"
    assert list((tree.root / "tmp").iterdir()) == []


async def test_a_committed_file_is_never_opened_for_writing(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = await spool(tree, b"body")
    await tree.commit_spool(KEY, handle, TARGET)
    real, flags_of_opens = os.open, []

    def opening(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        flags_of_opens.append(flags)
        return real(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", opening)
    reader = await tree.open(TARGET)
    await tree.touch([(TARGET, 5.0)])
    assert await hop(tree.is_free, TARGET) is False
    assert await hop(tree.evict, TARGET) is False
    assert reader is not None
    await closed(reader, handle)
    assert await hop(tree.evict, TARGET) is True
    assert {flags & os.O_ACCMODE for flags in flags_of_opens} == {os.O_RDONLY}
    assert all(flags & os.O_NOFOLLOW for flags in flags_of_opens)


# Spools: states, locks, take-over


async def test_a_new_spool_is_ours(tree: Tree) -> None:
    handle = await tree.open_spool(KEY)
    assert await tree.inspect_spool(KEY, handle) == (SpoolState.OURS, 0)
    assert is_locked(tree.root / KEY)
    assert (tree.root / KEY).stat().st_mode & 0o777 == 0o600
    await closed(handle)
    assert not is_locked(tree.root / KEY)


async def test_a_spool_that_somebody_writes_is_growing(tree: Tree) -> None:
    writer = await spool(tree, b"four")
    follower = await tree.open_spool(KEY)
    assert await tree.inspect_spool(KEY, follower) == (SpoolState.GROWING, 4)
    await closed(writer, follower)


async def test_a_spool_whose_writer_is_gone_falls_to_the_first_who_looks(tree: Tree) -> None:
    writer = await spool(tree, b"four")
    followers = [await tree.open_spool(KEY) for _ in range(3)]
    await closed(writer)  # as when a process dies: the kernel lets go of its lock
    states = [await tree.inspect_spool(KEY, follower) for follower in followers]
    assert states == [(SpoolState.OURS, 4), (SpoolState.GROWING, 4), (SpoolState.GROWING, 4)]
    await closed(*followers)


async def test_a_spool_that_is_left_can_be_taken_while_readers_hold_it_open(tree: Tree) -> None:
    writer = await spool(tree, b"four")
    reader = writer.duplicate()
    await tree.leave_spool(writer)
    await closed(writer)
    follower = await tree.open_spool(KEY)
    assert (await tree.inspect_spool(KEY, follower))[0] is SpoolState.OURS
    assert await reader.read(0, 9) == b"four"
    await closed(reader, follower)


async def test_a_committed_spool_is_seen_as_such_by_its_followers(tree: Tree) -> None:
    writer = await spool(tree, b"four")
    follower = await tree.open_spool(KEY)
    await tree.commit_spool(KEY, writer, TARGET)
    assert await tree.inspect_spool(KEY, follower) == (SpoolState.COMMITTED, 4)
    await closed(writer)
    assert await tree.inspect_spool(KEY, follower) == (SpoolState.COMMITTED, 4)
    assert await follower.read(0, 9) == b"four"
    await closed(follower)


async def test_a_discarded_spool_is_gone_for_its_followers_and_the_next_begins_afresh(tree: Tree) -> None:
    writer = await spool(tree, b"four")
    follower = await tree.open_spool(KEY)
    await tree.discard_spool(KEY, writer)
    assert (await tree.inspect_spool(KEY, follower))[0] is SpoolState.GONE
    following = await tree.open_spool(KEY)
    assert await tree.inspect_spool(KEY, following) == (SpoolState.OURS, 0)
    assert (await tree.inspect_spool(KEY, follower))[0] is SpoolState.GONE
    await closed(writer, follower, following)


async def test_discarding_leaves_alone_what_has_taken_the_name_since(tree: Tree) -> None:
    writer = await spool(tree, b"four")
    (tree.root / KEY).unlink()
    following = await spool(tree, b"other")
    await tree.discard_spool(KEY, writer)
    assert (tree.root / KEY).read_bytes() == b"other"
    await closed(writer, following)


async def test_a_crash_between_the_mode_and_the_name_is_taken_over(tree: Tree) -> None:
    writer = await spool(tree, b"four")
    os.fchmod(writer.fd, 0o400)
    follower = await tree.open_spool(KEY)
    await closed(writer)
    assert await tree.inspect_spool(KEY, follower) == (SpoolState.OURS, 4)
    again = await tree.open_for_writing(KEY, follower)
    assert (tree.root / KEY).stat().st_mode & 0o777 == 0o600
    await closed(again, follower)


async def test_what_readers_of_a_fresh_blob_hold_open_is_not_evicted(tree: Tree) -> None:
    writer = await spool(tree, b"four")
    reader = writer.duplicate()
    await tree.commit_spool(KEY, writer, TARGET)
    await closed(writer)
    assert is_locked(tree.root / TARGET)
    assert not is_locked(tree.root / TARGET, fcntl.LOCK_SH)
    assert await hop(tree.evict, TARGET) is False
    await closed(reader)
    assert await hop(tree.evict, TARGET) is True


# Writing


async def test_what_is_written_is_hashed(tree: Tree) -> None:
    handle = await spool(tree)
    writer = await tree.open_for_writing(KEY, handle)
    hasher = hashlib.sha256()
    assert await written(writer, hasher, b"one", b"two") == [6]
    again = hashlib.sha256()
    assert await files.rehash(handle, again) == 6
    assert hasher.hexdigest() == again.hexdigest() == hashlib.sha256(b"onetwo").hexdigest()
    await closed(writer, handle)


async def test_only_what_the_disk_took_is_hashed(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = await spool(tree)
    writer = await tree.open_for_writing(KEY, handle)

    def full_after_five(fd: int, pieces: list[memoryview], offset: int) -> int:
        if offset >= 5:
            raise OSError(errno.ENOSPC, "full")
        return os.pwrite(fd, b"".join(pieces)[: min(2, 5 - offset)], offset)

    monkeypatch.setattr(os, "pwritev", full_after_five)
    hasher, told = hashlib.sha256(), list[int]()
    with pytest.raises(OSError, match="full"):
        await files.pour(
            writer, 0, hasher, deque([memoryview(piece) for piece in (b"abc", b"d", b"efgh")]), told.append
        )
    assert told == [2, 4, 5]
    assert hasher.hexdigest() == hashlib.sha256(b"abcde").hexdigest()
    assert await handle.read(0, 99) == b"abcde"
    await closed(writer, handle)


async def test_a_file_that_is_read_for_somebody_who_is_cancelled_is_closed(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    await tree.write("some/file", b"body")
    before, opening, gate, opener = await files.count_descriptors(), asyncio.Event(), threading.Event(), tree._opener
    loop = asyncio.get_running_loop()

    def slow(key: str, flags: int) -> int:
        loop.call_soon_threadsafe(opening.set)
        gate.wait(10)
        return opener(key, flags)

    monkeypatch.setattr(tree, "_opener", slow)
    reading = asyncio.create_task(tree.read("some/file", 10))
    await opening.wait()
    reading.cancel()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await reading
    gc.collect()  # what nobody has closed warns of that
    assert await files.count_descriptors() == before


async def test_who_is_cancelled_waits_for_the_thread_that_works_for_it() -> None:
    began, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        go_on.wait(5)
        ended.set()

    task = asyncio.create_task(hop(work))
    await asyncio.to_thread(began.wait)
    task.cancel()
    for _ in range(10):
        await asyncio.sleep(0)
    assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


async def test_what_was_opened_for_who_is_cancelled_is_closed_though_the_error_is_kept(tmp_path: Path) -> None:
    began, go_on = threading.Event(), threading.Event()
    fds: list[int] = []

    def work() -> Handle:
        began.set()
        go_on.wait(5)
        fds.append(os.open(tmp_path, os.O_RDONLY))
        return Handle(fds[0], 0)

    task = asyncio.create_task(hop(work))
    await asyncio.to_thread(began.wait, 5)
    task.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError) as kept:
        await task
    async with asyncio.timeout(5):
        while is_there(fds[0]):  # noqa: ASYNC110  a thread closes it
            await asyncio.sleep(0.001)
    assert kept.value is not None


async def test_what_goes_wrong_as_one_is_cancelled_is_not_complained_of() -> None:
    complaints, broken = list[object](), asyncio.Event()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))

    async def breaks() -> None:
        await broken.wait()
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    async def waits() -> None:
        await files.outlast(asyncio.create_task(breaks()), asyncio.create_task(broken.wait()))

    waiting = asyncio.create_task(waits())
    await asyncio.sleep(0)
    waiting.cancel()
    broken.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    del waiting
    await asyncio.sleep(0)  # by then asyncio has let go of it as well
    gc.collect()
    assert complaints == []


# Only what is ours


@pytest.mark.parametrize("method", ["open", "open at once", "read"])
@pytest.mark.parametrize("plant", ["nothing", "symlink", "FIFO", "directory", "hardlink", "writable", "folder link"])
async def test_what_is_not_ours_is_not_there(tree: Tree, tmp_path: Path, plant: str, method: str) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    path = tree.root / "blobs/x/y"
    path.parent.mkdir(mode=0o700)
    match plant:
        case "symlink":
            path.symlink_to(secret)
        case "FIFO":
            os.mkfifo(path)
        case "directory":
            path.mkdir()
        case "hardlink":
            os.link(secret, path)
        case "writable":
            path.touch()
            path.chmod(0o666)
        case _:
            assert plant in {"nothing", "folder link"}
            path.parent.rmdir()
            (tmp_path / "folder").mkdir()
            (tmp_path / "folder" / "y").write_bytes(b"secret")
            if plant == "folder link":
                path.parent.symlink_to(tmp_path / "folder")
    if method == "open at once":
        await tree.write(TARGET, b"body", committed=True)
        assert await tree.open(TARGET) is not None  # the file system is known to tell what it has in memory
        await hop(os.path.lexists, path)  # and has the way to this one
    found = await (tree.open("blobs/x/y") if method != "read" else tree.read("blobs/x/y", 100))
    assert found is None
    assert await hop(tree.evict, "blobs/x/y") is False


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.EIO, errno.EACCES, errno.ENOMEM])
async def test_trouble_is_not_absence(tree: Tree, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    await tree.write(TARGET, b"body", committed=True)
    real = os.open

    def failing(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if path == "aa" and not flags & os.O_DIRECTORY:
            raise OSError(number, os.strerror(number))
        return real(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", failing)
    for attempt in (tree.open(TARGET), tree.read(TARGET, 100)):
        with pytest.raises(OSError, match=os.strerror(number)):
            await attempt


async def test_a_small_file_that_is_too_long_is_none_of_ours(tree: Tree) -> None:
    await tree.write("repositories/a", b"x" * 100)
    assert await tree.read("repositories/a", 100) == b"x" * 100
    assert await tree.read("repositories/a", 99) is None


async def test_a_use_is_noted_but_not_over_a_later_one_unless_that_is_in_the_future(tree: Tree) -> None:
    await tree.write(TARGET, b"body", committed=True)
    path, now = tree.root / TARGET, time.time()
    os.utime(path, (now - 100, now - 100))
    for used, noted in ((now - 50, now - 50), (now - 70, now - 50)):
        await tree.touch([(TARGET, used)])
        assert path.stat().st_mtime == pytest.approx(noted)
    os.utime(path, (now + 86400, now + 86400))  # a clock was a day ahead
    await tree.touch([(TARGET, now - 20)])
    assert path.stat().st_mtime == pytest.approx(now - 20)


async def test_a_scan_finds_regular_files_and_follows_nothing(tree: Tree, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").touch()
    await tree.write(TARGET, b"body", committed=True)
    os.utime(tree.root / TARGET, (5.0, 5.0))
    await tree.touch([(TARGET, 4.0), ("blobs/not/there", 6.0)])
    (tree.root / "blobs" / "link").symlink_to(tmp_path / "elsewhere")
    (tree.root / "blobs" / "file link").symlink_to(tmp_path / "elsewhere" / "file")
    os.mkfifo(tree.root / "blobs" / "fifo")
    found = await hop(tree.scan, "blobs")
    assert [(entry.key, entry.size, entry.used) for entry in found] == [(TARGET, 4, 5.0)]
    assert await hop(tree.scan, "blobs/not/there") == []


async def test_a_scan_that_runs_out_of_descriptors_does_not_pass_for_a_small_cache(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    await tree.write(TARGET, b"body", committed=True)
    real = os.open

    def failing(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if path == "sha256":
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", failing)
    with pytest.raises(OSError, match="Too many open files"):
        await hop(tree.scan, "blobs")


async def test_nothing_is_left_open_by_any_of_it(tree: Tree) -> None:
    before = len(os.listdir("/proc/self/fd"))
    await tree.write(TARGET, b"body", committed=True)
    for _ in range(3):
        await closed(await spool(tree, b"four"))
        assert await tree.open("blobs/none") is None
        assert await tree.read("blobs/none/at/all", 5) is None
        await tree.remove("blobs/none")
        await tree.touch([("blobs/none", 5.0)])
        await hop(tree.scan, "blobs")
        await hop(tree.is_free, TARGET)
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_handle_that_nobody_got_to_see_is_closed(tree: Tree) -> None:
    await tree.write(TARGET, b"body", committed=True)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        task = asyncio.create_task(tree.open(TARGET))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        del task
    async with asyncio.timeout(10):
        while len(os.listdir("/proc/self/fd")) != before:  # noqa: ASYNC110  they are closed in a thread
            await asyncio.sleep(0.001)


async def test_a_lock_excludes(tree: Tree) -> None:
    inside: list[int] = []

    def enter(number: int) -> None:
        with tree.locked("ledger/stored") as fd:
            value = int(os.pread(fd, 9, 0) or b"0")
            inside.append(number)
            os.pwrite(fd, str(value + 1).encode(), 0)

    await asyncio.gather(*(hop(enter, number) for number in range(30)))
    assert (tree.root / "ledger/stored").read_bytes() == b"30"


# Every call in turn goes wrong


async def write_and_read(tree: Tree) -> None:
    """Small files."""
    await tree.write("repositories/a/b", b"body")
    assert await tree.read("repositories/a/b", 100) == b"body"
    assert await hop(tree.read_now, "repositories/a/b", 100) == b"body"
    await tree.touch([("repositories/a/b", time.time() + 1)])
    await tree.remove("repositories/a/b")


async def fill_and_open(tree: Tree) -> None:
    """A blob, from its first byte on."""
    handle = await tree.open_spool(KEY)
    try:
        if (await tree.inspect_spool(KEY, handle))[0] is not SpoolState.OURS:
            return
        writer = await tree.open_for_writing(KEY, handle)
        try:
            hasher = hashlib.sha256()
            await written(writer, hasher, b"body")
        finally:
            writer.close()
        assert hasher.digest() == hashlib.sha256(b"body").digest()
        await tree.commit_spool(KEY, handle, TARGET)
    finally:
        handle.close()
    stored = await tree.open(TARGET)
    assert stored is not None
    try:
        assert await stored.read(0, 100) == b"body"
        await send(stored)
    finally:
        stored.close()


async def send(stored: Handle) -> None:
    """A file to somebody else."""
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)
        async with contextlib.aclosing(Senders(1)) as senders:
            with contextlib.closing(Outlet(near.fileno())) as outlet:
                await senders.send(outlet, Extent(stored, 0, 4), 5.0)
                assert outlet.sent == 4
        assert far.recv(100) == b"body"


async def test_a_look_at_all_files_ends_when_the_store_is_closed_and_leaves_nothing_to_complain_of(
    tree: Tree, tmp_path: Path
) -> None:
    for name in ("aa", "bb"):
        (tmp_path / "store" / "blobs" / name).touch()
    begun, gate, seen, complaints = threading.Event(), threading.Event(), list[str](), list[object]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))

    def look() -> None:
        for entry in tree.walk("blobs"):
            seen.append(entry.key)
            begun.set()
            gate.wait(10)

    looking = asyncio.create_task(hop(look))
    await hop(begun.wait, 10)
    for _ in range(2):  # once for itself, and once with all that is left at the end
        looking.cancel()
        await asyncio.sleep(0)
    tree.close()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await looking
    del looking
    await asyncio.get_running_loop().shutdown_default_executor()
    gc.collect()
    assert len(seen) == 1
    assert complaints == []


async def keep_house(tree: Tree) -> None:
    """What is done once in a while."""

    def work() -> None:
        with tree.locked("ledger/stored") as fd:
            files.write_number(fd, 1234567)
            assert files.read_number(fd) == 1234567
        tree.scan("blobs")
        tree.is_free("blobs/none")
        tree.evict("ledger/stored")

    await hop(work)


@pytest.mark.parametrize("work", [write_and_read, fill_and_open, keep_house])
async def test_whichever_call_goes_wrong_no_descriptor_is_lost_and_nothing_is_read_that_was_not_written(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, work: Callable[[Tree], Awaitable[None]]
) -> None:
    disk, before = FaultyDisk(monkeypatch), await descriptors()
    disk.fail(None)
    await work(tree)
    found = points(disk.made)
    disk.heal()
    for point in found:
        for left in (TARGET, KEY):
            await tree.remove(left)
        disk.fail(point)
        with contextlib.suppress(OSError):
            await work(tree)
        disk.heal()
        async with asyncio.timeout(10):
            while await descriptors() != before:  # handles are closed in a thread
                pass
        if (tree.root / TARGET).exists():
            assert (tree.root / TARGET).read_bytes() == b"body", point
    assert len(found) > 50


async def descriptors() -> set[str]:
    """The files below a store that this process has open."""

    def look() -> set[str]:
        found = set()
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                found.add(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
        return {one for one in found if "/store" in one}

    return await hop(look)


async def test_a_blob_whose_directory_cannot_be_synced_loses_its_name_again(tree: Tree, faulty: FaultyDisk) -> None:
    handle = await spool(tree, b"body")
    faulty.fail(Point("fsync", 2, errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        await tree.commit_spool(KEY, handle, TARGET)
    faulty.heal()
    assert not (tree.root / TARGET).exists()
    await closed(handle)


async def test_a_disk_that_takes_nothing_and_says_nothing_is_full(tree: Tree, faulty: FaultyDisk) -> None:
    handle = await spool(tree)
    writer = await tree.open_for_writing(KEY, handle)
    faulty.fail(Point("pwrite", 1, NOTHING))
    with pytest.raises(OSError, match="No space"):
        await written(writer, hashlib.sha256(), b"body")
    await closed(handle, writer)


async def test_a_short_read_is_not_taken_for_the_end_of_the_file(tree: Tree, faulty: FaultyDisk) -> None:
    handle = await spool(tree, b"body")
    faulty.fail(Point("pread", 1, SHORT))
    assert await handle.read(0, 100) == b"body"
    await closed(handle)


async def test_a_directory_that_others_put_where_ours_is_missing_is_not_used(tmp_path: Path) -> None:
    root = tmp_path / "store"
    os.mkdir(root)
    os.chmod(root, 0o1777)  # noqa: S103
    tree = await hop(open_tree, root)
    try:
        await tree.write("changes", b"before")
        os.rmdir(root / "tmp")
        os.mkdir(root / "tmp")
        os.chmod(root / "tmp", 0o777)  # noqa: S103
        with pytest.raises(NotADirectoryError):
            await tree.write("changes", b"after")
        os.rmdir(root / "tmp")
        await tree.write("changes", b"after")
        assert await tree.read("changes", 10) == b"after"
    finally:
        tree.close()


async def test_the_faulty_disk_stands_before_every_call(tree: Tree, faulty: FaultyDisk) -> None:
    faulty.fail(None)
    await write_and_read(tree)
    await fill_and_open(tree)
    await keep_house(tree)
    faulty.heal()
    assert set(faulty.made) >= {*FAULTS} - {"wrap", "fstatvfs", "splice"}


async def test_who_is_cancelled_twice_waits_for_the_thread_all_the_same() -> None:
    begun, go_on, over = threading.Event(), threading.Event(), threading.Event()

    def blocking() -> None:
        begun.set()
        go_on.wait()
        over.set()

    task = asyncio.create_task(hop(blocking))
    await asyncio.to_thread(begun.wait)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert over.is_set()
