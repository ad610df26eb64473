"""Space: reserved before it is written, counted for all processes, made by dropping what was used longest ago."""

import asyncio
import contextlib
import errno
import os
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest

from proxy import candidates, eviction
from proxy.eviction import LARGEST_FLOOR, Bounds, Evicted, NoSpace, Space
from proxy.files import Disk, Entry, Handle, Tree, hop
from proxy.oci.digest import Digest
from proxy.reservation import Reservation
from proxy.stores import ledger
from proxy.stores.quarantine import set_aside
from tests.faulty_disk import FaultyDisk, Point

BLOCK = 4096
BLOB = 25 * BLOCK  # more than what counts as small


class Recorder:
    """Notes what was evicted, and how often uses were recorded before."""

    def __init__(self) -> None:
        self.evicted: list[Evicted] = []
        self.recorded = 0

    async def record(self) -> None:
        self.recorded += 1


@asynccontextmanager
async def space_of(
    tree: Tree,
    max_size: int,
    recorder: Recorder | None = None,
    *,
    min_free: int = 0,
    kept: frozenset[str] = frozenset(),
) -> AsyncIterator[Space]:
    """The space as one process sees it."""
    noting = recorder or Recorder()
    space = Space(
        tree,
        Bounds(max_size, min_free),
        record_uses=noting.record,
        kept=lambda: kept,
        evicted=noting.evicted.append,
    )
    await hop(space.open)
    await space.refresh()  # counts what is stored, if the ledger is new
    try:
        yield space
    finally:
        await space.aclose()


def add(tree: Tree, name: str, size: int, used: float) -> str:
    """Store a blob that was last used then."""
    key = f"blobs/sha256/{name[:2]}/{name}"
    path = tree.root / key
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    path.chmod(0o400)
    os.utime(path, (used, used))
    return key


def names(tree: Tree) -> list[str]:
    """The blobs that are stored."""
    return sorted(path.name for path in (tree.root / "blobs").glob("*/*/*"))


async def reserve(space: Space, size: int) -> Reservation:
    """Set bytes aside, and leave it at that."""
    reservation = Reservation(space)
    await reservation.grow(size)
    return reservation


async def test_what_is_stored_is_counted_in_whole_blocks_at_the_start(tree: Tree) -> None:
    add(tree, "aa", BLOCK + 1, 1)
    add(tree, "bb", 0, 2)
    async with space_of(tree, 0) as space:
        assert await space.refresh() == 2 * BLOCK


async def test_without_a_limit_nothing_is_refused_nor_dropped(tree: Tree) -> None:
    add(tree, "aa", BLOB, 1)
    async with space_of(tree, 0) as space:
        await reserve(space, 2**60)
        assert names(tree) == ["aa"]


async def test_the_longest_unused_goes_first_and_no_more_than_need_be(tree: Tree) -> None:
    for name, used in (("aa", 3.0), ("bb", 1.0), ("cc", 2.0)):
        add(tree, name, BLOB, used)
    recorder = Recorder()
    async with space_of(tree, 3 * BLOB, recorder) as space:
        await reserve(space, BLOB)
        assert names(tree) == ["aa", "cc"]
        await reserve(space, 1)
        assert names(tree) == ["aa"]
    assert recorder.evicted == [Evicted(1, BLOB), Evicted(1, BLOB)]
    assert recorder.recorded == 2  # before each reservation: the newest uses count


async def test_what_is_small_goes_after_everything_else(tree: Tree) -> None:
    add(tree, "small", BLOCK, 1.0)
    add(tree, "large", BLOB, 2.0)
    async with space_of(tree, BLOB + BLOCK) as space:
        await reserve(space, BLOCK)
        assert names(tree) == ["small"]
        await reserve(space, BLOB)
        assert names(tree) == []


async def test_what_is_more_than_all_there_is_is_refused_and_drops_nothing(tree: Tree) -> None:
    add(tree, "aa", BLOB, 1.0)
    async with space_of(tree, 2 * BLOB) as space:
        with pytest.raises(NoSpace):
            await reserve(space, 2 * BLOB + 1)
        assert names(tree) == ["aa"]
        assert await space.refresh() == BLOB


