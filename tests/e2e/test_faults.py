"""Every single call to the disk goes wrong in turn, in each way that it may: nothing wrong is served, nothing denied.

For each scenario the calls are counted first; then it is run once for each of them and each fault that may befall it,
and from every tenth of them on with a disk that stays as it is. `ENTREPOT_FAULTS=all` runs every point, and is what
`make faults` does; otherwise it is as many of each scenario as the number says, chosen by `ENTREPOT_SEED`.
`ENTREPOT_FAULTS="pread 7 EIO"` runs that point alone.
"""

import asyncio
import contextlib
import errno
import hashlib
import json
import os
import random
import shutil
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from proxy import blob_stream, download
from proxy.oci.errors import OciError
from tests.faulty_disk import FaultyDisk, Point, points

from .harness import Proxy, _open_below, _tasks_of_ours, running, toml, until
from .raw_client import RawAnswer
from .upstream import FakeRegistry, Image

REPO = "library/app"
CHOSEN = os.environ.get("ENTREPOT_FAULTS", "3")
SEED = int(os.environ.get("ENTREPOT_SEED", time.time_ns() % 10**6))
WITHOUT_WRITING = {errno.ENOSPC, errno.EROFS, errno.EACCES}
SHARDS = 4 if CHOSEN == "all" else 1  # of a scenario's points, so that several processes share them


class Visitor:
    """Clients that take no wrong answer, and an honest error only while the disk is faulty."""

    def __init__(self, upstream: FakeRegistry) -> None:
        self.upstream = upstream
        self.old = upstream.add_image(REPO, "v1", [bytes(range(256)) * 1200])
        self.new = upstream.add_image(REPO, None, [bytes(range(255, -1, -1)) * 1100])
        self.is_patient = False
        self.refused = 0

    def body(self, digest: str) -> bytes:
        """What upstream has."""
        repository = self.upstream.repositories[REPO]
        return repository.blobs.get(digest) or repository.manifests[digest].body

    def move(self, image: Image) -> None:
        """Let the tag stand for another image."""
        self.upstream.tag(REPO, "v1", image.digest)

    async def manifest(self, proxy: Proxy, image: Image, reference: str = "v1") -> None:
        """Ask for a manifest."""
        self._judge(await proxy.get(f"/v2/{REPO}/manifests/{reference}"), image.body)

    async def blob(self, proxy: Proxy, digest: str, part: slice | None = None) -> None:
        """Ask for a blob, or for a part of it."""
        asked = {} if part is None else {"Range": f"bytes={part.start}-{part.stop - 1}"}
        wanted = self.body(digest) if part is None else self.body(digest)[part]
        self._judge(await proxy.get(f"/v2/{REPO}/blobs/{digest}", asked), wanted)

    async def head(self, proxy: Proxy, digest: str) -> None:
        """Ask how large a blob is."""
        answer = await proxy.head(f"/v2/{REPO}/blobs/{digest}")
        if answer.status == 200:
            assert answer.header("Content-Length") == str(len(self.body(digest)))
        self._judge(answer, b"")

    async def pull(self, proxy: Proxy, image: Image) -> None:
        """A whole image, its blobs at the same time."""
        await self.manifest(proxy, image)
        await asyncio.gather(*(self.blob(proxy, digest) for digest in image.blob_digests))

    def _judge(self, answer: RawAnswer, wanted: bytes) -> None:
        if answer.status in {200, 206} and answer.ended == "complete":
            assert answer.body == wanted, "wrong bytes"
            return
        assert self.is_patient, (answer.status, answer.ended, answer.body[:200])
        self.refused += 1
        if answer.status in {200, 206}:
            assert wanted.startswith(answer.body), "wrong bytes"
            assert answer.body != wanted, "all of it, and cut off all the same"
        else:
            assert answer.status >= 500, (answer.status, answer.body)
            assert answer.body == b"" or json.loads(answer.body)["errors"]


Step = Callable[[Visitor, Proxy], Awaitable[None]]


async def nothing(_: Visitor, __: Proxy) -> None:
    """No step at all."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is done on a faulty disk, after what was done on a good one; which image the tag stands for in the end."""

    act: Step = nothing
    before: Step = nothing
    leave: Callable[[Visitor, Path], None] = lambda _visitor, _store: None  # what an earlier process has left behind
    store: str = ""
    more: str = ""
    moves: bool = False
    starts: bool = False  # the start is what is done ...
    stops: bool = False  # ... or the end
    is_fast: bool = False  # what comes counts as fast
    calls: frozenset[str] = frozenset()  # that go wrong, if not all of them do: the others another scenario has as well


async def pull_old(visitor: Visitor, proxy: Proxy) -> None:
    await visitor.pull(proxy, visitor.old)


async def pull_in_pieces(visitor: Visitor, proxy: Proxy) -> None:
    """As it comes over a network: not all at once."""
    rule = visitor.upstream.on("GET", path_contains="/blobs/")
    rule.drip(50_000, every=0.002)
    try:
        await visitor.pull(proxy, visitor.old)
    finally:
        rule.stop()


