"""What a cache that has much in it takes longer for: to start, and to answer.

The blobs are sparse files, which take inodes and hardly any space. Each cache is made once and has the image that is
pulled; servers start over it one after the other, in turns with those of the other caches.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import aiohttp

from benchmarks import contenders, stock
from benchmarks.bench import Bench
from benchmarks.contenders import Contender
from benchmarks.contents import MIB
from benchmarks.load import At, drain, middle, wrk
from benchmarks.report import Sample
from benchmarks.scene import Origin, filled, introduced, origin, whole
from benchmarks.servers import Place

COUNTS = (0, 1_000, 10_000, 100_000)  # blobs
LAYER = 16 * MIB
PULLS = 1  # seconds of them, one after the other
CASE = "start and warm pulls by how much is cached"


async def growth(bench: Bench) -> AsyncIterator[Sample]:
    """From the start of its process until it is ready; then a manifest by tag, and a layer of 16 MiB, by one client."""
    async with origin(bench, [LAYER]) as upstream:
        with ExitStack() as stack:
            stocked = {_of(count): stack.enter_context(bench.room()) for count in COUNTS}
            for one, count in zip(stocked, COUNTS, strict=True):
                await asyncio.to_thread(stock.fill, stocked[one] / "cache", count)
                async with one.start(upstream.place.host, stocked[one]) as place:
                    await introduced(upstream, place)
                    await filled(upstream, place, upstream.image.layers[0])
            async for sample in bench.measure(bench.turns(stocked), partial(_served, bench, upstream, stocked)):
                yield sample


def _of(count: int) -> Contender:
    name = f"{count:,} blobs" if count else "nothing else"
    return Contender(name, contenders.entrepot)


async def _served(bench: Bench, upstream: Origin, stocked: dict[Contender, Path], one: Contender) -> list[Sample]:
    at = At(CASE, one.name)
    began = time.perf_counter()
    async with one.start(upstream.place.host, stocked[one]) as place:
        await _ready(place)
        samples = [at.sample("seconds from start to ready", time.perf_counter() - began)]
        if bench.has("wrk"):
            rate, _ = await wrk(place, upstream.image.by_tag, 1, PULLS)
            samples += [at.sample("manifest p50, ms", rate.p50), at.sample("manifest p99, ms", rate.p99)]
        layers, _ = await drain(whole(place, upstream.image.layers[0], seconds=PULLS), place)
        samples += [
            at.sample("layer p50, ms", 1000 * middle(layers)),
            at.sample("peak memory, MiB", place.peak / MIB),
        ]
    return samples


async def _ready(place: Place) -> None:
    """Wait until it says so; its port is bound before it answers there."""
    async with aiohttp.ClientSession() as session:
        while True:
            async with session.get(f"{place.url}/readyz") as answer:
                if answer.status == 200:
                    return