async def test_what_is_open_is_not_dropped(tree: Tree) -> None:
    add(tree, "bb", BLOB, 2.0)
    handle = await tree.open(add(tree, "aa", BLOB, 1.0))
    assert handle is not None
    async with space_of(tree, 2 * BLOB) as space:
        await reserve(space, BLOB)
        assert names(tree) == ["aa"]
        with pytest.raises(NoSpace):
            await reserve(space, BLOB)
        await closed(handle)
        await reserve(space, BLOB)
        assert names(tree) == []


def is_there(fd: int) -> bool:
    """Whether a descriptor is open."""
    return os.path.lexists(f"/proc/self/fd/{fd}")


async def closed(handle: Handle) -> None:
    """Close a file, and wait until it is: it is done in a thread."""
    fd = handle.fd
    handle.close()
    async with asyncio.timeout(10):
        while is_there(fd):  # noqa: ASYNC110  it has no event
            await asyncio.sleep(0.001)


async def test_reservations_of_all_processes_add_up_and_are_given_back(tree: Tree) -> None:
    async with space_of(tree, 3 * BLOB) as one, space_of(tree, 3 * BLOB) as other:
        async with Reservation(one) as first:
            await first.grow(2 * BLOB)
            await first.grow(BLOB)  # is less than there is already
            with pytest.raises(NoSpace):
                await reserve(other, 2 * BLOB)
            await reserve(other, BLOB)
            with pytest.raises(NoSpace):
                await reserve(one, BLOCK)
        await reserve(one, 2 * BLOB)
        with pytest.raises(NoSpace):
            await reserve(one, BLOCK)


async def test_a_process_that_ends_gives_everything_back(tree: Tree) -> None:
    async with space_of(tree, 2 * BLOB) as one:
        async with space_of(tree, 2 * BLOB) as other:
            await reserve(other, 2 * BLOB)
        await reserve(one, 2 * BLOB)
    assert [path.name for path in (tree.root / "ledger").iterdir()] == ["stored"]


async def test_what_is_settled_is_stored_and_no_longer_reserved(tree: Tree) -> None:
    async with space_of(tree, 2 * BLOB) as space:
        async with Reservation(space) as reservation:
            await reservation.grow(2 * BLOB)
            add(tree, "aa", BLOB, 1.0)
            await reservation.settle(BLOB)
        assert await space.refresh() == BLOB
        await reserve(space, BLOB)
        assert names(tree) == ["aa"]


@pytest.fixture
def spool(tree: Tree) -> Callable[[int], str]:
    """Make a download that somebody has broken off."""

    def make(size: int) -> str:
        path = tree.root / "spool" / "sha256-aa"
        path.touch(0o600)
        path.write_bytes(b"x" * size)
        return "spool/sha256-aa"

    return make


async def test_what_was_left_of_a_download_counts_once_while_it_is_resumed(
    tree: Tree, spool: Callable[[int], str]
) -> None:
    key = spool(BLOB)
    async with space_of(tree, 4 * BLOB) as space:
        assert await space.refresh() == BLOB
        handle = await tree.open_spool(key)
        await tree.inspect_spool(key, handle)
        async with Reservation(space) as reservation:
            await reservation.found(BLOB)
            await reservation.grow(2 * BLOB)
            await reserve(space, 2 * BLOB)  # fits: the spool's own bytes are within its reservation
            with pytest.raises(NoSpace):
                await reserve(space, 1)  # counts anew
            await reservation.settle(2 * BLOB)
        assert await space.refresh() == 2 * BLOB
        await closed(handle)


async def test_nothing_is_dropped_for_what_was_left_of_a_download_and_is_gone_on_with(
    tree: Tree, spool: Callable[[int], str]
) -> None:
    key = spool(BLOB)
    add(tree, "aa", BLOB, 1.0)
    async with space_of(tree, 2 * BLOB) as space:
        handle = await tree.open_spool(key)
        await tree.inspect_spool(key, handle)
        async with Reservation(space) as reservation:
            await reservation.found(BLOB)
            assert names(tree) == ["aa"]
            assert reservation.size == BLOB
            await reservation.grow(BLOB + 1)
            assert names(tree) == []
        await closed(handle)