async def follow_the_tag(visitor: Visitor, proxy: Proxy) -> None:
    await visitor.manifest(proxy, visitor.new)


async def pull_a_layer(visitor: Visitor, proxy: Proxy) -> None:
    await asyncio.gather(*(visitor.blob(proxy, visitor.old.layer_digests[0]) for _ in range(3)))


async def pull_another_layer(visitor: Visitor, proxy: Proxy) -> None:
    await visitor.blob(proxy, visitor.new.layer_digests[0])


async def look_again(visitor: Visitor, proxy: Proxy) -> None:
    """What a client does that has been here before."""
    await visitor.manifest(proxy, visitor.old)
    await visitor.manifest(proxy, visitor.old, visitor.old.digest)
    for digest in visitor.old.blob_digests:
        await visitor.head(proxy, digest)
        await visitor.blob(proxy, digest)
    await visitor.blob(proxy, visitor.old.layer_digests[0], slice(1000, 290_000))


async def ask_for_parts(visitor: Visitor, proxy: Proxy) -> None:
    digest = visitor.old.layer_digests[0]
    parts = slice(5, 10), slice(100_000, 200_000), slice(0, len(visitor.body(digest)))
    await asyncio.gather(*(visitor.blob(proxy, digest, part) for part in parts))


async def go_round(visitor: Visitor, proxy: Proxy) -> None:
    """A round of housekeeping, after a pull."""
    await visitor.manifest(proxy, visitor.old)
    with contextlib.suppress(OSError):  # it is logged, and tried again
        await proxy.app.housekeeping._round(None)
        await proxy.app.housekeeping._look_for_room()
    for job in proxy.app.jobs._jobs:
        with contextlib.suppress(OSError):
            await proxy.app.jobs.turn(job)


async def give_orders(visitor: Visitor, proxy: Proxy) -> None:
    """What an operator does."""
    desk, name = proxy.app.desk, f"{REPO}:v1"
    orders: list[Callable[[], object]] = [
        lambda: desk.pin([name], None),
        lambda: desk.freeze([name], None),
        lambda: desk.remove([name], dry_run=False),
    ]
    for order in orders:
        with contextlib.suppress(OSError, OciError):
            await asyncio.to_thread(order)
    await visitor.pull(proxy, visitor.old)


def half_a_download(visitor: Visitor, store: Path) -> None:
    digest = visitor.old.layer_digests[0]
    left = store / "spool" / digest.replace(":", "-")
    left.touch(0o600)
    left.write_bytes(visitor.body(digest)[:200_000])


SCENARIOS = {
    "cold pull": Scenario(pull_old),
    "cold pull, past this process": Scenario(
        pull_in_pieces, is_fast=True, calls=frozenset({"splice", "pread", "pwrite", "fsync", "close", "dup"})
    ),
    "warm pull": Scenario(look_again, before=pull_old),
    "parts of a cold blob": Scenario(ask_for_parts),
    "a tag that is asked for again": Scenario(look_again, before=pull_old, more='tag_ttl = "0s"'),
    "a tag that has moved": Scenario(follow_the_tag, before=pull_old, more='tag_ttl = "0s"', moves=True),
    "a download to resume": Scenario(pull_a_layer, leave=half_a_download),
    "eviction": Scenario(pull_another_layer, before=pull_old, store='max_size = "500 KB"'),
    "start": Scenario(before=pull_old, leave=half_a_download, starts=True),
    "stop": Scenario(before=pull_old, stops=True),
    "housekeeping": Scenario(go_round, before=pull_old),
    "an operator's orders": Scenario(give_orders, before=pull_old),
}


