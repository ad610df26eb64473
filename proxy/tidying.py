"""The bucket's limits kept, once a day by one of its replicas, in a process of its own beside the server's.

Whose turn it is says an object with the number of the day in its key, which only one can make. It is not renewed:
should that one die, the next day's goes on. To list a million objects takes Python a minute, which would hold up pulls.
The process is told what to do on its standard input; before each batch that goes it asks whether the server is there.
"""

import asyncio
import contextlib
import json
import os
import pickle
import secrets
import sys
import time
from dataclasses import asdict
from typing import IO, Any

from proxy.beside import NICENESS, beside
from proxy.clearing import Limits, Tally, clear_all
from proxy.files import hop
from proxy.sections.store import S3
from proxy.stores.durable import Durable
from proxy.stores.leases import DIRECTORY
from proxy.stores.s3 import Bucket
from proxy.stores.s3_errors import BucketError
from proxy.telemetry import Logger, Metrics

DAY = 86400.0  # seconds


class Tidying:
    """The server's side."""

    def __init__(self, settings: S3, durable: Durable, metrics: Metrics, log: Logger) -> None:
        self._settings = settings
        self._durable = durable
        self._metrics = metrics
        self._log = log

    @property
    def has_limits(self) -> bool:
        """Whether there is anything to be done, ever."""
        return bool(Limits.of(self._settings))

    async def run(self) -> None:
        """Evict, unless another replica does today. Raises OSError."""
        turn = f"{DIRECTORY}/evict-{time.time() // DAY:.0f}"
        if await self._durable.create(turn, secrets.token_hex(16).encode()):
            async with beside("proxy.tidying") as (orders, answers):
                await self._attend(orders, answers)

    async def _attend(self, orders: asyncio.StreamWriter, answers: asyncio.StreamReader) -> None:
        orders.write(pickle.dumps(self._settings))
        async for line in answers:
            said = json.loads(line)
            if said:
                self._told(**said)
            else:
                orders.write(b"\n")

    def _told(self, tally: dict[str, Any], ended_by: str | None) -> None:
        self._metrics.bucket_evicted_bytes.inc(tally["freed"])
        counts = {"blobs": tally["gone"], "bytes": tally["freed"], "failed": tally["failed"]}
        if ended_by is not None:
            self._log.error("bucket eviction broke off", reason=ended_by, meanwhile="it goes on tomorrow", **counts)
            return
        self._log.info("bucket evicted", **counts)
        for key, reason in tally["failures"][:1]:
            self._log.warning("a blob cannot be removed from the bucket", key=key, reason=reason)


async def work(orders: IO[bytes], answers: IO[str]) -> None:
    """The other side."""
    settings: S3 = await hop(pickle.load, orders)  # our own server's
    tally, ended_by = Tally(), None

    async def goes_on() -> bool:
        _say(answers, {})
        return bool(await hop(orders.readline))  # nothing is read where the server has ended

    try:
        async with Bucket(settings) as bucket:
            await clear_all(bucket, Limits.of(settings), tally, goes_on)
    except BucketError as error:
        ended_by = error.reason
    with contextlib.suppress(BrokenPipeError):  # nobody is there any more
        _say(answers, {"tally": asdict(tally), "ended_by": ended_by})


def _say(answers: IO[str], answer: dict[str, Any]) -> None:
    answers.write(f"{json.dumps(answer)}\n")
    answers.flush()


if __name__ == "__main__":
    os.nice(NICENESS)
    asyncio.run(work(sys.stdin.buffer, sys.stdout))