async def test_a_resumed_download_that_is_discarded_counts_no_more(tree: Tree, spool: Callable[[int], str]) -> None:
    key = spool(BLOB)
    async with space_of(tree, 4 * BLOB) as space:
        handle = await tree.open_spool(key)
        await tree.inspect_spool(key, handle)
        async with Reservation(space) as reservation:
            await reservation.found(BLOB)
            await reservation.grow(2 * BLOB)
            await tree.discard_spool(key, handle)
        assert await space.refresh() == 0
        await reserve(space, 4 * BLOB)
        await closed(handle)


async def test_a_broken_off_download_goes_before_any_blob(tree: Tree, spool: Callable[[int], str]) -> None:
    add(tree, "aa", BLOB, 1.0)
    spool(BLOB)
    async with space_of(tree, 2 * BLOB) as space:
        await reserve(space, 1)
        assert names(tree) == ["aa"]
        assert list((tree.root / "spool").iterdir()) == []


async def test_a_ledger_that_says_too_much_is_counted_anew_before_anything_is_dropped(tree: Tree) -> None:
    add(tree, "aa", BLOB, 1.0)
    async with space_of(tree, 3 * BLOB) as space:
        (tree.root / "ledger" / "stored").write_text("9" * 20)
        await reserve(space, BLOB)
        assert names(tree) == ["aa"]
        assert await space.refresh() == BLOB


@pytest.mark.parametrize("text", ["", "x", "-5", "1" * 40])
async def test_a_ledger_of_nonsense_is_no_error(tree: Tree, text: str) -> None:
    async with space_of(tree, 3 * BLOB) as space:
        (tree.root / "ledger" / "stored").write_text(text)
        await space.refresh()
        await reserve(space, BLOB)


