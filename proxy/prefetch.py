"""What a client will ask for next: the blobs that a manifest names, brought in as soon as the manifest has come."""

import asyncio
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from proxy.blobs import Blobs
from proxy.oci.digest import Digest
from proxy.oci.errors import OciError
from proxy.oci.manifest import INDEXES, Manifest
from proxy.oci.reference import Repository
from proxy.telemetry import Logger

MOST = 128  # blobs of one manifest ...
MOST_WAITING = 512  # ... and of all, whose download has not begun: clients have places of their own


class Prefetch:
    """Starts the fills of a platform's manifest. `patterns`: per registry, of the repositories it is done for."""

    def __init__(self, patterns: Mapping[str, Sequence[str]], blobs: Blobs, log: Logger) -> None:
        self._patterns = patterns
        self._blobs = blobs
        self._log = log
        self._tasks: set[asyncio.Task[None]] = set()

    def came(self, repository: Repository, manifest: Manifest) -> None:
        """A manifest has come from upstream. An index is let be: which of its platforms is wanted is not known yet."""
        patterns = self._patterns.get(repository.registry, ())
        if manifest.media_type in INDEXES or not any(fnmatchcase(repository.name, one) for one in patterns):
            return
        near = [one.digest for one in manifest.descriptors if not one.is_elsewhere]
        for digest in list(dict.fromkeys(near))[: min(MOST, MOST_WAITING - len(self._tasks))]:
            task = asyncio.create_task(self._bring(repository, digest))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _bring(self, repository: Repository, digest: Digest) -> None:
        """Ask for a blob as a client would, and leave: the fill goes on."""
        try:
            (await self._blobs.open(repository, digest)).close()
        except (OciError, OSError) as error:
            self._log.info("not prefetched", repository=str(repository), digest=str(digest), reason=str(error))

    async def aclose(self) -> None:
        """Give up what has not begun."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
