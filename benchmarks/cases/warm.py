"""Warm blobs: as fast as they go, for one client and for many, plain and over TLS."""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from functools import partial

from benchmarks.bench import Bench
from benchmarks.certificate import Certificate, certify
from benchmarks.contenders import Contender
from benchmarks.contents import MIB, Blob, Image
from benchmarks.load import At, drain, rates, transfers, wrk
from benchmarks.report import Sample
from benchmarks.scene import (
    PROXY_CACHE,
    PULL_THROUGH,
    VARNISH,
    cache,
    clients,
    filled,
    origin,
    plain,
    size_name,
    started,
    static,
    unpaced,
    whole,
)
from benchmarks.servers import Place

CLIENTS = (1, 8, 64)
SECONDS = 0.8  # of a measurement; wrk knows whole ones only
SMALL = 1024  # bytes of a blob that wrk asks for: our own client could not keep up


def _both(image: Image, tls: Certificate | None) -> list[Contender]:
    """One process and two, of files and of the cache."""
    return [*(static(image, count, tls) for count in (1, 2)), *(cache(count, tls) for count in (1, 2))]


async def small_blobs(bench: Bench) -> AsyncIterator[Sample]:
    """A KiB, again and again: what a request costs."""
    if not bench.has("wrk"):
        return
    with bench.room() as folder:
        for tls in (None, certify(folder)):
            async for sample in _sized(bench, SMALL, tls, CLIENTS):
                yield sample


async def blobs(bench: Bench) -> AsyncIterator[Sample]:
    """A MiB and 64 MiB, without TLS."""
    for size in (MIB, 64 * MIB):
        async for sample in _sized(bench, size, None, CLIENTS):
            yield sample


async def large_blobs(bench: Bench) -> AsyncIterator[Sample]:
    """A GiB, without TLS; for many clients only in full."""
    async for sample in _sized(bench, 1024 * MIB, None, CLIENTS if bench.is_full else (1,)):
        yield sample


async def blobs_over_tls(bench: Bench) -> AsyncIterator[Sample]:
    """The same over TLS; a GiB only in full."""
    with bench.room() as folder:
        for size in (MIB, 64 * MIB, *([1024 * MIB] if bench.is_full else [])):
            async for sample in _sized(bench, size, certify(folder), CLIENTS):
                yield sample


async def _sized(bench: Bench, size: int, tls: Certificate | None, counts: Sequence[int]) -> AsyncIterator[Sample]:
    """A blob of one size. The peers are there once, with what is neither small nor too large for their memory."""
    async with origin(bench, [size]) as upstream:
        [blob] = upstream.image.layers
        others = [] if tls is not None or size == SMALL else unpaced(upstream.image, 2)
        if size == 64 * MIB and tls is None:
            others += [PROXY_CACHE, plain(upstream.image), PULL_THROUGH, VARNISH]
        async with started(bench, upstream, [*_both(upstream.image, tls), *others]) as places:
            for one, place in places.items():
                with bench.sparing(one):
                    await filled(upstream, place, blob)
            for count in counts:
                case = f"warm blob of {size_name(size)}{'' if tls is None else ' over TLS'}, {clients(count)}"
                measured = partial(_measured, case, places, blob, count)
                async for sample in bench.measure(bench.turns(places), measured):
                    yield sample


async def _measured(
    case: str, places: Mapping[Contender, Place], blob: Blob, count: int, one: Contender
) -> Iterable[Sample]:
    at, place = At(case, one.name), places[one]
    if blob.size == SMALL:
        return rates(at, *await wrk(place, blob.path, count), place)
    return transfers(at, *await drain(whole(place, blob, count, seconds=SECONDS), place), place)
