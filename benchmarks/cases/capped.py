"""One layer from an upstream that caps what each connection gets, by one connection and by eight.

Entrepot tries for 1.4 s with one connection before it takes two, and so long again before four and before eight
(proxy/pace.py): the larger a layer is, the less that matters. This one would take three minutes by one connection,
which is as fast all the time, so that a small one shows it. What is found out holds for ten minutes: the next layer
comes by eight at once.
"""

import asyncio
import hashlib
import statistics
import time
from bisect import bisect_right
from collections.abc import AsyncIterator
from functools import partial

from benchmarks import contenders
from benchmarks.bench import Bench
from benchmarks.contenders import Contender
from benchmarks.contents import MIB, Blob
from benchmarks.drain import WrongAnswerError
from benchmarks.link import Link
from benchmarks.load import At
from benchmarks.report import Sample
from benchmarks.scene import DIRECT, Origin, origin
from benchmarks.wire import linked

CAP = 6e6 / 8  # bytes a second of each connection: eight fill the link
LAYER, SMALL, NEXT = 128 * MIB, 5 * MIB, 32 * MIB
READ = 64 * 1024  # bytes
STEP = 0.2  # seconds
STEADY = (0.25, 0.9)  # of a layer
CASE = "layer from an upstream that caps each connection"


def _allowed(connections: int) -> Contender:
    start = partial(contenders.entrepot, keys=f"connections_per_blob = {connections}\n")
    return Contender(f"entrepot, {connections} connection{'' if connections == 1 else 's'}", start)


ONE, EIGHT = _allowed(1), _allowed(8)


async def capped(bench: Bench) -> AsyncIterator[Sample]:
    """Cold, over a link with a round trip of 80 ms, by one connection and by up to eight."""
    async with origin(bench, (LAYER, SMALL, NEXT)) as upstream:
        turns = bench.turns([DIRECT, ONE, EIGHT])
        async for sample in bench.measure(turns, partial(_pulls, bench, upstream)):
            yield sample


async def _pulls(bench: Bench, upstream: Origin, one: Contender) -> list[Sample]:
    """By eight, one layer after the other; else a small one."""
    layer, small, following = upstream.image.layers
    blobs = (layer, following) if one is EIGHT else (small,)
    at = At(CASE, one.name)
    async with linked(Link(int(upstream.place.host.rpartition(":")[2]), CAP)) as wire:
        with bench.room() as folder:
            async with one.start(wire.host, folder) as place:
                first, *others = [await _arrivals(place.host, blob) for blob in blobs]
        brought = await wire.take_down() / sum(blob.size for blob in blobs)
    return [
        at.sample("MB/s", _rate(first)),
        at.sample("steady MB/s", _steady(first)),
        *(at.sample("MB/s of the next layer", _rate(other)) for other in others),
        at.sample("upstream bytes, x", brought),
    ]


Arrivals = list[tuple[float, int]]  # when how many bytes had come, from the request on


async def _arrivals(host: str, blob: Blob) -> Arrivals:
    """GET a blob. Raises WrongAnswerError unless its bytes are right."""
    name, _, port = host.partition(":")
    found: Arrivals = [(time.perf_counter(), 0)]
    reader, writer = await asyncio.open_connection(name, int(port))
    writer.write(f"GET {blob.path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
    hasher, count = hashlib.sha256(), 0
    while count < blob.size and (data := await reader.read(READ)):
        hasher.update(data)
        count += len(data)
        found.append((time.perf_counter(), count))
    writer.close()
    if f"sha256:{hasher.hexdigest()}" != blob.digest:
        raise WrongAnswerError(f"{host} sent {count} bytes of {blob.size}, or wrong ones")
    return found


def _rate(arrivals: Arrivals) -> float:
    """MB a second of the whole."""
    (began, _), *_, (ended, total) = arrivals
    return total / (ended - began) / 1e6


def _steady(arrivals: Arrivals) -> float:
    """MB a second once it is at its fastest: the slope of what had come, from a quarter to nine tenths of it.

    Parts come side by side and are handed on in order, in bursts: what came between two moments says little.
    """
    (began, _), *_, (ended, total) = arrivals
    moments = [began + STEP * number for number in range(int((ended - began) / STEP))]
    counts = [arrivals[bisect_right(arrivals, (moment, total)) - 1][1] for moment in moments]
    meant = [one for one in zip(moments, counts, strict=True) if STEADY[0] * total <= one[1] <= STEADY[1] * total]
    return statistics.linear_regression(*zip(*meant, strict=True)).slope / 1e6
