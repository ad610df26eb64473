"""Bringing images in before anybody asks for them: manifests, and every blob of the platforms that are wanted."""

import asyncio
import platform as machine
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from proxy.blobs import Blobs
from proxy.manifests import Manifests
from proxy.oci.digest import Digest
from proxy.oci.errors import OciError, Problem
from proxy.oci.manifest import INDEXES, MOST_NESTED, Manifest
from proxy.oci.platform import Platform, is_wanted, of_index
from proxy.oci.reference import Reference, Repository, Tag

AT_ONCE = 4  # blobs; each may take several connections, and clients want some as well
TRIES = 3
LONGEST_WAIT = 60.0  # seconds that a limit or an outage is waited out before the next try
FIRST_WAIT = 1.0
T = TypeVar("T")

_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


def here() -> Platform:
    """The platform of this machine, as images call it."""
    return Platform("linux", _MACHINES.get(machine.machine(), machine.machine()))


def platforms(texts: Sequence[str]) -> list[Platform]:
    """The platforms that are named: this machine's by default, and an empty list for "all". Raises ValueError."""
    return [] if "all" in texts else [Platform.parse(text) for text in texts] or [here()]


@dataclass(slots=True)
class Warmed:
    """What became of an image: its digest (none of parts alone), the blobs that came, in bytes, its failures."""

    digest: Digest | None
    blobs: dict[Digest, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Parts:
    """Manifests and blobs of a repository that are wanted, and nothing else of it; what its tags are to stand for."""

    tags: dict[Tag, Digest] = field(default_factory=dict)
    manifests: dict[Digest, None] = field(default_factory=dict)
    blobs: dict[Digest, None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Report:
    """Whom to tell how it goes on, in bytes: `found` is how many there are, `arrived` how many more are here."""

    found: Callable[[int], None]
    arrived: Callable[[int], None]


class Warming:
    """Brings images in. `platforms`: which of an index, all of them if there are none."""

    def __init__(self, manifests: Manifests, blobs: Blobs, platforms: Sequence[Platform]) -> None:
        self._manifests = manifests
        self._blobs = blobs
        self._platforms = platforms
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def bring(self, repository: Repository, reference: Reference, report: Report) -> Warmed:
        """Bring one image in; what was begun before is gone on with. Raises OciError if there is no such image."""
        served = await _patiently(partial(self._manifests.get, repository, reference))
        root, warmed = served.manifest, Warmed(served.manifest.digest)
        if served.warning is not None:
            warmed.failures.append(served.warning)
        for manifest in await self._parts(repository, root, warmed, MOST_NESTED):
            for descriptor in manifest.descriptors:
                if not descriptor.is_elsewhere:
                    warmed.blobs.setdefault(descriptor.digest, descriptor.size)
        await self._bring(repository, warmed, report)
        return warmed

    async def exactly(self, repository: Repository, parts: Parts, report: Report) -> Warmed:
        """Bring some manifests and blobs in, and nothing else; a tag that the cache has stays what it is."""
        warmed, sizes = Warmed(None), dict[Digest, int]()
        for digest in parts.manifests:
            try:
                found = await _patiently(partial(self._manifest, repository, digest))
                sizes |= {one.digest: one.size for one in found.descriptors}
            except OciError as error:
                warmed.failures.append(f"{digest}: {error.message}")
        warmed.blobs |= {digest: sizes.get(digest, 0) for digest in parts.blobs}
        await self._bring(repository, warmed, report)
        return warmed

    async def _bring(self, repository: Repository, warmed: Warmed, report: Report) -> None:
        report.found(sum(warmed.blobs.values()))
        async with asyncio.TaskGroup() as group:
            for digest in warmed.blobs:
                group.create_task(self._blob(repository, digest, warmed, report))

    async def _manifest(self, repository: Repository, reference: Reference) -> Manifest:
        return (await self._manifests.get(repository, reference)).manifest

    async def _parts(self, repository: Repository, root: Manifest, warmed: Warmed, depth: int) -> list[Manifest]:
        """The manifests of the platforms that are wanted; what else an index holds comes with all of them only."""
        if root.media_type not in INDEXES or not depth:
            return [root]
        parts: list[Manifest] = []
        wanted = [digest for digest, platform in of_index(root.body) if is_wanted(platform, self._platforms)]
        if not wanted:
            warmed.failures.append(f"it has nothing for {', '.join(map(str, self._platforms)) or 'any platform'}")
        for digest in wanted:
            try:
                part = await _patiently(partial(self._manifest, repository, digest))
            except OciError as error:
                warmed.failures.append(f"{digest}: {error.message}")
                continue
            parts += await self._parts(repository, part, warmed, depth - 1)
        return parts

    async def _blob(self, repository: Repository, digest: Digest, warmed: Warmed, report: Report) -> None:
        seen = 0

        async def arrive() -> None:
            nonlocal seen
            blob = await self._blobs.open(repository, digest)
            try:
                async for there in blob.arriving():
                    report.arrived(max(0, there - seen))
                    seen = max(seen, there)
            finally:
                blob.close()

        async with self._turns:
            try:
                await _patiently(arrive)
            except (OciError, OSError) as error:
                reason = error.message if isinstance(error, OciError) else f"the disk fails ({error.strerror})"
                warmed.failures.append(f"{digest}: {reason}")
                del warmed.blobs[digest]


async def _patiently(work: Callable[[], Awaitable[T]]) -> T:
    """Do it, and once more after what may be over soon: an outage, a limit, or a cache that is busy."""
    for number in range(TRIES - 1):
        try:
            return await work()
        except OciError as error:
            if not error.problem.is_outage or error.problem is Problem.UPSTREAM_INVALID:
                raise
            wait = FIRST_WAIT * 2**number if error.retry_after is None else error.retry_after
            if wait > LONGEST_WAIT:
                raise
            await asyncio.sleep(wait)
    return await work()
