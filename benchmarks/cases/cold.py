"""Cold blobs: for one client, at memory speed and over a gigabit, and for many at once."""

from collections.abc import AsyncIterator
from functools import partial

from benchmarks.bench import Bench
from benchmarks.contenders import Contender
from benchmarks.contents import MIB
from benchmarks.load import At, drain, once
from benchmarks.report import Sample
from benchmarks.scene import CACHES, DIRECT, GIGABIT, Origin, clients, origin, size_name, whole

LARGE = 256 * MIB
HERD = 32
CROWD = 1000


async def cold(bench: Bench) -> AsyncIterator[Sample]:
    """One client, everything on this machine: the worst case, since upstream, cache and client share its cores."""
    async with origin(bench, [LARGE]) as upstream:
        async for sample in _pulls(bench, upstream, f"cold blob of {size_name(LARGE)}, 1 client", 1):
            yield sample


async def cold_at_a_gigabit(bench: Bench) -> AsyncIterator[Sample]:
    """One client, and an upstream that sends no more than a gigabit a second, however many connections there are."""
    async with origin(bench, [LARGE], GIGABIT) as upstream:
        case = f"cold blob of {size_name(LARGE)} at 1 Gbit/s, 1 client"
        async for sample in _pulls(bench, upstream, case, 1):
            yield sample


async def herd(bench: Bench) -> AsyncIterator[Sample]:
    """Many clients at once, as when a deployment is rolled out."""
    async with origin(bench, [LARGE]) as upstream:
        case = f"cold blob of {size_name(LARGE)}, {clients(HERD)}"
        async for sample in _pulls(bench, upstream, case, HERD):
            yield sample


async def crowd(bench: Bench) -> AsyncIterator[Sample]:
    """A thousand clients, each of which hashes what it gets: how many are right, and by how much memory."""
    async with origin(bench, [8 * MIB]) as upstream:
        [blob] = upstream.image.layers
        case = f"cold blob of {size_name(blob.size)}, {clients(CROWD)}"
        measured = partial(_pull, bench, upstream, case, CROWD, is_hashed=True)
        async for sample in bench.measure(bench.turns(bench.present(CACHES)), measured):
            yield sample


async def _pulls(bench: Bench, upstream: Origin, case: str, count: int) -> AsyncIterator[Sample]:
    """One blob by so many; a round that is not measured, but hashed, comes first."""
    present = bench.present([DIRECT, *CACHES])
    async for sample in bench.measure(present, partial(_pull, bench, upstream, case, count, is_hashed=True)):
        if sample.measure == "right":
            yield sample
    async for sample in bench.measure(bench.turns(present), partial(_pull, bench, upstream, case, count)):
        if sample.measure != "right":
            yield sample


async def _pull(
    bench: Bench, upstream: Origin, case: str, count: int, one: Contender, *, is_hashed: bool = False
) -> list[Sample]:
    """By so many clients through a contender with an empty cache. Hashed, wrong answers are counted; else they raise."""
    [blob] = upstream.image.layers
    before, at = upstream.sent, At(case, one.name)
    with bench.room() as folder:
        async with one.start(upstream.place.host, folder) as place:
            load = whole(place, blob, count, is_hashed=is_hashed)
            result, usage = await drain(load, place, settled=upstream.settled, is_forgiving=is_hashed)
            samples = list(once(at, result, usage, place)) if not result.wrong else []
    upstream_bytes = at.sample("upstream bytes, x", (upstream.sent - before) / blob.size)
    return [*samples, upstream_bytes, at.sample("right", len(result.totals))]
