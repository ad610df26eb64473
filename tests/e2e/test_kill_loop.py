"""kill -9, again and again, under load: nothing that is published is ever wrong, and pulls go on.

`ENTREPOT_KILLS` says how many kills there are; ten is enough for every day.
"""

import asyncio
import hashlib
import os
import random
import signal
import time
from pathlib import Path

import pytest

from .harness import Process, serving, toml, until
from .upstream import FakeRegistry, digest_of

KILLS = int(os.environ.get("ENTREPOT_KILLS", "10"))
SECONDS = 4.0  # that one kill and the restart after it may take, at the very most
REPO = "library/app"
PULLERS = 6
LONGEST = 0.4  # seconds of load before a kill


class Load:
    """Clients that pull blobs one after the other, for as long as they are let, and look at every byte they get."""

    def __init__(self, upstream: FakeRegistry, chance: random.Random) -> None:
        self._upstream = upstream
        self._chance = chance
        self._number = 0
        self.host = ""
        self.complete = 0
        self.cut = 0

    def _some_blob(self) -> str:
        """A blob that was asked for before, or a new one, or one that many ask for just now."""
        if self._number and self._chance.random() < 0.6:
            number = max(0, self._number - self._chance.randrange(4))
        else:
            self._number += 1
            number = self._number
        data = hashlib.sha256(str(number).encode()).digest() * (1 + number * 7919 % 20_000)  # up to 640 kB
        return self._upstream.add_blob(REPO, data)

    async def client(self, proxy: Process) -> None:
        """Pull until the process is gone."""
        while True:
            digest = self._some_blob()
            try:
                answer = await proxy.get(f"/v2/{REPO}/blobs/{digest}")
            except (OSError, asyncio.IncompleteReadError):
                self.cut += 1
                return
            if answer.ended != "complete":
                self.cut += 1
                return
            assert (answer.status, digest_of(answer.body)) == (200, digest)
            self.complete += 1


def audit(store: Path) -> int:
    """Hold every published file to its name; returns how many there are."""
    found = list((store / "blobs").glob("*/*/*"))
    for path in found:
        assert hashlib.new(path.parents[1].name, path.read_bytes()).hexdigest() == path.name
        assert path.stat().st_mode & 0o777 == 0o400
    return len(found)


@pytest.mark.timeout(30 + KILLS * SECONDS)
async def test_whatever_is_published_is_right_after_every_kill_and_pulls_go_on(
    upstream: FakeRegistry, store: Path
) -> None:
    seed = int(os.environ.get("ENTREPOT_SEED", time.time_ns() % 10**6))
    chance = random.Random(seed)  # noqa: S311
    load = Load(upstream, chance)
    upstream.on("GET").drip(bytes_per_step=50_000, every=0.005)  # so that a kill finds fills half done
    published = 0
    for _ in range(KILLS):
        async with serving(toml(upstream.url, store='max_size = "8 MB"'), store) as proxy:
            async with asyncio.TaskGroup() as group:
                for _ in range(PULLERS):
                    group.create_task(load.client(proxy))
                before = load.complete
                await until(lambda before=before: load.complete > before, "pulls go on")  # type: ignore[misc]
                await asyncio.sleep(chance.random() * LONGEST)
                proxy.process.send_signal(signal.SIGKILL)
            await proxy.process.wait()
        published = max(published, await asyncio.to_thread(audit, store))
    assert published
    assert load.cut
    async with serving(toml(upstream.url, store='max_size = "8 MB"'), store) as proxy:
        for left in os.listdir(store / "spool"):  # each download that was broken off is good to be resumed
            digest = left.replace("-", ":")
            answer = await proxy.get(f"/v2/{REPO}/blobs/{digest}")
            assert (answer.status, digest_of(answer.body)) == (200, digest)
        assert await proxy.stop() == 0
    assert os.listdir(store / "spool") == []
    await asyncio.to_thread(audit, store)
    resumed = sum(request.header("Range") is not None for request in upstream.requests)
    print(f"ENTREPOT_SEED={seed}: {KILLS} kills, {load.complete} pulls, {load.cut} cut short, {resumed} resumed")  # noqa: T201
