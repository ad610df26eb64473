"""Cold blobs: for one client, at memory speed and over a gigabit, and for many at once."""

from collections.abc import AsyncIterator, Callable, Iterable
from functools import partial

from benchmarks.bench import Bench
from benchmarks.contenders import Contender
from benchmarks.contents import MIB, Blob
from benchmarks.drain import Drained, Load
from benchmarks.load import At, drain, once
from benchmarks.report import Sample
from benchmarks.scene import CACHES, DIRECT, GIGABIT, Origin, clients, introduced, origin, size_name, whole
from benchmarks.servers import Place

LARGE = 256 * MIB
HERD = 32
CROWD = 1000
SMALL = 4 * MIB
HASHED = 4  # of a herd, in the round that is not measured: the client has one core to hash with


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
    async with origin(bench, [SMALL]) as upstream:
        case = f"cold blob of {size_name(SMALL)}, {clients(CROWD)}"
        measured = partial(_crowded, bench, upstream, case)
        async for sample in bench.measure(bench.turns(bench.present(CACHES)), measured):
            yield sample


async def _crowded(bench: Bench, upstream: Origin, case: str, one: Contender) -> Iterable[Sample]:
    result, samples = await _pull(bench, upstream, case, one, partial(whole, connections=CROWD, is_hashed=True))
    return [*samples, At(case, one.name).sample("right", len(result.totals))]


async def _pulls(bench: Bench, upstream: Origin, case: str, count: int) -> AsyncIterator[Sample]:
    """One blob by so many; a round that is not measured, but hashed, by some of them, comes first."""
    present = bench.present([DIRECT, *CACHES])

    async def hashed(one: Contender) -> Iterable[Sample]:
        load = partial(whole, connections=min(count, HASHED), is_hashed=True)
        (await _pull(bench, upstream, case, one, load))[0].check()
        return ()

    async def measured(one: Contender) -> Iterable[Sample]:
        result, samples = await _pull(bench, upstream, case, one, partial(whole, connections=count))
        result.check()
        return samples

    async for _ in bench.measure(present, hashed):
        pass
    async for sample in bench.measure(bench.turns(present), measured):
        yield sample


async def _pull(
    bench: Bench, upstream: Origin, case: str, one: Contender, load: Callable[[Place, Blob], Load]
) -> tuple[Drained, list[Sample]]:
    """The blob through a contender with an empty cache, which has brought the manifest before, as for any client."""
    [blob] = upstream.image.layers
    before, at = upstream.sent, At(case, one.name)
    with bench.room() as folder:
        async with one.start(upstream.place.host, folder) as place:
            await introduced(upstream, place)
            result, usage = await drain(load(place, blob), place, settled=upstream.settled, is_forgiving=True)
            samples = list(once(at, result, usage, place)) if result.totals else []
    return result, [*samples, at.sample("upstream bytes, x", (upstream.sent - before) / blob.size)]
