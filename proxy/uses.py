"""Which blobs were used, as replicas tell each other through the bucket: an object for each day and directory.

A line of it is the beginning of a blob's digest, and stands for a use no later than when the object was written: that
is the store's own time, so that nobody's clock matters. The day in its key only parts one day from the next. Should two
blobs begin alike, one of them counts as used when the other was.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import islice

from proxy.files import Tree, hop, read_number, write_number
from proxy.oci.digest import Digest
from proxy.pins import closure
from proxy.stores.durable import Durable
from proxy.stores.keys import blob_digest, parse_key
from proxy.stores.s3 import Bucket, Stored

DIRECTORY = "uses"
LIFE = 400 * 86400.0  # seconds that an object of them is kept
MOST = 2**18  # blobs of a day that a directory tells of, pinned ones first
LIMIT = MOST * 17  # bytes of such an object
TOLD = "jobs/uses-told"  # the file: up to when uses have been told, in seconds since the epoch
SLACK = 60.0  # seconds after which a use is surely written down on disk
STEP = 512  # files that are looked at in one go
IDLE = 4.0  # times as long as that took, it rests
AT_ONCE = 8  # objects that are read side by side
_LINE = 16  # hexadecimal digits


def short(digest: Digest) -> bytes:
    """A blob's line."""
    return digest.encoded[:_LINE].encode()


def parse(body: bytes) -> Iterator[bytes]:
    """The lines of an object, whatever is in it."""
    return (body[start : start + _LINE] for start in range(0, len(body), _LINE + 1))


@dataclass(frozen=True, slots=True)
class Told:
    """When blobs were used last, by their lines, and since when replicas tell; all in seconds since the epoch.

    Nobody knows what was used before that.
    """

    since: float
    last: Mapping[bytes, float]


async def told(bucket: Bucket, since: float, after: float = 0.0) -> Told:
    """What replicas have told since then. Raises BucketError.

    `after`: days that lie more than one before this moment are not looked at. All in seconds since the epoch.
    """
    first = f"{DIRECTORY}/{_day(after) - timedelta(days=1)}" if after else ""
    began, recent = math.inf, list[Stored]()
    async with contextlib.aclosing(bucket.keys(f"{DIRECTORY}/", first)) as keys:
        async for one in keys:
            began = min(began, one.modified)
            if one.modified >= since:
                recent.append(one)
    found = dict[bytes, float]()

    async def add(one: Stored) -> None:
        for line in parse(await bucket.read(one.key, LIMIT) or b""):
            found[line] = max(one.modified, found.get(line, 0.0))

    for start in range(0, len(recent), AT_ONCE):
        for error in await asyncio.gather(*map(add, recent[start : start + AT_ONCE]), return_exceptions=True):
            if error is not None:
                raise error
    return Told(began, found)


class Uses:
    """Tells the others what this directory has used, of which the modification times of its blobs speak."""

    def __init__(
        self,
        tree: Tree,
        durable: Durable,
        holder: str,
        *,
        kept: Callable[[], frozenset[str]],
        record_uses: Callable[[], Awaitable[None]],
    ) -> None:
        """`kept` are the keys of what counts as used each day; `record_uses` writes down what this process remembers.

        `holder` is what the directory is called.
        """
        self._tree = tree
        self._durable = durable
        self._holder = holder
        self._kept = kept
        self._record_uses = record_uses

    async def tell(self) -> None:
        """Tell what has been used since the last time, as used today. Raises OSError."""
        await self._record_uses()
        began = time.time()
        key = f"{DIRECTORY}/{_day(began)}/{self._holder}"
        if await self._durable.change(key, LIMIT, self._with_what_is_new):
            await hop(self._note, began - SLACK)

    async def _with_what_is_new(self, known: bytes | None) -> bytes | None:
        """Today's object as it is to be; None if it is. The first of a day has what is kept as well."""
        lines = set[bytes]() if known is None else set(parse(known))
        before, since = len(lines), await hop(self._told)
        if known is None:
            lines.update(islice(_lines(await hop(self._kept)), MOST))
        await self._add(lines, "repositories", since, self._of_a_link)
        await self._add(lines, "blobs", since, lambda key: _lines((key,)))
        return None if len(lines) == before else b"".join(line + b"\n" for line in sorted(lines))

    async def _add(
        self, lines: set[bytes], directory: str, since: float, told: Callable[[str], Iterable[bytes]]
    ) -> None:
        """Add what there is to be told of the files that were used since then."""
        walked = self._tree.walk(directory)
        try:
            while some := await hop(lambda: list(islice(walked, STEP))):
                began = time.monotonic()
                found = await hop(lambda: {line for one in some if one.used >= since for line in told(one.key)})
                lines.update(islice(found, max(0, MOST - len(lines))))
                await asyncio.sleep(IDLE * (time.monotonic() - began))
        finally:
            await hop(walked.close)

    def _of_a_link(self, key: str) -> Iterator[bytes]:
        """All that belongs to a manifest that was asked for: clients may have it already, or from the bucket itself."""
        record = parse_key(key)
        if record is not None and isinstance(record.name, Digest):
            yield from map(short, closure(self._tree, record.repository, record.name))

    def _told(self) -> float:
        """Up to when uses have been told: never, if that is in the future, for then the clock was wrong."""
        with self._tree.locked(TOLD) as fd:
            told = read_number(fd)
        return told if told <= time.time() else 0.0

    def _note(self, moment: float) -> None:
        with self._tree.locked(TOLD) as fd:
            write_number(fd, int(moment))


def _lines(keys: Iterable[str]) -> Iterator[bytes]:
    return (short(digest) for digest in map(blob_digest, keys) if digest is not None)


def _day(moment: float) -> date:
    return datetime.fromtimestamp(moment, UTC).date()
