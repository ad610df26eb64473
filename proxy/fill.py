"""One fill per blob among all processes: its spool is locked and written here, or followed as another one writes it."""

import asyncio
import contextlib
import enum
import errno
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from proxy import files
from proxy.ahead import Ahead
from proxy.blob_stream import LOW_SPEED
from proxy.download import Download, is_invalid
from proxy.eviction import NoSpace, Space
from proxy.files import Handle, SpoolState, Tree
from proxy.oci.digest import Digest, Hasher
from proxy.oci.errors import OciError, Problem
from proxy.oci.reference import Repository
from proxy.origin import FromReplicas, Origin, Source
from proxy.permissions import Permissions
from proxy.reservation import Reservation
from proxy.spool import End, Spool
from proxy.stores.base import BlobStore, Link
from proxy.stores.keys import blob_key
from proxy.tee import Growth
from proxy.telemetry import Logger
from proxy.tier import Shared
from proxy.upstream import Upstream

POLL = 0.01  # seconds between looks at a file that another process writes: the kernel tells nobody of a foreign flock
FORBEARANCE = 10.0  # seconds that a file may grow by less than LOW_SPEED before it is followed no more
LARGE = 64 * 1024 * 1024  # bytes of a blob whose upload does not wait for its end
PATIENCE = 1.0  # seconds to wait for another process's link before asking upstream ourselves


class Fate(enum.Enum):
    """What becomes of a spool file when its writer is done."""

    DISCARDED = enum.auto()
    LEFT = enum.auto()  # for whoever resumes it
    ADOPTED = enum.auto()


@dataclass(slots=True)
class Claim:
    """A spool file that this process alone may write: how much of it an earlier one had written (bytes), its fate."""

    growth: Growth
    resumed: int
    fate: Fate = Fate.DISCARDED


@dataclass(frozen=True, slots=True)
class Result:
    """How a fill ended, to be announced once it has left the table."""

    end: End
    error: OciError | None = None
    hasher: Hasher | None = None


@dataclass(frozen=True, slots=True)
class Means:
    """What every fill works with."""

    tree: Tree
    blobs: BlobStore
    space: Space
    log: Logger
    spool_key: Callable[[Digest], str]
    shared: Shared | None = None


class _StartAfresh(Exception):
    """What an earlier process left does not fit what upstream has: it is gone now, begin with nothing."""


