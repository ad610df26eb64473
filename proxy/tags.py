"""What tags stand for, as far as the cache has seen: remembered and recorded, and for how long it is believed."""

import math
import time
from collections.abc import Mapping

from cachetools import LRUCache

from proxy.later import Later
from proxy.oci import history
from proxy.oci.digest import Digest
from proxy.oci.errors import OciError, Problem
from proxy.oci.freshness import Verdict, verdict
from proxy.oci.history import Move
from proxy.oci.ratelimit import as_utc
from proxy.oci.reference import Repository, Tag
from proxy.stores.base import RepositoryStore, TagRecord
from proxy.telemetry import Logger
from proxy.upstream import Upstream

IN_MEMORY = 16384
UNRECORDED = 10_000
SOON = 10.0  # seconds before a tag is believed no more, at most, in which upstream is asked without anybody waiting
JUST_NOW = 1.0  # seconds for which upstream's word counts even for who wants it anew: nobody is to make a storm of that


class Tags:
    """The records of tags: memory in front of the store, where another worker or replica may know better."""

    def __init__(self, upstreams: Mapping[str, Upstream], repositories: RepositoryStore, log: Logger) -> None:
        self._upstreams = upstreams
        self._repositories = repositories
        self._log = log
        self._memory: LRUCache[tuple[Repository, Tag], TagRecord] = LRUCache(IN_MEMORY)
        self._unrecorded: Later[tuple[Repository, Tag]] = Later(UNRECORDED)  # that the disk would not take

    def forget(self) -> None:
        """Read everything anew from the store: an operator has changed it."""
        self._memory.clear()

    def remembered(self, repository: Repository, tag: Tag) -> TagRecord | None:
        """What a tag stands for, if memory has it and it is still believed."""
        record = self._memory.get((repository, tag))
        return record if record is not None and self._is_believed(repository, record, anew=False) else None

    async def believed(self, repository: Repository, tag: Tag, anew: bool) -> TagRecord | None:
        """What a tag stands for, if upstream need not be asked for it now. Raises OSError.

        `anew`: only what it has said a moment ago is good enough.
        """
        record = self._memory.get((repository, tag))
        if record is None or not self._is_believed(repository, record, anew):
            record = await self.recorded(repository, tag)  # another worker may know better
        if record is None or not self._is_believed(repository, record, anew):
            return None
        self._memory[repository, tag] = record
        return record

    async def found_elsewhere(self, repository: Repository, tag: Tag) -> TagRecord | None:
        """What another process has found that a tag stands for, and is not due either. Raises OSError."""
        known = self._memory.get((repository, tag))
        record = await self.recorded(repository, tag)
        if record is None or not self._is_believed(repository, record, anew=False) or self.is_due(repository, record):
            return None
        if self._memory.get((repository, tag)) is known:  # else this process has heard of it meanwhile
            self._memory[repository, tag] = record
        return record

    async def recorded(self, repository: Repository, tag: Tag) -> TagRecord | None:
        """What a tag stood for when upstream was last asked, however long ago. Raises OSError."""
        return await self._repositories.tag(repository, tag)

    async def as_of(self, repository: Repository, tag: Tag, when: float) -> Digest:
        """What a tag stood for then (seconds since the epoch), as far as was seen. Raises OciError, OSError."""
        seen = await self._repositories.history(repository, tag)
        digest = history.as_of(seen, when)
        if digest is None:
            first = f"it was first seen at {as_utc(seen[0].at)}" if seen else "it was never pulled through here"
            raise OciError(
                Problem.MANIFEST_UNKNOWN, f"nobody knows what {repository}:{tag} was as of {as_utc(when)}: {first}"
            )
        return digest

    # How long it is believed

    def _is_believed(self, repository: Repository, record: TagRecord, anew: bool) -> bool:
        """Whether a tag is answered without a question to upstream."""
        upstream = self._upstreams[repository.registry]
        now = time.time()
        if not anew and 0.0 <= now - record.checked < upstream.least_tag_ttl:
            return True
        ttl = upstream.tag_ttl(repository)
        if record.is_frozen or upstream.is_sealed or ttl == math.inf:
            return True  # whatever the clock says
        ttl = min(ttl, JUST_NOW) if anew else ttl
        return verdict(record.checked, now, ttl) is Verdict.FRESH

    def is_due(self, repository: Repository, record: TagRecord) -> bool:
        """Whether a tag that is still believed will soon not be: whoever asks then would wait for upstream.

        Not where it is believed for longer since upstream allows little more, nor where the question may be a pull.
        """
        upstream = self._upstreams[repository.registry]
        ttl = upstream.least_tag_ttl
        if not ttl - min(ttl / 10, SOON) <= time.time() - record.checked < ttl:
            return False
        if record.is_frozen or upstream.is_sealed or upstream.refuses_head(repository):
            return False
        return upstream.tag_ttl(repository) <= ttl

    def stretched(self, repository: Repository, record: TagRecord) -> str | None:
        """What to say of an answer that is older than it would be if upstream allowed more."""
        age = time.time() - record.checked
        if record.is_frozen or not self._upstreams[repository.registry].is_stretched(repository, age):
            return None
        return f"{repository.registry} allows little more; this is what it said {int(age)} s ago"

    def age(self, record: TagRecord) -> int:
        """Seconds since upstream was asked."""
        return max(0, int(time.time() - record.checked))

    # What is recorded

    async def keep(self, repository: Repository, tag: Tag, digest: Digest) -> None:
        """Upstream has just said what a tag stands for: remember that, and record it if the disk takes it."""
        record = TagRecord(digest, time.time())
        try:
            await self._record(repository, tag, record)
        except OSError as error:
            self._memory[repository, tag] = record
            self._unrecorded.add((repository, tag))
            self._log.error("tag not recorded", repository=str(repository), tag=str(tag), reason=error.strerror)

    async def _record(self, repository: Repository, tag: Tag, record: TagRecord) -> None:
        known = await self._repositories.tag(repository, tag)
        if not await self._repositories.put_tag(repository, tag, record):
            return  # it was frozen while upstream was being asked
        self._memory[repository, tag] = record
        if known is None or known.digest != record.digest:
            await note_move(self._repositories, repository, tag, Move(record.checked, record.digest))

    async def drop(self, repository: Repository, tag: Tag) -> None:
        """A tag is gone, or not for us. Raises OSError."""
        self._memory.pop((repository, tag), None)
        await self._repositories.drop_tag(repository, tag)

    async def record_again(self) -> None:
        """Record what the disk would not take before: only this process's memory has it. Raises OSError."""

        async def record(named: tuple[Repository, Tag]) -> None:
            known, stored = self._memory.get(named), await self._repositories.tag(*named)
            is_older = known is not None and stored is not None and known.checked < stored.checked <= time.time()
            if known is not None and not is_older:  # another worker may have asked since
                await self._record(*named, known)

        await self._unrecorded.again(record)


async def note_move(repositories: RepositoryStore, repository: Repository, tag: Tag, move: Move) -> None:
    """Add to what a tag has stood for, unless it is nothing new. Raises OSError."""
    seen = await repositories.history(repository, tag)
    now = history.moved(seen, move.digest, move.at)
    if len(now) != len(seen) or now[-1:] != tuple(seen[-1:]):
        await repositories.put_history(repository, tag, now)
