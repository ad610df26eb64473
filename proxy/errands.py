"""What one process at a time does, once in a while: which jobs there are, by the configuration."""

import time
from collections.abc import Iterator

from proxy import files, lifecycle, pins, recording
from proxy.config import Config
from proxy.desk import Answer
from proxy.expiry import Expiry
from proxy.forgetting import forget
from proxy.housekeeping import Housekeeping, sweep
from proxy.jobs import Job
from proxy.origin import Replicas
from proxy.rounds import Round, Stock
from proxy.scrubbing import Scrubber
from proxy.stores.directory import announce_change
from proxy.stores.durable import Durable
from proxy.stores.leases import DIRECTORY as LEASES
from proxy.telemetry import Logger, Metrics
from proxy.tidying import Tidying
from proxy.uses import DIRECTORY as USES
from proxy.uses import LIFE, Uses

SWEEP = 3600.0  # seconds between looks for files that nobody came back for
ABANDON = 24 * 3600.0  # seconds after which an upload is nobody's any more, and between looks for such
TELL = 3600.0  # seconds between tellings of what was used, and between looks whether the bucket is to be tidied
LEFT = 7 * 86400.0  # seconds after which what a replica that died left in the bucket is removed
FORGET = 24 * 3600.0  # seconds between looks for records of what is gone


class Errands:
    """Over one store and its configuration."""

    def __init__(
        self, config: Config, tree: files.Tree, housekeeping: Housekeeping, metrics: Metrics, log: Logger
    ) -> None:
        self._config = config
        self._tree = tree
        self._housekeeping = housekeeping
        self._metrics = metrics
        self._log = log

    def jobs(self, scrubber: Scrubber, stock: Stock, replicas: Replicas | None) -> list[Job]:
        """All of them, each with how often it is done."""
        return [
            Job("sweep", SWEEP, lambda: files.hop(self._sweep)),
            Job("forget", FORGET, self._forget),
            *self._scrubs(scrubber),
            *self._expiries(),
            *self._rounds(stock),
            *self._bucket_jobs(replicas),
        ]

    def _sweep(self) -> None:
        sweep(self._tree)
        recording.sweep(self._tree)

    async def _forget(self) -> None:
        if await files.hop(forget, self._tree):
            await announce_change(self._tree)  # what is remembered of them would keep them from being written anew

    def _scrubs(self, scrubber: Scrubber) -> Iterator[Job]:
        if self._config.store.scrub_rate:
            yield Job("scrub", self._config.store.scrub_interval, scrubber.patrol)

    def _expiries(self) -> Iterator[Job]:
        if self._config.lifecycle:
            policies = lifecycle.configured(self._config.lifecycle, self._config.upstream)
            expiry = Expiry(self._config.store.path, policies, self._housekeeping.record_uses, self._expired)
            yield Job(lifecycle.JOB, self._config.store.lifecycle_interval, expiry.run)

    def _expired(self, one: Answer) -> None:
        self._metrics.expired_images.inc()
        self._metrics.expired_bytes.inc(one["freed"])
        keys = ("repository", "tags", "digest", "policy", "rule", "why")
        self._log.info("expired", **{key: one[key] for key in keys}, bytes=one["freed"])

    def _rounds(self, stock: Stock) -> Iterator[Job]:
        for entry in self._config.warm:
            going = Round(entry, self._config.routes, stock, self._metrics, self._log)
            yield Job(going.name, entry.every, going)

    def _bucket_jobs(self, replicas: Replicas | None) -> Iterator[Job]:
        if self._config.store.s3 is None or replicas is None:
            return
        durable = replicas.durable
        uses = Uses(
            self._tree, durable, replicas.leases.holder,
            kept=lambda: pins.kept(self._tree), record_uses=self._housekeeping.record_uses,
        )  # fmt: skip
        yield Job("uses", TELL, uses.tell)
        yield Job("abandon", ABANDON, lambda: _sweep_bucket(durable))
        tidying = Tidying(self._config.store.s3, durable, self._metrics, self._log)
        if tidying.has_limits:
            yield Job("tidy", TELL, tidying.run)


async def _sweep_bucket(durable: Durable) -> None:
    """What a crash, here or elsewhere, left in the bucket, and what says nothing any more."""
    await durable.abandon(time.time() - ABANDON)
    await durable.sweep({f"{LEASES}/": LEFT, "trial/": LEFT, f"{USES}/": LIFE})