class Fill:
    """One blob on its way into the store. It belongs to the cache: its readers come and go, and change nothing."""

    def __init__(
        self,
        repository: Repository,
        digest: Digest,
        upstream: Upstream,
        means: Means,
        permissions: Permissions,
    ) -> None:
        self.repository = repository
        self.digest = digest
        self.spool = Spool(digest)
        self._upstream = upstream
        self._means = means
        self._permissions = permissions
        # Bytes, as a manifest says. A link's size is only what upstream said once: if wrong, it must not stay so.
        self._expected = permissions.promised(repository, digest)
        self._growth: Growth | None = None
        self._recording: asyncio.Task[Link] | None = None  # of the link, which no client waits for
        self._key = means.spool_key(digest)
        self._log = means.log.bind(upstream=upstream.registry, repository=repository.name, digest=str(digest))

    async def run(self) -> Result:
        """Fill the spool. Never raises but for cancellation: its outcome is data."""
        try:
            return await self._run()
        except OciError as error:
            self._log.warning("fill failed", reason=error.message, at=self.spool.watermark)
            return Result(End.FAILED, error)
        except NoSpace:
            self._log.warning("blob not cached", reason="store.max_size leaves no room for it")
            return self._uncached()
        except OSError as error:
            if files.is_exhausted(error):
                self._log.error("fill failed", reason="out of file descriptors or memory")
                return Result(End.FAILED, OciError(Problem.OVERLOADED, "out of file descriptors", retry_after=2))
            self._log.error("blob not cached", reason=f"the disk refuses: {error.strerror}")
            return self._uncached()
        except Exception:
            self._log.exception("a defect: please report it")
            return Result(End.FAILED, OciError(Problem.OVERLOADED, "an error of the cache's own", retry_after=5))

    def _uncached(self) -> Result:
        """The readers go on from upstream, from what the spool has got so far and the hash of just that."""
        if not self.spool.is_open:
            return Result(End.UNCACHED)
        if self._growth is None or self._growth.done < self.spool.watermark:  # another process's, and we cannot read it
            return Result(End.FAILED, OciError(Problem.OVERLOADED, "the cache's disk fails", retry_after=2))
        self.spool.advance(self._growth.done)
        return Result(End.UNCACHED, hasher=self._growth.hasher)

    async def _run(self) -> Result:
        while True:
            handle = await self._means.tree.open_spool(self._key)
            try:
                match await self._follow(handle):
                    case SpoolState.COMMITTED:
                        return Result(End.VERIFIED)
                    case SpoolState.OURS:
                        return await self._stored(handle) or await self._write(handle)
                    case _ if self.spool.is_open:
                        return await self._abandoned(handle)
                    case _:
                        pass  # discarded before it had begun: look again, at the file that is there now
            except _StartAfresh:
                pass
            finally:
                handle.close()

    async def _follow(self, handle: Handle) -> SpoolState:
        """Follow the file as somebody else writes it, until it is done, or falls to us (at once, if nobody does).

        GROWING is returned when it does not: its writer is stopped, or has an upstream that only drips.
        """
        link: Link | None = None
        looks, looked, seen = 0, time.monotonic(), 0
        while True:
            state, size = await self._means.tree.inspect_spool(self._key, handle)
            if state is SpoolState.OURS or (state is SpoolState.GONE and not self.spool.is_open):
                return state
            if link is None:
                # The writer records the link as soon as upstream answers it, which spares us asking ourselves.
                patient = looks < PATIENCE / POLL and state is SpoolState.GROWING
                link = await (self._known() if patient else self._granted())
            if link is not None:
                is_trusted = self._means.shared is None or state is SpoolState.COMMITTED
                self._open(handle, size if state is SpoolState.COMMITTED else link.size, is_trusted=is_trusted)
                self.spool.advance(size)
                if state is not SpoolState.GROWING:
                    return state
                if time.monotonic() - looked > FORBEARANCE:
                    if size - seen < LOW_SPEED * FORBEARANCE:
                        return state
                    looked, seen = time.monotonic(), size
            looks += 1
            await asyncio.sleep(POLL)

    async def _known(self) -> Link | None:
        return await self._permissions.known(self.repository, self.digest)

    async def _granted(self) -> Link:
        return await self._permissions.granted(self.repository, self.digest)

    async def _abandoned(self, handle: Handle) -> Result:
        """Its writer gave the spool up, or does not get on: what there is has yet to be judged, the rest to be had."""
        hasher = self.digest.hasher()
        self.spool.advance(await files.rehash(handle, hasher))
        return Result(End.UNCACHED, hasher=hasher)

    def _open(self, handle: Handle, size: int | None, *, is_trusted: bool = True) -> None:
        if self.spool.is_open:
            return
        if size is None:
            size = self._expected
        elif self._expected not in {None, size}:
            raise OciError(
                Problem.UPSTREAM_INVALID,
                f"{self.repository.registry} has {size} bytes of a blob that its manifest says has {self._expected}",
            )
        self.spool.open(handle, size, is_trusted=is_trusted)

    async def _stored(self, handle: Handle) -> Result | None:
        """The blob may have been stored between the caller's look and our lock."""
        try:
            stored = None if self.spool.is_open else await self._means.blobs.open(self.digest)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return None  # it cannot be read: what comes takes its name
        if stored is None:
            return None
        with contextlib.closing(stored):
            if not await self._is_right(stored):
                return None  # it was to be taken out, and could not be: what comes takes its name
            try:
                await self._granted()
                self._open(stored, stored.size)
                self.spool.advance(stored.size)
            finally:
                await self._means.tree.discard_spool(self._key, handle)
        return Result(End.VERIFIED)

    async def _is_right(self, stored: Handle) -> bool:
        """Whether a stored file has the bytes of the digest. Raises OSError."""
        hasher = self.digest.hasher()
        try:
            await files.rehash(stored, hasher)
        except OSError as error:
            if not files.is_damage(error):
                raise
            return False
        return self.digest.matches(hasher)

    async def _write(self, handle: Handle) -> Result:
        """Write the spool whose lock this process holds: from its beginning, or from where somebody stopped."""
        async with Reservation(self._means.space) as reservation, self._recorded(), self._claimed(handle) as claim:
            if claim.resumed:
                await reservation.found(claim.resumed)
                await claim.growth.resume(handle)
            try:
                await self._complete(handle, claim, reservation)
            except (OciError, asyncio.CancelledError) as error:
                if claim.resumed and not self.spool.is_open and is_invalid(error):
                    raise _StartAfresh from None
                if claim.growth.done and not is_invalid(error):
                    claim.fate = Fate.LEFT
                raise
            self.spool.vouch()
            publishing = asyncio.create_task(self._adopt(handle, claim, reservation))
            await files.outlast(publishing)  # whoever has it by now is to find it here next time, come what may
            publishing.result()
        return Result(End.VERIFIED)

    @contextlib.asynccontextmanager
    async def _recorded(self) -> AsyncIterator[None]:
        """No fill is over before its link is written, or the disk has refused it."""
        try:
            yield
        finally:
            if self._recording is not None:
                await files.outlast(self._recording)

    @contextlib.asynccontextmanager
    async def _claimed(self, handle: Handle) -> AsyncIterator["Claim"]:
        """A locked spool to write to; on leaving it is discarded, unless it has another fate by then."""
        tree = self._means.tree
        writer = await tree.open_for_writing(self._key, handle)
        claim = Claim(Growth(writer, self.digest.hasher()), resumed=writer.size)
        self._growth = claim.growth
        try:
            yield claim
        finally:
            writer.close()
            if self._means.shared is not None:
                self._means.shared.replicas.leases.settle(self.digest, is_stored=claim.fate is Fate.ADOPTED)
            match claim.fate:
                case Fate.DISCARDED:
                    await tree.discard_spool(self._key, handle)
                case Fate.LEFT:
                    await tree.leave_spool(handle)
                case Fate.ADOPTED:
                    pass  # its lock guards it for the readers until the last of them is done

    async def _complete(self, handle: Handle, claim: "Claim", reservation: Reservation) -> None:
        """Bring the spool to its full size, and hold it against the digest. Raises OciError, NoSpace, OSError."""
        if claim.resumed and self.digest.matches(claim.growth.hasher):
            self._open(handle, (await self._granted()).size)  # all but its publication was done
            self.spool.advance(claim.growth.done)
            return

        async def begin(total: int | None) -> None:
            if not self.spool.is_open:
                self._open(handle, total, is_trusted=origin.is_upstream)
                self._recording = asyncio.create_task(self._permissions.confirmed(self.repository, self.digest, total))
                self._upload_ahead(origin)

        origin = self._origin()
        download = Download(
            origin,
            claim.growth,
            reservation,
            expected=self._expected,
            begin=begin,
            announce=self.spool.advance,
            log=self._log,
        )
        try:
            await download.run()
        except OciError as error:
            if is_invalid(error) and not origin.is_upstream:
                await origin.refute()
            raise
        if not self.digest.matches(claim.growth.hasher):
            await origin.refute()
            raise OciError(Problem.UPSTREAM_INVALID, f"{self.repository.registry} sent a blob with wrong bytes")

    def _origin(self) -> Origin:
        source = Source(self._upstream, self.repository, self.digest)
        shared = self._means.shared
        return source if shared is None else FromReplicas(source, shared.replicas, self._granted, self._expected)

    def _upload_ahead(self, origin: Origin) -> None:
        """Have it uploaded while it comes, if it is large, and this replica is the one that brings it in."""
        size, shared = self.spool.size, self._means.shared
        if shared is not None and origin.is_upstream and size is not None and size >= LARGE:
            ahead = Ahead(self.spool, size)
            shared.uploads.follow(blob_key(self.digest), ahead, ahead.close)

    async def _adopt(self, handle: Handle, claim: "Claim", reservation: Reservation) -> None:
        """Publish what has been verified. That the disk refuses does not make it any less right. Raises OciError."""
        try:
            if self._recording is not None:
                await self._recording  # first: what is stored is not to be asked for again
            await self._means.blobs.adopt(self.digest, handle)
            await reservation.settle(claim.growth.done)
            claim.fate = Fate.ADOPTED
        except OSError as error:
            if error.errno == errno.EIO:
                raise OciError(Problem.OVERLOADED, "the cache's disk fails") from None
            self._log.error("blob not cached", reason=f"the disk refuses: {error.strerror}")