class Trial:
    """One scenario, to be run with one fault after the other, each on a store of its own."""

    def __init__(self, scenario: Scenario, visitor: Visitor, disk: FaultyDisk, place: Path) -> None:
        self._scenario = scenario
        self._visitor = visitor
        self._disk = disk
        self._place = place
        self._image = visitor.new if scenario.moves else visitor.old
        self._is_readable = True
        self._text = toml(visitor.upstream.url, store=scenario.store, more=scenario.more)

    async def prepare(self) -> None:
        """Bring about what the scenario begins with, as a template of the stores to come."""
        store = self._place / "template"
        self._visitor.move(self._visitor.old)
        async with running(self._text, store) as proxy:
            await self._scenario.before(self._visitor, proxy)
            await proxy.settled()
            await proxy.app.housekeeping._round(None)
        self._scenario.leave(self._visitor, store)
        if self._scenario.moves:
            self._visitor.move(self._visitor.new)

    async def run(self, name: str, point: Point | None) -> int:
        """Go through it once; returns how many calls went wrong."""
        store = self._place / name
        await asyncio.to_thread(shutil.copytree, self._place / "template", store)
        self._visitor.is_patient = point is not None
        self._is_readable = point is None or point.fault != errno.EIO
        try:
            await self._act(store, point)
        finally:
            self._disk.heal()
            self._visitor.is_patient = False
        hits = self._disk.hits
        await self._check_nothing_left(store, is_clean=point is None)
        async with running(self._text, store, alone=False) as proxy:  # it starts again, and all is well
            await self._check_all(proxy)
        await self._check_nothing_left(store, is_clean=point is None)
        await asyncio.to_thread(shutil.rmtree, store)
        return hits

    async def _act(self, store: Path, point: Point | None) -> None:
        scenario = self._scenario
        async with contextlib.AsyncExitStack() as stack:
            if scenario.starts:
                self._disk.fail(point)
            try:
                proxy = await stack.enter_async_context(running(self._text, store, alone=False))
            except OSError as error:
                if error.errno in WITHOUT_WRITING:
                    raise
                return  # a disk that cannot be read, or no descriptor left: its keeper starts it again
            if not scenario.starts:
                self._disk.fail(point)
            await scenario.act(self._visitor, proxy)
            await proxy.settled()
            if scenario.stops:
                await stack.aclose()
                return
            self._disk.heal()
            self._visitor.is_patient = False
            await self._check_all(proxy)

    async def _check_all(self, proxy: Proxy) -> None:
        """On a good disk: the same is right and whole, what is published is right, and the sums are."""
        await self._visitor.pull(proxy, self._image)
        await proxy.settled()
        for path in (proxy.store / "blobs").glob("*/*/*"):
            assert hashlib.new(path.parents[1].name, path.read_bytes()).hexdigest() == path.name
            assert path.stat().st_mode & 0o777 == 0o400
        await proxy.app.housekeeping._round(None)
        await proxy.app.housekeeping._look_for_room()
        await self._visitor.pull(proxy, self._image)  # once more: an operator may have had all memory forgotten
        await proxy.settled()
        missing = set(self._image.blob_digests) | {self._image.digest}
        assert missing <= set(proxy.blobs()), "what was pulled is not cached"
        await self._check_ledger(proxy)

    async def _check_ledger(self, proxy: Proxy) -> None:
        """Nothing is reserved any more, and the sum is not too small; the next look at everything puts it right.

        A look that could not read a directory has counted too little, and there must be another one for that.
        """
        taken = sum(-(-path.stat().st_size // 4096) * 4096 for path in (proxy.store / "blobs").glob("*/*/*"))
        assert int((proxy.store / proxy.app.means.space._own).read_bytes() or b"0") == 0, "something is still reserved"
        if self._is_readable:
            assert int((proxy.store / "ledger" / "stored").read_bytes()[:20]) >= taken, "the sum is too small"
        await asyncio.to_thread(proxy.app.means.space.look)
        assert int((proxy.store / "ledger" / "stored").read_bytes()[:20]) == taken, "the sum is wrong"

    async def _check_nothing_left(self, store: Path, *, is_clean: bool) -> None:
        await until(lambda: not _tasks_of_ours(), "tasks are left")
        async with asyncio.timeout(10):
            await until(lambda: not _open_below(store), "descriptors are left")
        if is_clean:
            assert not list((store / "tmp").glob("*")), "temporary files are left"


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> FaultyDisk:
    """The disk, to break."""
    return FaultyDisk(monkeypatch)


@pytest.mark.timeout(900 if CHOSEN == "all" else 60)
@pytest.mark.parametrize("shard", range(SHARDS))
@pytest.mark.parametrize("name", SCENARIOS)
async def test_whatever_call_to_the_disk_goes_wrong_answers_are_right_or_honest_errors(
    upstream: FakeRegistry,
    disk: FaultyDisk,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
    name: str,
    shard: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if SCENARIOS[name].is_fast:
        for what in ("FAST", "GAUGED", "WORTHWHILE"):
            monkeypatch.setattr(download, what, 1)
        monkeypatch.setattr(blob_stream, "HELD_BACK", 1)
    trial = Trial(SCENARIOS[name], Visitor(upstream), disk, tmp_path)
    await trial.prepare()
    await trial.run("counted", None)
    calls = SCENARIOS[name].calls
    chosen = _chosen(name, [point for point in points(disk.made) if not calls or point.operation in calls])
    failures = []
    for number, point in enumerate(chosen[shard::SHARDS]):
        try:
            hits = await trial.run(str(number), point)
        except Exception as error:  # all of them are to be seen
            failures.append(f"{point}: {type(error).__name__} {str(error).partition(chr(10))[0]}")
            continue
        if hits:
            record_property("fault", str(point))
    assert not failures, f"{name}, ENTREPOT_SEED={SEED}:\n" + "\n".join(failures)


def _chosen(name: str, found: Sequence[Point]) -> Sequence[Point]:
    if CHOSEN == "all":
        return found
    if not CHOSEN.isdigit():
        return [point for point in found if str(point) == CHOSEN]
    chance, kinds = random.Random(f"{SEED} {name}"), defaultdict[tuple[str, int], list[Point]](list)  # noqa: S311
    for point in found:
        kinds[point.operation, point.fault].append(point)
    return [chance.choice(kinds[kind]) for kind in chance.sample(sorted(kinds), min(len(kinds), int(CHOSEN)))]
