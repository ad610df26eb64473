"""A thousand clients that read a large blob slowly: what they cost in memory, and whether others notice them."""

import asyncio
import contextlib
import json
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from dataclasses import asdict
from functools import partial

from benchmarks import usage
from benchmarks.bench import Bench
from benchmarks.contenders import Contender
from benchmarks.contents import MIB, Blob
from benchmarks.drain import WrongAnswerError
from benchmarks.load import At, drain, middle
from benchmarks.report import Sample
from benchmarks.scene import ENTREPOT, Origin, clients, filled, introduced, origin, plain, size_name, static, whole
from benchmarks.servers import Place
from benchmarks.trickle import Trickle

READERS = 1000
BLOB = 64 * MIB
PULLS = 2.0  # seconds of the fast client, one pull after the other
CASE = f"{clients(READERS)} that read a blob of {size_name(BLOB)} at 16 KiB/s"


async def slow_readers(bench: Bench) -> AsyncIterator[Sample]:
    """What each of them costs in memory, and whether a fast client notices them."""
    async with origin(bench, [BLOB]) as upstream:
        present = bench.present([ENTREPOT, static(upstream.image, 2), plain(upstream.image)])
        async for sample in bench.measure(bench.turns(present), partial(_served, bench, upstream)):
            yield sample


async def _served(bench: Bench, upstream: Origin, one: Contender) -> list[Sample]:
    """By a new process each time: memory that one has had it hardly gives back."""
    [blob] = upstream.image.layers
    with bench.room() as folder:
        async with one.start(upstream.place.host, folder) as place:
            await introduced(upstream, place)
            await filled(upstream, place, blob)
            return await _beside(At(CASE, one.name), place, blob)


async def _beside(at: At, place: Place, blob: Blob) -> list[Sample]:
    """A fast client alone, and beside slow ones."""
    if place.pid is None:
        raise RuntimeError("memory is a process's")
    alone, before = await _fast(place, blob), place.peak
    async with _reading(Trickle(place.host, blob.path, READERS)) as process:
        beside = await _fast(place, blob)
        threads, memory = usage.threads(place.pid), usage.proportional(place.pid)
        kept = int((await process.communicate(b""))[0])
    return [
        at.sample("peak memory, MiB", place.peak / MIB),
        at.sample("peak memory before them, MiB", before / MIB),
        at.sample("memory without what is shared, MiB", memory / MIB),
        at.sample("threads", threads),
        at.sample("a fast client alone, ms", 1000 * alone),
        at.sample("a fast client beside them, ms", 1000 * beside),
        at.sample("readers served to the end", kept),
    ]


async def _fast(place: Place, blob: Blob) -> float:
    """Seconds that a pull takes in the middle."""
    result, _ = await drain(whole(place, blob, seconds=PULLS), place)
    return middle(result)


@contextlib.asynccontextmanager
async def _reading(trickle: Trickle) -> AsyncIterator[asyncio.subprocess.Process]:
    """The slow ones at work; they stop when their process's input ends. Raises WrongAnswerError."""
    command = (sys.executable, "-m", "benchmarks.trickle")
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE)
    try:
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("a process without pipes")
        process.stdin.write(json.dumps(asdict(trickle)).encode() + b"\n")
        if await process.stdout.readline() != b"ready\n":
            raise WrongAnswerError(f"{trickle.host} did not bear {trickle.connections} connections")
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
