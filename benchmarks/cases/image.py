"""A whole image over a WAN, by a real containerd: directly, through a cache at the near end, and from that again.

containerd's store is in memory where there is such a file system: else its own syncs, the same whoever sends, are most
of a warm pull. What is left of it is what nginx takes without a link, which is measured as well.
"""

import os
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks import containerd
from benchmarks.bench import Bench
from benchmarks.containerd import Containerd
from benchmarks.contenders import Contender
from benchmarks.contents import MIB
from benchmarks.link import Link
from benchmarks.load import At
from benchmarks.report import Sample
from benchmarks.scene import DIRECT, ENTREPOT, PROXY_CACHE, PULL_THROUGH, Origin, origin, static
from benchmarks.servers import Place
from benchmarks.wire import linked

KIB = 1024
LAYERS = (
    24 * MIB, 8 * MIB, 6 * MIB, *[2 * MIB] * 4, *[MIB] * 6, *[128 * KIB] * 18, *[4 * KIB] * 30,
)  # fmt: skip
CASE = f"image of {len(LAYERS)} layers over a WAN, by containerd"
ON_DISK = f"{CASE} with its store on disk"
MEMORY = Path("/dev/shm")  # noqa: S108  what is wanted is memory


async def image_over_wan(bench: Bench) -> AsyncIterator[Sample]:
    """Pulls by containerds that have nothing, in turns; each cold one over a link of its own, into an empty cache."""
    if not all(bench.has(name) for name in containerd.PROGRAMS):
        return
    if not containerd.is_possible():
        bench.say("containerd takes root: the image over a WAN is left out")
        return
    async with origin(bench, LAYERS) as upstream:
        peers = [PROXY_CACHE, PULL_THROUGH] if bench.is_full else []
        present = bench.present([DIRECT, ENTREPOT, *peers, static(upstream.image, 1)])
        async for sample in bench.measure(bench.turns(present), partial(_pulls, bench, upstream)):
            yield sample


async def _pulls(bench: Bench, upstream: Origin, one: Contender) -> list[Sample]:
    """Cold, then warm where there is a cache; nginx has the files, and no link in front of it."""
    if one.name == "nginx":
        with bench.room() as folder:
            async with one.start("", folder) as place:
                return await _warm(bench, "nginx, no link", place, upstream)
    async with linked(Link(int(upstream.place.host.rpartition(":")[2]))) as wire:
        with bench.room() as folder:
            async with one.start(wire.host, folder) as place:
                with _memory(bench) as root:
                    seconds = await _pull(root, place, upstream)
                warm = [] if one is DIRECT else await _warm(bench, f"{one.name}, warm", place, upstream)
        brought = await wire.take_down() / sum(blob.size for blob in upstream.image.blobs)
    cold = At(CASE, one.name if one is DIRECT else f"{one.name}, cold")
    return [cold.sample("seconds", seconds), cold.sample("upstream bytes, x", brought), *warm]


async def _warm(bench: Bench, name: str, place: Place, upstream: Origin) -> list[Sample]:
    samples = []
    for case, room in ((CASE, _memory), (ON_DISK, Bench.room)):
        with room(bench) as root:
            samples.append(At(case, name).sample("seconds", await _pull(root, place, upstream)))
    return samples


def _memory(bench: Bench) -> AbstractContextManager[Path]:
    """A folder in memory; on disk where there is no such."""
    return replace(bench, folder=MEMORY).room() if os.access(MEMORY, os.W_OK) else bench.room()


async def _pull(root: Path, place: Place, upstream: Origin) -> float:
    async with Containerd.running(root) as one:
        return await one.fetch(place.host, upstream.image)
