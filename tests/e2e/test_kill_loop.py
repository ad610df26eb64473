"""kill -9, again and again, under load: nothing that is published is ever wrong, and pulls go on.

`ENTREPOT_KILLS` says how many rounds there are; four are enough for every day. In one of ten there are two servers, and
in one an operator's command is killed beside the server.
"""

import asyncio
import contextlib
import hashlib
import os
import random
import sys
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from .harness import Process, serving, toml, until
from .upstream import FakeRegistry, digest_of

KILLS = int(os.environ.get("ENTREPOT_KILLS", "4"))
SHARDS = 5 if KILLS >= 100 else 1  # stores of their own, for several processors
SECONDS = 4.0  # that one kill and the restart after it may take, at the very most
REPO = "library/app"
PULLERS = 6
LONGEST = 0.4  # seconds of load before a kill
LEAST = 0.5  # seconds before a command does anything


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


class Rounds:
    """Servers on one directory, and what is killed in each round: a server, one of two, an operator's command."""

    def __init__(self, upstream: FakeRegistry, store: Path, load: Load, chance: random.Random) -> None:
        self._upstream = upstream
        self._store = store
        self._load = load
        self._chance = chance
        self._text = toml(upstream.url, store='max_size = "8 MB"')

    def serving(self) -> AbstractAsyncContextManager[Process]:
        """A server on the directory."""
        return serving(self._text, self._store)

    async def one(self) -> None:
        """Kill a server under load."""
        async with self.serving() as proxy:
            async with asyncio.TaskGroup() as group:
                self._start(group, proxy)
                await self._under_way()
                proxy.process.kill()
            await proxy.process.wait()

    async def one_of_two(self) -> None:
        """Kill one of two: the other one goes on, then it is killed as well."""
        async with self.serving() as first, self.serving() as second, asyncio.TaskGroup() as group:
            for proxy in (first, second):
                self._start(group, proxy, PULLERS // 2)
            for proxy in (first, second):
                await self._under_way()
                proxy.process.kill()

    async def a_command(self) -> None:
        """Kill what an operator does beside a server, and then the server."""
        number = self._chance.randrange(3)
        image = self._upstream.add_image(REPO, f"v{number}", [bytes([number]) * 50_000])
        async with self.serving() as proxy:
            await proxy.get(f"/v2/{REPO}/manifests/v{number}")
            for digest in image.blob_digests:
                await proxy.get(f"/v2/{REPO}/blobs/{digest}")
            async with asyncio.TaskGroup() as group:
                self._start(group, proxy)
                command = self._chance.choice(["pin", "rm", "freeze", "warm"])
                await self._kill_a_command(command, f"{REPO}:v{number}")
                await self._under_way()
                got = await proxy.get(f"/v2/{REPO}/manifests/v{number}")
                assert (got.status, got.body) == (200, image.body)
                proxy.process.kill()
            await proxy.process.wait()

    def _start(self, group: asyncio.TaskGroup, proxy: Process, pullers: int = PULLERS) -> None:
        for _ in range(pullers):
            group.create_task(self._load.client(proxy))

    async def _under_way(self) -> None:
        before = self._load.complete
        await until(lambda: self._load.complete > before, "pulls go on")
        await asyncio.sleep(self._chance.random() * LONGEST)

    async def _kill_a_command(self, *words: str) -> None:
        command = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "proxy", words[0], "--config", str(self._store.parent / f"{self._store.name}.toml"),
            *words[1:], stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
            env={**os.environ, "ENTREPOT_STORE_PATH": str(self._store)},
        )  # fmt: skip
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(command.wait(), LEAST + self._chance.random())  # most of it is Python's own start
        if command.returncode is None:
            command.kill()
        await command.wait()


@pytest.mark.timeout(30 + KILLS * SECONDS)
@pytest.mark.parametrize("shard", range(SHARDS))
async def test_whatever_is_published_is_right_after_every_kill_and_pulls_go_on(
    upstream: FakeRegistry, store: Path, record_property: Callable[[str, object], None], shard: int
) -> None:
    seed = int(os.environ.get("ENTREPOT_SEED", time.time_ns() % 10**6)) + shard
    chance = random.Random(seed)  # noqa: S311
    load = Load(upstream, chance)
    upstream.on("GET").drip(bytes_per_step=50_000, every=0.005)  # so that a kill finds fills half done
    rounds, published = Rounds(upstream, store, load, chance), 0
    for number in range(KILLS // SHARDS):
        await {3: rounds.one_of_two, 6: rounds.a_command}.get(number % 10, rounds.one)()
        published = max(published, await asyncio.to_thread(audit, store))
    assert published
    assert load.cut
    async with rounds.serving() as proxy:
        for left in os.listdir(store / "spool"):  # each download that was broken off is good to be resumed
            digest = left.replace("-", ":")
            answer = await proxy.get(f"/v2/{REPO}/blobs/{digest}")
            assert (answer.status, digest_of(answer.body)) == (200, digest)
        assert await proxy.stop() == 0
    assert os.listdir(store / "spool") == []
    await asyncio.to_thread(audit, store)
    resumed = sum(request.header("Range") is not None for request in upstream.requests)
    record_property(
        "kills",
        f"ENTREPOT_SEED={seed}: {KILLS // SHARDS} rounds, {load.complete} pulls, {load.cut} cut short, "
        f"{resumed} resumed",
    )