class Looks:
    """Counts how often a tree was walked through for candidates; `meanwhile` is called in the middle of it."""

    def __init__(self, tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made = 0
        self.meanwhile: Callable[[], object] = lambda: None
        self._walk = tree.walk
        monkeypatch.setattr(tree, "walk", self._counted)

    def _counted(self, directory: str) -> Iterator[Entry]:
        found = list(self._walk(directory))
        if directory == "blobs":
            self.made += 1
            self.meanwhile()
        return iter(found)


async def test_one_look_at_the_store_serves_many_that_want_room(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(300):
        add(tree, f"{number:04}", BLOCK, float(number))
    looks = Looks(tree, monkeypatch)
    async with space_of(tree, 300 * BLOCK) as space:
        before = looks.made
        for _ in range(200):
            await reserve(space, BLOCK)
        assert names(tree) == [f"{number:04}" for number in range(200, 300)]
    assert looks.made == before == 1


async def test_where_there_are_more_candidates_than_are_remembered_there_is_another_look(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "MOST", 10)
    for number in range(100):
        add(tree, f"{number:04}", BLOCK, float(number))
    async with space_of(tree, 100 * BLOCK) as space:
        await reserve(space, 95 * BLOCK)
        assert names(tree) == [f"{number:04}" for number in range(95, 100)]
        with pytest.raises(NoSpace):
            await reserve(space, 6 * BLOCK)
        assert names(tree) == [f"{number:04}" for number in range(95, 100)]


async def test_what_has_gone_is_told_though_it_was_not_enough(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "MOST", 2)
    kept = frozenset({add(tree, "kept", BLOB, 1.0)})
    for number in range(5):
        add(tree, f"{number:04}", BLOCK, float(number))
    recorder = Recorder()
    async with space_of(tree, BLOB + 5 * BLOCK, recorder, kept=kept) as space:
        with pytest.raises(NoSpace):
            await reserve(space, 6 * BLOCK)
        assert recorder.evicted == [Evicted(4, 4 * BLOCK)]
        assert names(tree) == ["0004", "kept"]


async def test_what_was_used_since_the_look_is_not_dropped(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        add(tree, f"{number:04}", BLOB, float(number))
    looks = Looks(tree, monkeypatch)
    async with space_of(tree, 3 * BLOB) as space:
        before = looks.made
        await tree.touch([("blobs/sha256/00/0000", time.time())])
        await reserve(space, BLOB)
        assert names(tree) == ["0000", "0002"]
        await reserve(space, 2 * BLOB)  # nothing else is left: it goes, by what another look finds
        assert names(tree) == []
    assert (before, looks.made) == (1, 2)


async def test_what_comes_and_goes_during_a_look_is_not_counted_for_too_little(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(tree, "aa", BLOB, 1.0)
    looks = Looks(tree, monkeypatch)
    async with space_of(tree, 2 * BLOB) as space:
        other = Space(tree, Bounds(2 * BLOB), record_uses=Recorder().record, kept=frozenset, evicted=lambda _: None)

        def another_process() -> None:
            looks.meanwhile = lambda: None
            other.open()
            add(tree, "bb", BLOB, 2.0)
            came(tree, BLOB)

        looks.meanwhile = another_process
        await hop(space.look)
        await other.aclose()
        assert await space.refresh() == 2 * BLOB
        with pytest.raises(NoSpace):
            await reserve(space, 2 * BLOB + 1)


def came(tree: Tree, size: int) -> None:
    """Another process has stored so many bytes."""
    with ledger.opened(tree) as book:
        book.change(size)


async def test_what_goes_during_a_look_does_not_hide_what_comes(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    gone, walk = add(tree, "aa", BLOB, 1.0), tree.walk

    def beside(directory: str) -> Iterator[Entry]:
        if directory == "blobs":
            with ledger.taking_out(tree) as sizes:
                tree.evict(gone)
                sizes.append(BLOB)
        yield from walk(directory)
        if directory == "blobs":
            add(tree, "bb", BLOB, 2.0)
            came(tree, BLOB)

    async with space_of(tree, 0) as space:
        monkeypatch.setattr(tree, "walk", beside)
        await hop(space.look)
        assert await space.refresh() == BLOB


async def test_no_look_ends_between_a_blob_that_is_taken_out_and_its_note(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, move, held = add(tree, Digest.of(b"").encoded, BLOB, 1.0), tree.set_aside, list[bool]()

    def watched(key: str, status: os.stat_result, target: str) -> bool:
        with tree.claimed(ledger.KEY) as fd:
            held.append(fd is None)
        return move(key, status, target)

    monkeypatch.setattr(tree, "set_aside", watched)
    async with space_of(tree, 0) as space:
        assert await hop(set_aside, tree, key, (tree.root / key).stat()) is not None
        assert held == [True]
        assert await space.refresh() == 0


async def test_two_who_look_at_the_same_time_as_the_ledger_is_lost_do_not_count_twice(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = Looks(tree, monkeypatch)
    async with space_of(tree, 3 * BLOB) as one, space_of(tree, 3 * BLOB) as other:
        add(tree, "aa", BLOB, 1.0)
        (tree.root / "ledger" / "stored").unlink()

        def also() -> None:
            looks.meanwhile = lambda: None
            other.look()

        looks.meanwhile = also
        assert await one.refresh() == BLOB
    assert looks.made == 3


async def test_nobody_waits_for_a_look_who_wants_no_more_than_there_is(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(tree, "aa", BLOB, 1.0)
    looks, gate, begun = Looks(tree, monkeypatch), threading.Event(), threading.Event()
    async with space_of(tree, 3 * BLOB) as space:

        def held_up() -> None:
            begun.set()
            gate.wait(10)

        looks.meanwhile = held_up
        looking = asyncio.create_task(hop(space.look))
        await hop(begun.wait, 10)
        await reserve(space, BLOB)
        assert not looking.done()
        gate.set()
        await looking
        with pytest.raises(NoSpace):
            await reserve(space, 2 * BLOB + 1)


async def test_a_long_look_that_found_too_little_is_not_repeated_for_each_that_wants_room(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = add(tree, "aa", BLOB, 1.0)
    monkeypatch.setattr(eviction, "BRIEF", -1.0)
    monkeypatch.setattr(eviction, "REST", 1e9)
    looks = Looks(tree, monkeypatch)
    async with space_of(tree, BLOB, kept=frozenset({pinned})) as space:
        for _ in range(5):
            with pytest.raises(NoSpace):
                await reserve(space, BLOCK)
    assert looks.made == 2  # at the start, and for the first of them


async def test_the_look_is_made_before_room_is_wanted_where_that_will_be_soon(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(tree, "aa", BLOB, 1.0)
    add(tree, "bb", BLOB, 2.0)
    async with space_of(tree, 3 * BLOB):
        pass  # now the ledger knows
    looks = Looks(tree, monkeypatch)
    async with space_of(tree, 3 * BLOB) as space:
        await space.prepare()
        await space.prepare()
        assert looks.made == 1
        await reserve(space, 2 * BLOB)
        assert names(tree) == ["bb"]
    assert looks.made == 1


async def test_a_look_that_somebody_waits_for_does_not_rest_even_if_it_has_yet_to_begin(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with space_of(tree, BLOB) as space:
        pass  # now the ledger knows
    begun, gate, rests = threading.Event(), threading.Event(), list[float]()
    add(tree, "aa", BLOB, 1.0)
    async with space_of(tree, BLOB) as space:
        came(tree, BLOB)
        look = space.look

        def late(*idle: Callable[[], float]) -> None:
            begun.set()
            gate.wait(10)
            look(*idle)

        def rest(items: Iterator[Entry], idle: Callable[[], float]) -> Iterator[Entry]:
            rests.append(idle())
            return items

        monkeypatch.setattr(space, "look", late)
        monkeypatch.setattr(candidates, "unhurried", rest)
        looking = asyncio.create_task(space.prepare())
        await hop(begun.wait, 10)
        waiting = asyncio.create_task(reserve(space, BLOB))
        async with asyncio.timeout(10):
            while not space._making_room._waiters:  # noqa: ASYNC110  it has no event
                await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(looking, waiting)
    assert rests[0] == 0.0


async def test_what_a_dead_process_may_have_stored_counts_until_it_is_counted(tree: Tree) -> None:
    kept = frozenset({"blobs/sha256/aa/aa"})
    async with space_of(tree, 3 * BLOB, kept=kept) as space:
        add(tree, "aa", BLOB, 1.0)  # it had reserved room for that, and died between its name and the ledger
        (tree.root / "ledger" / "dead").write_text(f"{BLOB:020}")
        await reserve(space, 2 * BLOB)
        with pytest.raises(NoSpace):
            await reserve(space, 1)
        assert names(tree) == ["aa"]


async def test_where_a_process_died_what_is_stored_is_counted_anew(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    async with space_of(tree, 100 * BLOB):
        pass
    add(tree, "aa", BLOB, 1.0)  # it had no time to count that ...
    (tree.root / "ledger" / "dead").write_text("5000")  # ... nor to give back what it had reserved
    looks = Looks(tree, monkeypatch)
    async with space_of(tree, 100 * 1024**3) as space:
        await space.prepare()
        assert await space.refresh() == BLOB
        await space.prepare()
    assert looks.made == 1


async def test_a_lost_ledger_is_counted_anew_before_anybody_gets_room(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(tree, "aa", BLOB, 1.0)
    looks = Looks(tree, monkeypatch)
    async with space_of(tree, 3 * BLOB) as space:
        (tree.root / "ledger" / "stored").unlink()
        async with Reservation(space) as reservation:
            await reservation.grow(2 * BLOB)
            (tree.root / "ledger" / "stored").unlink()
            with pytest.raises(NoSpace):
                await reserve(space, BLOB + 1)
            assert names(tree) == ["aa"]
        assert await space.refresh() == BLOB
    assert looks.made == 3


async def test_nothing_is_looked_at_where_the_ledger_knows_and_there_is_room(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(tree, "aa", BLOB, 1.0)
    async with space_of(tree, 0):
        pass
    looks = Looks(tree, monkeypatch)
    async with space_of(tree, 100 * 1024**3) as space:
        await space.prepare()
        await reserve(space, BLOB)
        assert await space.refresh() == BLOB
    assert looks.made == 0


async def test_the_space_of_concurrent_reservations_is_never_given_twice(tree: Tree) -> None:
    async with space_of(tree, 10 * BLOB) as one, space_of(tree, 10 * BLOB) as other:
        attempts = [reserve(space, BLOB) for space in (one, other) * 15]
        outcomes = await asyncio.gather(*attempts, return_exceptions=True)
        assert sum(isinstance(outcome, Reservation) for outcome in outcomes) == 10
        assert sum(isinstance(outcome, NoSpace) for outcome in outcomes) == 20


async def test_what_is_pinned_is_not_dropped_whatever_is_wanted(tree: Tree) -> None:
    pinned = add(tree, "aa", BLOB, 1.0)
    add(tree, "bb", BLOB, 2.0)
    async with space_of(tree, 2 * BLOB, kept=frozenset({pinned})) as space:
        await reserve(space, BLOB)
        assert names(tree) == ["aa"]
        with pytest.raises(NoSpace):
            await reserve(space, 1)
        assert names(tree) == ["aa"]


async def test_nobody_waits_for_the_ledger_while_it_is_found_out_what_is_pinned(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "SELDOM", 0.0)
    add(tree, "aa", BLOB, 1.0)
    free: list[bool] = []

    def kept() -> frozenset[str]:
        with tree.claimed(ledger.KEY) as fd:
            free.append(fd is not None)
        return frozenset()

    space = Space(tree, Bounds(BLOB), record_uses=Recorder().record, kept=kept, evicted=lambda _: None)
    await hop(space.open)
    assert not free  # nothing has to go: nobody asks
    await space.refresh()
    await reserve(space, BLOB)
    assert names(tree) == []
    assert len(free) > 1
    assert all(free)
    await space.aclose()


async def test_what_is_cheap_to_keep_and_dear_to_fetch_again_stays_for_longer(tree: Tree) -> None:
    now = time.time()
    add(tree, "small", BLOB, now - 2000)
    add(tree, "large", 40 * BLOB, now - 1000)
    async with space_of(tree, 41 * BLOB) as space:
        await reserve(space, BLOB)
        assert names(tree) == ["small"]


def let_the_disk_be(tree: Tree, monkeypatch: pytest.MonkeyPatch, size: int, free: int, stored: int = 0) -> None:
    """A disk of so many bytes, of which so many are free while so many are stored."""

    def disk() -> Disk:
        return Disk(size, free + stored - sum(entry.size for entry in tree.scan("blobs")))

    monkeypatch.setattr(tree, "disk", disk)


async def test_the_disk_keeps_its_floor_of_free_bytes(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, used in (("aa", 1.0), ("bb", 2.0), ("cc", 3.0)):
        add(tree, name, BLOB, used)
    let_the_disk_be(tree, monkeypatch, 10000 * BLOB, 3 * BLOB, stored=3 * BLOB)
    async with space_of(tree, 0, min_free=2 * BLOB) as space:
        await reserve(space, BLOB)
        assert names(tree) == ["aa", "bb", "cc"]
        await reserve(space, BLOB)  # what is reserved already is not free either
        assert names(tree) == ["bb", "cc"]
        with pytest.raises(NoSpace):
            await reserve(space, 4 * BLOB)
        assert names(tree) == ["bb", "cc"]


async def test_the_floor_is_a_small_part_of_a_small_disk(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    let_the_disk_be(tree, monkeypatch, LARGEST_FLOOR * BLOB, 2 * BLOB)
    async with space_of(tree, 0, min_free=1000 * BLOB) as space:
        await reserve(space, BLOB)
        with pytest.raises(NoSpace):
            await reserve(space, 1)


# A disk that fails


@pytest.mark.parametrize("operation", ["create", "pwrite"])
async def test_what_is_given_back_on_a_failing_disk_is_noted_as_soon_as_it_can_be(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    disk = FaultyDisk(monkeypatch)
    async with space_of(tree, 100 * BLOCK) as space:
        one, other = await reserve(space, 30 * BLOCK), await reserve(space, 40 * BLOCK)
        disk.fail(Point("any", 1, errno.ENOSPC) if operation == "pwrite" else Point(operation, 1, errno.EIO))
        await one.settle(30 * BLOCK)
        await other.settle(0)
        disk.heal()
        assert await space.refresh() == 30 * BLOCK
        assert int((tree.root / space._own).read_bytes()) == 0


@pytest.mark.parametrize("is_over", [True, False])
async def test_what_could_not_be_noted_before_the_end_is_counted(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, is_over: bool
) -> None:
    disk = FaultyDisk(monkeypatch)
    async with space_of(tree, 100 * 1024**3) as space:
        one = await reserve(space, 30 * BLOCK)
        add(tree, "aa", 30 * BLOCK, 1.0)
        disk.fail(Point("any", 1, errno.EROFS))
        await one.settle(30 * BLOCK)
        if is_over:
            disk.heal()
    disk.heal()
    async with space_of(tree, 100 * 1024**3) as space:
        await space.prepare()
        assert await space.refresh() == 30 * BLOCK


async def test_a_process_joins_the_ledger_when_the_disk_lets_it(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = FaultyDisk(monkeypatch)
    space = Space(tree, Bounds(100 * BLOCK), record_uses=Recorder().record, kept=frozenset, evicted=lambda _: None)
    disk.fail(Point("any", 1, errno.EROFS))
    with pytest.raises(OSError, match="Read-only"):
        await hop(space.open)
    disk.heal()
    await reserve(space, 100 * BLOCK)
    async with space_of(tree, 100 * BLOCK) as other:
        with pytest.raises(NoSpace):
            await reserve(other, BLOCK)
    await space.aclose()


@pytest.mark.parametrize("what", ["stored", "*"])
async def test_a_ledger_that_is_deleted_is_made_again_with_all_that_it_said(tree: Tree, what: str) -> None:
    async with space_of(tree, 100 * BLOCK) as space, space_of(tree, 100 * BLOCK) as other:
        held = await reserve(space, 50 * BLOCK)
        add(tree, "aa", 30 * BLOCK, 1.0)
        for path in list((tree.root / "ledger").glob(what)):
            path.unlink()
        assert await space.refresh() == 30 * BLOCK
        with pytest.raises(NoSpace):
            await reserve(other, 60 * BLOCK)
        await held.settle(0)
        await reserve(other, 60 * BLOCK)


async def test_a_ledger_that_is_deleted_again_and_again_holds_up_nobody(tree: Tree) -> None:
    async with space_of(tree, 1000 * BLOCK) as space:

        async def take_and_give_back() -> None:
            with contextlib.suppress(FileExistsError, FileNotFoundError):  # it is deleted in this very moment
                await space.change(BLOCK, 0)
                await space.change(-BLOCK, 0)

        async with asyncio.timeout(20):
            for _ in range(30):
                pending = asyncio.gather(*(take_and_give_back() for _ in range(8)))
                await asyncio.to_thread(shutil.rmtree, tree.root / "ledger", True)
                await pending
        await space.refresh()
        assert int((tree.root / space._own).read_bytes()) == 0


async def test_two_threads_that_join_a_deleted_ledger_at_once_do_not_wait_for_each_other(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    together, real = threading.Barrier(2), tree.is_named

    def is_named(key: str, fd: int) -> bool:
        with contextlib.suppress(threading.BrokenBarrierError):
            together.wait(0.2)
        return real(key, fd)

    async with space_of(tree, 100 * BLOCK) as space:
        monkeypatch.setattr(tree, "is_named", is_named)
        shutil.rmtree(tree.root / "ledger")
        await asyncio.gather(hop(space._settle), hop(space._settle))
        assert (tree.root / space._own).exists()
