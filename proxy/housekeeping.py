"""What is done every few seconds, and not per request: uses written down, files swept, others' changes heeded."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence

from proxy import files
from proxy.certificates import Certificate
from proxy.eviction import Space
from proxy.manifests import Manifests
from proxy.stores import quarantine
from proxy.stores.directory import BOOT, BOOT_LIMIT, CHANGES, CHANGES_LIMIT
from proxy.stores.disk import DiskBlobs, DiskRepositories
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
        self._troubles: dict[str, int | None] = {}  # errno of each step that failed the last time

    async def run(self, certificate: Certificate | None = None) -> None:
        """Go round until cancelled; what fails is logged, and tried again the next time."""
        before, self._limit = files.raise_descriptor_limit()
        self._metrics.descriptor_limit.set(self._limit)
        self._log.debug("descriptor limit", before=before, now=self._limit)
        async with asyncio.TaskGroup() as group:
            for steps in (lambda: self._round(certificate), self._look_for_room):
                group.create_task(_again_and_again(steps))

    async def _round(self, certificate: Certificate | None) -> None:
        """One step after the other, each whether or not the others fail."""
        # Before changes are heeded: what only memory has would be forgotten then.
        await self._step("links", self._repositories.write_again)
        await self._step("manifests", self._manifests.store_again)
        await self.record_uses()
        await self._step("changes", self._heed_changes)
        await self._step("lost downloads", lambda: drop_lost(self._tree))
        for upstream in self.upstreams:
            await self._step(f"limits of {upstream.registry}", upstream.tick)
        await self._step("descriptors", self._count_descriptors)
        if certificate is not None:
            await self._step("certificate", lambda: certificate.refresh(self._log))

    async def record_uses(self) -> None:
        """Write down what this process's clients have pulled, and that all that belongs to it was used."""
        await self._step("uses of images", self._manifests.note_uses)
        await self._step("uses of blobs", self._store.record_uses)
        await self._step("pulls", self._repositories.record_pulls)

    async def _look_for_room(self) -> None:
        """What takes minutes where there are a million blobs: nothing else is to wait for it."""
        await self._step("room", self._space.prepare)
        await self._step("space", self._count)

    async def _step(self, name: str, step: Callable[[], Awaitable[None]]) -> None:
        """What fails is tried again in the next round. A disk that goes on refusing is worth one line, not one each."""
        try:
            await step()
        except OSError as error:
            if self._troubles.get(name) != error.errno:
                self._log.warning("housekeeping failed; it is tried again", step=name, reason=str(error))
            self._troubles[name] = error.errno
        except Exception:
            self._log.exception("housekeeping failed; it is tried again", step=name)
        else:
            if self._troubles.pop(name, None) is not None:
                self._log.info("housekeeping goes on", step=name)

    async def _count(self) -> None:
        self._metrics.cache_bytes.set(await self._space.refresh())

    async def _count_descriptors(self) -> None:
        count = await files.count_descriptors()
        self._metrics.descriptors.set(count)
        if count > SCARCE * self._limit:
            self._log.warning("file descriptors are scarce", open=count, limit=self._limit, remedy="raise LimitNOFILE")

    async def _heed_changes(self) -> None:
        """What an operator has changed is not to be remembered as it was."""
        changes = await self._tree.read(CHANGES, CHANGES_LIMIT)
        if changes != self._changes:
            self._changes = changes
            self._repositories.forget()
            self._manifests.forget()


async def _again_and_again(steps: Callable[[], Awaitable[None]]) -> None:
    while True:
        await steps()
        await asyncio.sleep(TICK)


def sweep(tree: files.Tree) -> None:
    """Drop what nobody came back for: broken-off downloads, files that a crash left half-written, what was damaged."""
    for directory in ("spool", "tmp"):
        for entry in tree.scan(directory):
            if entry.used < time.time() - SPOOL_LIFE:
                with contextlib.suppress(OSError):  # the next sweep may be able to
                    tree.evict(entry.key)
    quarantine.sweep(tree, time.time())


async def drop_lost(tree: files.Tree) -> None:
    """Drop the downloads that were left before the machine booted, or by another machine. Raises OSError.

    A power cut may have taken the last of their bytes, and the readers of a resumed one get them before the digest is
    known. No clock is asked: it may be wrong until the network is up.
    """
    boot = await files.hop(files.boot)
    if await tree.read(BOOT, BOOT_LIMIT) == boot:
        return
    for entry in await files.hop(tree.scan, "spool"):
        await files.hop(tree.evict, entry.key)
    await tree.write(BOOT, boot)
