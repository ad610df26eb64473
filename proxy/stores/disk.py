"""The store on local disk: blobs, links and tags as files, and the directory is the database."""

import errno
import os
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from cachetools import LRUCache

from proxy.files import Handle, Tree, hop
from proxy.later import Later
from proxy.oci.digest import Digest
from proxy.oci.history import Move
from proxy.oci.reference import Repository, Tag
from proxy.stores import quarantine
from proxy.stores.base import Link, Pin, TagRecord
from proxy.stores.keys import blob_key, history_key, link_key, pin_key, spool_key, tag_key
from proxy.stores.records import (
    HISTORY_LIMIT,
    RECORD_LIMIT,
    history_body,
    link_body,
    parse_history,
    parse_link,
    parse_record,
    parse_tag,
    pin_body,
    read_tag,
    tag_body,
)

TAG_LOCKS = 16  # files, one of which is locked while a tag is recorded
LINKS_IN_MEMORY = 65536
USES_IN_MEMORY = 65536
BLOBS_IN_MEMORY = 65536  # digests, not bytes


class DiskBlobs:
    """Blobs as files named by their digest; the time of last modification is the time of last use."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self._uses: LRUCache[Digest, float] = LRUCache(USES_IN_MEMORY)
        self._known: LRUCache[Digest, bool] = LRUCache(BLOBS_IN_MEMORY)  # that were there, and are not known to be gone

    async def open(self, digest: Digest) -> Handle | None:
        handle = await self.tree.open(blob_key(digest))
        if handle is None:
            self._known.pop(digest, None)
        else:
            self._known[digest] = True
        return handle

    def is_known(self, digest: Digest) -> bool:
        return digest in self._known

    async def put(self, digest: Digest, body: bytes) -> None:
        await self.tree.write(blob_key(digest), body, committed=True)

    async def adopt(self, digest: Digest, spool: Handle, key: str | None = None) -> None:
        await self.tree.commit_spool(key or spool_key(digest), spool, blob_key(digest))

    async def fetch(self, digest: Digest, limit: int) -> bytes | None:
        return None

    async def remove(self, digest: Digest, damaged: Handle) -> None:
        self._known.pop(digest, None)
        await hop(lambda: quarantine.set_aside(self.tree, blob_key(digest), os.fstat(damaged.fd)))

    def used(self, digest: Digest) -> None:
        self._uses[digest] = time.time()

    async def record_uses(self) -> None:
        """Write down the uses since the last time: once in a while, not once a request. What is gone is known then."""
        uses = {blob_key(digest): (digest, when) for digest, when in self._uses.items()}
        self._uses.clear()
        if uses:
            for key in await self.tree.touch((key, when) for key, (_, when) in uses.items()):
                self._known.pop(uses[key][0], None)


class DiskRepositories:
    """Links and tags as small JSON files, written whole and renamed into place."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._links: LRUCache[tuple[Repository, Digest], Link] = LRUCache(LINKS_IN_MEMORY)
        self._pulls: LRUCache[tuple[Repository, Digest], float] = LRUCache(USES_IN_MEMORY)
        self._unwritten: Later[tuple[Repository, Digest]] = Later(LINKS_IN_MEMORY)  # that the disk would not take

    async def link(self, repository: Repository, digest: Digest) -> Link | None:
        return await self._link_here(repository, digest)

    def is_known(self, repository: Repository, digest: Digest) -> bool:
        return (repository, digest) in self._links

    async def _link_here(self, repository: Repository, digest: Digest) -> Link | None:
        known = self._links.get((repository, digest))
        if known is not None:
            return known
        record = await self._read(link_key(repository, digest))
        link = None if record is None else parse_link(record)
        if link is not None:
            self._links[repository, digest] = link
        return link

    async def put_link(self, repository: Repository, digest: Digest, link: Link) -> None:
        try:
            known = await self._link_here(repository, digest)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            known = None  # it cannot be read: the new one takes its name
        if known == link and (repository, digest) not in self._unwritten:
            return
        cached = time.time() if known is None or known.cached is None else known.cached
        link = replace(link, cached=cached)
        self._links[repository, digest] = link  # true whether or not the disk has room for it
        self._unwritten.add((repository, digest))
        await self._tree.write(link_key(repository, digest), link_body(link))
        self._unwritten.discard((repository, digest))

    async def write_again(self) -> None:
        """Write the links that the disk would not take before. Raises OSError."""

        async def write(image: tuple[Repository, Digest]) -> None:
            link = self._links.get(image)
            if link is not None:
                self._unwritten.add(image)
                await self.put_link(*image, link)

        await self._unwritten.again(write)

    async def tag(self, repository: Repository, tag: Tag) -> TagRecord | None:
        record = await self._read(tag_key(repository, tag))
        return None if record is None else parse_tag(record)

    async def put_tag(self, repository: Repository, tag: Tag, record: TagRecord, *, thaws: bool = False) -> bool:
        return await hop(self._put_tag, repository, tag, record, thaws)

    def _put_tag(self, repository: Repository, tag: Tag, record: TagRecord, thaws: bool) -> bool:
        """Look and write under one lock: whoever freezes a tag while another one notes it must not lose."""
        key = tag_key(repository, tag)
        with self._tree.locked(f"jobs/tags-{zlib.crc32(key.encode()) % TAG_LOCKS}"):
            known = read_tag(self._tree, repository, tag)
            if known is not None and known.is_frozen and not (record.is_frozen or thaws):
                return False
            self._tree.write_now(key, tag_body(record))
        return True

    async def drop_tag(self, repository: Repository, tag: Tag) -> None:
        await self._tree.remove(tag_key(repository, tag))

    async def history(self, repository: Repository, tag: Tag) -> Sequence[Move]:
        record = await self._read(history_key(repository, tag), HISTORY_LIMIT)
        return () if record is None else parse_history(record)

    async def put_history(self, repository: Repository, tag: Tag, history: Sequence[Move]) -> None:
        await self._tree.write(history_key(repository, tag), history_body(history))

    def pulled(self, repository: Repository, digest: Digest) -> None:
        self._pulls[repository, digest] = time.time()

    async def record_pulls(self) -> None:
        """Write down the pulls since the last time: once in a while, not once a request."""
        images = {link_key(*image): image for image in self._pulls}
        pulls = [(link_key(*image), when) for image, when in self._pulls.items()]
        self._pulls.clear()
        if pulls:
            # Memory knows the link; the next process will not, unless it is written again.
            for key in await self._tree.touch(pulls):
                self._unwritten.add(images[key])

    async def put_pin(self, repository: Repository, name: Tag | Digest, pin: Pin) -> None:
        """Keep a tag's image, or a manifest, from going."""
        await self._tree.write(pin_key(repository, name), pin_body(pin))

    async def drop_pin(self, repository: Repository, name: Tag | Digest) -> None:
        """Let it go again."""
        await self._tree.remove(pin_key(repository, name))

    def forget(self) -> None:
        """Read everything anew: somebody else has changed it."""
        self._links.clear()

    async def _read(self, key: str, limit: int = RECORD_LIMIT) -> Mapping[str, Any] | None:
        """A record; None if there is none, or a power cut left no more than its name."""
        body = await self._tree.read(key, limit)
        return None if body is None else parse_record(body)
