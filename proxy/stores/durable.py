"""The bucket as the cache uses it: whatever it does or does not, pulls go on.

Where it fails it is left alone for a while, which is said once, and once more when it answers again.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Iterator

from pydantic import SecretStr

from proxy.files import Handle
from proxy.single_flight import SingleFlight
from proxy.stores.s3 import Bucket, BucketError, ObjectStream, Taken
from proxy.telemetry import Logger, Metrics

PATIENCE = 3.0  # seconds for an answer that a pull waits for
TRIAL = 60.0  # seconds after a trial that failed before the next one
REFUSED_URLS = "the bucket turns down URLs that were signed just now: check store.s3.region, .addressing and the clock"
FIRST_REST, LONGEST_REST = 1.0, 30.0  # seconds without a question after a failure, doubling


class Durable:
    """What outlives this machine. None of its methods raises for what the bucket does."""

    def __init__(self, bucket: Bucket, metrics: Metrics, log: Logger) -> None:
        self._bucket = bucket
        self._metrics = metrics
        self._log = log
        self._failures = 0
        self._rest_until = 0.0  # of the monotonic clock
        self._trial: SingleFlight[str, None] = SingleFlight()
        self._tried = -math.inf
        self._is_conditional: bool | None = None  # whether it knows conditional writes
        self._refuses_its_urls = False

    @property
    def is_away(self) -> bool:
        """Whether it is left alone just now."""
        return time.monotonic() < self._rest_until

    async def begin(self) -> None:
        """Try everything that will be asked of it, and say what does not work: pulls go on either way."""
        await self._trial.run("trial", self._try)

    async def _try(self) -> None:
        self._tried = time.monotonic()
        with self._noting():
            self._is_conditional = await self._bucket.trial()
            if not self._is_conditional:
                self._log.warning(
                    "bucket without conditional writes", meanwhile="each replica brings in what it is asked for itself"
                )
            for reason in await self._bucket.unheeded():
                self._log.warning("bucket does less than is configured", reason=reason)
            self._refuses_its_urls = await self._bucket.refuses_its_urls()
            if self._refuses_its_urls:
                self._log.error(
                    "no redirects", reason=REFUSED_URLS, meanwhile="clients get their bytes from here until a restart"
                )

    async def create(self, key: str, body: bytes) -> bool | None:
        """Make a small object, unless there is one; whether that was done. None: nobody can know just now."""
        if not await self._knows_conditions() or self.is_away:
            return None
        with self._noting():
            async with asyncio.timeout(PATIENCE):
                try:
                    await self._bucket.write(key, body, is_new=True)
                except Taken:
                    return await self._bucket.read(key, len(body)) == body  # an answer that was lost is asked for again
                return True
        return None

    async def read(self, key: str, limit: int) -> bytes | None:
        """A small object; None if there is none of at most so many bytes, as far as can be known now."""
        if self.is_away:
            return None
        with self._noting():
            async with asyncio.timeout(PATIENCE):
                return await self._bucket.read(key, limit)
        return None

    async def size(self, key: str) -> int | None:
        """How many bytes an object has; None if there is none, as far as can be known now."""
        if self.is_away:
            return None
        with self._noting():
            async with asyncio.timeout(PATIENCE):
                return await self._bucket.size(key)
        return None

    @property
    def public_endpoint(self) -> str | None:
        """Where URLs for others lead; None if there are to be none."""
        return self._bucket.public_endpoint

    async def presign(self, key: str) -> SecretStr | None:
        """A URL of an object for others; None if there is to be none, or nobody is to be sent there now."""
        if self.is_away or self._refuses_its_urls:
            return None
        try:
            async with asyncio.timeout(PATIENCE):  # nothing is asked of the bucket, but maybe of who has credentials
                return await self._bucket.presign(key)
        except (BucketError, TimeoutError) as error:
            self._failed(error)
            return None

    @contextlib.asynccontextmanager
    async def open(self, key: str, start: int = 0) -> AsyncIterator[ObjectStream | None]:
        """An object from an offset on; None if there is none, as far as can be known now."""
        async with contextlib.AsyncExitStack() as stack:
            stream = None
            if not self.is_away:
                with self._noting():
                    async with asyncio.timeout(PATIENCE):
                        stream = await stack.enter_async_context(self._bucket.open(key, start))
            yield stream

    async def upload(self, key: str, handle: Handle) -> bool:
        """Put a file in place, unless an object of its size is there already; whether it is there now."""
        if self.is_away:
            return False
        with self._noting():
            if await self._bucket.size(key) != handle.size or not _is_content(key):
                await self._bucket.upload(key, handle)
                self._metrics.bucket_bytes.labels("up").inc(handle.size)
            return True
        return False

    async def remove(self, key: str) -> None:
        """Remove an object, if that can be done now."""
        if not self.is_away:
            with self._noting():
                async with asyncio.timeout(PATIENCE):
                    await self._bucket.remove(key)

    async def disown(self, key: str, why: str) -> None:
        """Remove an object that is not what its key says: somebody else has written there, or it has rotted."""
        self._log.error("object removed from the bucket", key=key, reason=why, remedy="it comes from upstream again")
        await self.remove(key)

    async def abandon(self, before: float) -> None:
        """Give up uploads that were begun before then (seconds since the epoch) and never ended."""
        with self._noting():
            count = await self._bucket.abandon(before)
            if count:
                self._log.info("abandoned uploads given up", count=count)

    async def _knows_conditions(self) -> bool:
        if self._is_conditional is None and (len(self._trial) or time.monotonic() - self._tried > TRIAL):
            with contextlib.suppress(TimeoutError):  # it goes on without the pull that would have liked to know
                async with asyncio.timeout(PATIENCE):
                    await self.begin()
        return bool(self._is_conditional)

    async def aclose(self) -> None:
        """Break off what nobody waits for."""
        await self._trial.aclose()

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        """Around what is asked of it: a failure is noted, and said if it is the first."""
        try:
            yield
        except (BucketError, TimeoutError) as error:
            self._failed(error)
        else:
            if self._failures:
                self._log.info("bucket answers again", failures=self._failures)
            self._failures = 0
            self._metrics.bucket_up.set(1)

    def _failed(self, error: BucketError | TimeoutError) -> None:
        reason = error.reason if isinstance(error, BucketError) else f"it does not answer within {PATIENCE:g} s"
        if not self._failures:
            self._log.error("bucket fails", reason=reason, meanwhile="pulls go on, and uploads wait")
        self._failures += 1
        self._rest_until = time.monotonic() + min(LONGEST_REST, FIRST_REST * 2 ** min(self._failures - 1, 10))
        self._metrics.bucket_up.set(0)


def _is_content(key: str) -> bool:
    """Whether a key is the digest of what it holds, so that what is there needs no second upload."""
    return key.startswith("blobs/")
