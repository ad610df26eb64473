"""Parts of a blob in random order, as a lazy puller such as stargz or SOCI asks for them."""

import hashlib
import random
from collections.abc import AsyncIterator
from functools import partial

from benchmarks.bench import Bench
from benchmarks.contenders import Contender
from benchmarks.contents import MIB
from benchmarks.drain import Load, Span
from benchmarks.load import At, drain
from benchmarks.report import Sample
from benchmarks.scene import CACHES, DIRECT, Origin, filled, introduced, origin
from benchmarks.servers import Place

PARTS = 200
LEAST, MOST = MIB // 16, MIB  # bytes of a part
SIZE = 64 * MIB
CONNECTIONS = 4
CASE = f"reads of {PARTS} parts of a blob of {SIZE // MIB} MiB, {CONNECTIONS} connections"
SEED = 6  # the same parts in every run


async def ranges(bench: Bench) -> AsyncIterator[Sample]:
    """Before anything of the blob is there, and again once all of it is; a round by which all is hashed comes first."""
    async with origin(bench, [SIZE]) as upstream:
        present = bench.present([DIRECT, *CACHES])
        async for sample in bench.measure(present, partial(_round, bench, upstream, is_hashed=True)):
            if sample.measure == "right":
                yield sample
        async for sample in bench.measure(bench.turns(present), partial(_round, bench, upstream, is_hashed=False)):
            if sample.measure != "right":
                yield sample


async def _round(bench: Bench, upstream: Origin, one: Contender, *, is_hashed: bool) -> list[Sample]:
    """Cold and then warm, by one contender with an empty cache."""
    [blob] = upstream.image.layers
    samples, before = [], upstream.sent
    with bench.room() as folder:
        async with one.start(upstream.place.host, folder) as place:
            await introduced(upstream, place)
            samples += await _parts(At(f"cold {CASE}", one.name), upstream, place, is_hashed=is_hashed)
            share = (upstream.sent - before) / blob.size
            samples.append(At(f"cold {CASE}", one.name).sample("upstream bytes, x", share))
            await filled(upstream, place, blob)
            samples += await _parts(At(f"warm {CASE}", one.name), upstream, place, is_hashed=is_hashed)
    return samples


async def _parts(at: At, upstream: Origin, place: Place, *, is_hashed: bool) -> list[Sample]:
    """Ask for all parts. What took how long is told only if all were right: a wrong answer is quickly given."""
    [blob] = upstream.image.layers
    spans = _spans(blob.size)
    digests = _digests(upstream.image.file(blob.path).read_bytes(), spans) if is_hashed else ()
    load = Load(place.host, blob.path, blob.size, CONNECTIONS, spans=spans, digests=digests)
    result, _ = await drain(load, place, settled=upstream.settled, is_forgiving=True)
    took = sorted(1000 * seconds for seconds in result.totals)
    samples = [at.sample("right", len(took))]
    if not result.wrong:
        samples += [at.sample("seconds", result.seconds), at.sample("part p50, ms", took[len(took) // 2])]
        samples += [at.sample("part p99, ms", took[len(took) * 99 // 100])]
        samples += [at.sample("peak memory, MiB", place.peak / MIB)]
    return samples


def _spans(size: int) -> tuple[Span, ...]:
    chance = random.Random(SEED)  # noqa: S311  the same in every run is what is wanted
    lengths = [chance.randint(LEAST, MOST) for _ in range(PARTS)]
    return tuple((start, start + length) for length in lengths for start in [chance.randrange(size - length)])


def _digests(body: bytes, spans: tuple[Span, ...]) -> tuple[str, ...]:
    return tuple(f"sha256:{hashlib.sha256(body[start:stop]).hexdigest()}" for start, stop in spans)
