"""The power goes, again and again, under load, on real file systems: what is published is right, and pulls go on.

The file system is shut down as it stands, journal and all: what has not reached the disk by then never does.
`ENTREPOT_CUTS` says how many cuts there are on each.
"""

import asyncio
import hashlib
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.harness import Process, serving, toml, until
from tests.e2e.test_kill_loop import audit
from tests.e2e.upstream import FakeRegistry, Image, digest_of

from .disks import LoopDisk

CUTS = int(os.environ.get("ENTREPOT_CUTS", "6"))
SECONDS = 15.0  # that one cut, and the start after it, may take at the very most
REPO = "library/app"
PULLERS = 6
RESTART = 10.0  # seconds until a pull is answered after the power is back


class Load:
    """Clients that pull images, each a few times, and look at every byte they get; errors are honest, or they fail."""

    def __init__(self, upstream: FakeRegistry, chance: random.Random) -> None:
        self._upstream = upstream
        self._chance = chance
        self._images: list[Image] = []
        self.pulls = self.cut = self.refused = 0

    def some_image(self) -> tuple[str, Image]:
        """A new one, or one of the last few."""
        if not self._images or self._chance.random() < 0.5:
            number = len(self._images)
            seed = hashlib.sha256(str(number).encode()).digest()
            layers = [seed * (1 + number * 7919 % 20_000), seed[::-1] * 100]  # up to 640 kB
            self._images.append(self._upstream.add_image(REPO, f"v{number}", layers))
        number = max(0, len(self._images) - 1 - self._chance.randrange(4))
        return f"v{number}", self._images[number]

    async def client(self, proxy: Process) -> None:
        """Pull until the server is gone."""
        while True:
            tag, image = self.some_image()
            if not await self._get(proxy, f"manifests/{tag}", image.digest):
                return
            for digest in image.blob_digests:
                if not await self._get(proxy, f"blobs/{digest}", digest):
                    return

    async def _get(self, proxy: Process, what: str, digest: str) -> bool:
        try:
            answer = await proxy.get(f"/v2/{REPO}/{what}")
        except (OSError, asyncio.IncompleteReadError):
            self.cut += 1
            return False
        if answer.status >= 500:
            self.refused += 1
        elif answer.ended != "complete":
            assert answer.status == 200
            self.cut += 1
        else:
            assert (answer.status, digest_of(answer.body)) == (200, digest)
            self.pulls += 1
        return True


@dataclass
class Counts:
    """What came of the cuts."""

    published: int = 0
    resumed: int = 0
    dropped: int = 0


async def under_load(proxy: Process, load: Load, disk: LoopDisk, chance: random.Random) -> None:
    """Clients pull, the power goes, and the server goes on for a moment on a disk that is gone."""
    async with asyncio.TaskGroup() as group:
        for _ in range(PULLERS):
            group.create_task(load.client(proxy))
        before = load.pulls
        await until(lambda: load.pulls > before + PULLERS, "pulls go on")
        await asyncio.sleep(chance.random())
        await asyncio.to_thread(disk.cut)
        await asyncio.sleep(chance.random() * 0.2)
        proxy.process.kill()
    await proxy.process.wait()


async def pull_what_is_left(proxy: Process, store: Path) -> int:
    """Ask for all that was left half done; returns how much that is."""
    left = await asyncio.to_thread(os.listdir, store / "spool")
    for digest in (name.replace("-", ":") for name in left):
        answer = await proxy.get(f"/v2/{REPO}/blobs/{digest}")
        assert (answer.status, answer.ended, digest_of(answer.body)) == (200, "complete", digest)
    return len(left)


@pytest.mark.timeout(60 + CUTS * SECONDS)
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
async def test_whatever_is_published_is_right_after_every_power_cut_and_it_starts_by_itself(
    upstream: FakeRegistry, disk_of: Callable[[str], LoopDisk], tmp_path: Path, kind: str
) -> None:
    disk, seed = disk_of(kind), int(os.environ.get("ENTREPOT_SEED", time.time_ns() % 10**6))
    chance, counts = random.Random(seed), Counts()  # noqa: S311
    load = Load(upstream, chance)
    upstream.on("GET", path_contains="/blobs/").drip(bytes_per_step=50_000, every=0.005)
    text, there = toml(upstream.url, store='max_size = "30 MB"'), {"ENTREPOT_STORE_PATH": str(disk.store)}
    for number in range(CUTS):
        async with serving(text, tmp_path / "cache", environ=there) as proxy:
            await under_load(proxy, load, disk, chance)
        await asyncio.to_thread(disk.unmount)
        await asyncio.to_thread(disk.mount)
        counts.published = max(counts.published, await asyncio.to_thread(audit, disk.store))
        has_booted = number % 2 == 1  # the machine itself may have gone on
        if has_booted:
            (disk.store / "boot").write_text("another boot")
            counts.dropped += len(os.listdir(disk.store / "spool"))
        began = time.monotonic()
        async with serving(text, tmp_path / "cache", environ=there) as proxy:
            tag, image = load.some_image()
            assert (await proxy.get(f"/v2/{REPO}/manifests/{tag}")).body == image.body
            assert time.monotonic() - began < RESTART
            left = await pull_what_is_left(proxy, disk.store)
            assert not (has_booted and left)
            counts.resumed += left
            assert await proxy.stop() == 0
        await asyncio.to_thread(audit, disk.store)
    assert counts.published
    print(  # noqa: T201
        f"ENTREPOT_SEED={seed}: {CUTS} power cuts on {kind}, {load.pulls} pulls, {load.cut} cut short, "
        f"{load.refused} refused, {counts.resumed} resumed, {counts.dropped} dropped"
    )
