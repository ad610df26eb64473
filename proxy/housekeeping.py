"""What is done every few seconds, and not per request: uses written down, files swept, others' changes heeded."""

import asyncio
import time
from collections.abc import Sequence

from proxy import files
from proxy.certificates import Certificate
from proxy.eviction import Space
from proxy.manifests import Manifests
from proxy.stores import quarantine
from proxy.stores.disk import CHANGES, CHANGES_LIMIT, DiskBlobs, DiskRepositories
from proxy.telemetry import Logger, Metrics
from proxy.upstream import Upstream

TICK = 5.0  # seconds between rounds
SPOOL_LIFE = 24 * 3600.0  # seconds that a broken-off download waits to be resumed
SCARCE = 0.9  # of the descriptors in use is worth a warning


class Housekeeping:
    """Goes round as long as the process lives; a round that fails is logged, and tried again."""

    def __init__(  # noqa: PLR0913  the composition root hands over what there is to look after
        self,
        *,
        tree: files.Tree,
        store: DiskBlobs,
        repositories: DiskRepositories,
        space: Space,
        manifests: Manifests,
        upstreams: Sequence[Upstream],
        metrics: Metrics,
        log: Logger,
    ) -> None:
        self._tree = tree
        self._store = store
        self._repositories = repositories
        self._space = space
        self._manifests = manifests
        self.upstreams = upstreams
        self._metrics = metrics
        self._log = log
        self._limit = 0
        self._changes: bytes | None = None

    async def run(self, certificate: Certificate | None = None) -> None:
        """Go round until cancelled; what fails is logged, and tried again the next time."""
        before, self._limit = files.raise_descriptor_limit()
        self._metrics.descriptor_limit.set(self._limit)
        self._log.debug("descriptor limit", before=before, now=self._limit)
        while True:
            try:
                await self._round(certificate)
            except Exception:
                self._log.exception("housekeeping failed; it is tried again")
            await asyncio.sleep(TICK)

    async def _round(self, certificate: Certificate | None) -> None:
        await self._manifests.note_uses()
        await self._store.record_uses()
        await self._repositories.record_pulls()
        await self._heed_changes()
        self._metrics.cache_bytes.set(await self._space.refresh())
        for upstream in self.upstreams:
            await upstream.tick()
        count = await files.count_descriptors()
        self._metrics.descriptors.set(count)
        if count > SCARCE * self._limit:
            self._log.warning("file descriptors are scarce", open=count, limit=self._limit, remedy="raise LimitNOFILE")
        if certificate is not None:
            await certificate.refresh(self._log)

    async def _heed_changes(self) -> None:
        """What an operator has changed is not to be remembered as it was."""
        changes = await self._tree.read(CHANGES, CHANGES_LIMIT)
        if changes != self._changes:
            self._changes = changes
            self._repositories.forget()
            self._manifests.forget()


def sweep(tree: files.Tree) -> None:
    """Drop what nobody came back for: broken-off downloads, files that a crash left half-written, what was damaged."""
    # What was written before the machine came up may have lost its last bytes in a power cut.
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    for directory in ("spool", "tmp"):
        for entry in tree.scan(directory):
            if entry.used < max(time.time() - SPOOL_LIFE, booted):
                tree.evict(entry.key)
    quarantine.sweep(tree, time.time())
