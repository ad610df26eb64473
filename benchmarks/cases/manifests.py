"""Warm manifests, by tag and by digest: requests a second, and how long they take."""

from collections.abc import AsyncIterator, Iterable, Mapping
from functools import partial

from benchmarks.bench import Bench
from benchmarks.contenders import Contender
from benchmarks.contents import MIB
from benchmarks.drain import Load
from benchmarks.load import At, drain, rates, wrk
from benchmarks.report import Sample
from benchmarks.scene import CACHES, clients, origin, plain, started, static
from benchmarks.servers import Place

CONNECTIONS = (1, 16, 256)


async def manifests(bench: Bench) -> AsyncIterator[Sample]:
    """Each cache with everything that it does for a user, beside files and a registry."""
    if not bench.has("wrk"):
        return
    async with origin(bench, [MIB]) as upstream:
        image = upstream.image
        paths = {"by tag": image.by_tag, "by digest": image.by_digest}
        async with started(bench, upstream, [*CACHES, static(image, 1), plain(image)]) as places:
            for one, place in places.items():
                with bench.sparing(one):
                    for path in paths.values():
                        await drain(
                            Load(place.host, path, image.manifest.size, digests=(image.manifest.digest,)), place
                        )
            for way, path in paths.items():
                for connections in CONNECTIONS:
                    case = f"warm manifest {way}, {clients(connections, 'connection')}"
                    async for sample in bench.measure(
                        bench.turns(places), partial(_measured, case, places, path, connections)
                    ):
                        yield sample


async def _measured(
    case: str, places: Mapping[Contender, Place], path: str, connections: int, one: Contender
) -> Iterable[Sample]:
    return rates(At(case, one.name), *await wrk(places[one], path, connections), places[one])
