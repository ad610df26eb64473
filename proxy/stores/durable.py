"""The bucket as the cache uses it: whatever it does or does not, pulls go on.

Where it fails it is left alone for a while, which is said once, and once more when it answers again. Each use of it
fails for itself: reading may be allowed and writing denied, and small objects may come while large ones do not.
"""

import asyncio
import contextlib
import enum
import math
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass

from cachetools import LRUCache
from pydantic import SecretStr

from proxy.blob_stream import BlobStream, Interrupted
from proxy.single_flight import SingleFlight
from proxy.stores import s3_trial
from proxy.stores.payloads import Payload
from proxy.stores.s3 import Bucket
from proxy.stores.s3_errors import BucketError, Taken
from proxy.telemetry import Logger, Metrics

PATIENCE = 3.0  # seconds for an answer that a pull waits for
TRIAL = 60.0  # seconds after a trial that failed before the next one
REFUSED_URLS = "the bucket turns down URLs that were signed just now: check store.s3.region, .addressing and the clock"
FIRST_REST, LONGEST_REST = 1.0, 30.0  # seconds without a question after a failure, doubling
DISOWNED = 4096  # keys whose objects are known to be wrong, and could not be removed


class Use(enum.Enum):
    """What is asked of the bucket, and what there is to say when it does not do that."""

    READ = "pulls go on, and uploads wait"
    STREAM = "blobs come from upstream"
    UPLOAD = "pulls go on, and uploads are tried again"
    REMOVE = "what upstream has no more, and what is damaged, stays there"
    LIST = "what a crash has left there stays"


ESSENTIAL = (Use.READ, Use.UPLOAD)


@dataclass(slots=True)
class Outage:
    """How often something has failed in a row, and when: in seconds of the monotonic clock."""

    failures: int = 0
    failed: float = -math.inf
    until: float = 0.0  # it is not tried again before


class Durable:
    """What outlives this machine. None of its methods raises for what the bucket does."""

    def __init__(self, bucket: Bucket, metrics: Metrics, log: Logger) -> None:
        self._bucket = bucket
        self._metrics = metrics
        self._log = log
        self._outages = {use: Outage() for use in Use}
        self._disowned: LRUCache[str, bool] = LRUCache(DISOWNED)
        self._trial: SingleFlight[str, None] = SingleFlight()
        self._trial_key = f"trial/{secrets.token_hex(8)}"
        self._tried = -math.inf
        self._is_conditional: bool | None = None  # whether it knows conditional writes
        self._refuses_its_urls = False
        self._received = metrics.bucket_bytes.labels("down").inc
        self._sent = metrics.bucket_bytes.labels("up").inc

    @property
    def is_away(self) -> bool:
        """Whether nothing is read from it just now."""
        return self._rests(Use.READ)

    def _rests(self, use: Use) -> bool:
        return time.monotonic() < self._outages[use].until

    async def begin(self) -> None:
        """Try everything that will be asked of it, and say what does not work: pulls go on either way."""
        await self._trial.run("trial", self._try)

    async def prove(self) -> None:
        """Try it if that was never done with success, or it fails: that it is well again is not to wait for a pull."""
        if (self._is_conditional is None or self._fails) and not self._rests(Use.UPLOAD):
            await self.begin()

    async def _try(self) -> None:
        self._tried = time.monotonic()
        with self._noting(Use.UPLOAD):
            is_conditional = await s3_trial.prove(self._bucket, self._trial_key)
            self._worked(Use.READ, self._tried)
            if self._is_conditional is None:
                await self._learn(is_conditional)
            await self.remove(self._trial_key)

    async def _learn(self, is_conditional: bool) -> None:
        """Note what it can do, the first time that it does anything. Raises BucketError."""
        self._refuses_its_urls = await s3_trial.refuses_its_urls(self._bucket)
        self._is_conditional = is_conditional
        if not is_conditional:
            self._log.warning(
                "bucket without conditional writes",
                meanwhile="each replica brings in what it is asked for itself, and none evicts from the bucket",
            )
        for reason in await s3_trial.unheeded(self._bucket):
            self._log.warning("bucket does less than is configured", reason=reason)
        if self._refuses_its_urls:
            self._log.error(
                "no redirects", reason=REFUSED_URLS, meanwhile="clients get their bytes from here until a restart"
            )

    async def create(self, key: str, body: bytes) -> bool | None:
        """Make a small object, unless there is one; whether that was done. None: nobody can know just now."""
        if not await self._knows_conditions() or self.is_away or self._rests(Use.UPLOAD):
            return None
        with self._noting(Use.UPLOAD):
            async with asyncio.timeout(PATIENCE):
                try:
                    await self._bucket.write(key, body, is_new=True)
                except Taken:
                    return await self._bucket.read(key, len(body)) == body  # an answer that was lost is asked for again
                return True
        return None

    async def change(self, key: str, limit: int, change: Callable[[bytes | None], Awaitable[bytes | None]]) -> bool:
        """Have a small object be what `change` makes of it, which gets None if there is none of at most `limit` bytes.

        It stays as it is where `change` returns None. Returns whether it is now as it is to be; raises what `change`
        does.
        """
        known, is_read = None, False
        if not self.is_away and not self._rests(Use.UPLOAD):
            with self._noting(Use.READ):
                known, is_read = await self._bucket.read(key, limit), True
        if not is_read:
            return False
        body = await change(known)
        if body is None:
            return True
        with self._noting(Use.UPLOAD):
            await self._bucket.write(key, body)
            return True
        return False

    async def read(self, key: str, limit: int) -> bytes | None:
        """A small object; None if there is none of at most so many bytes, as far as can be known now."""
        if self.is_away or key in self._disowned:
            return None
        with self._noting(Use.READ):
            async with asyncio.timeout(PATIENCE):
                return await self._bucket.read(key, limit, self._received)
        return None

    async def size(self, key: str) -> int | None:
        """How many bytes an object has; None if there is none, as far as can be known now."""
        if self.is_away or key in self._disowned:
            return None
        with self._noting(Use.READ):
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
        except BucketError as error:
            self._failed(Use.READ, error.reason)
        except TimeoutError:
            self._failed(Use.READ, f"it does not answer within {PATIENCE:g} s")
        return None

    @contextlib.asynccontextmanager
    async def open(self, key: str, start: int = 0) -> AsyncIterator[BlobStream | None]:
        """An object from an offset on; None if there is none, as far as can be known now."""
        async with contextlib.AsyncExitStack() as stack:
            stream = None
            if not self._rests(Use.READ) and not self._rests(Use.STREAM) and key not in self._disowned:
                with self._noting(Use.READ):
                    async with asyncio.timeout(PATIENCE):
                        stream = await stack.enter_async_context(self._bucket.open(key, start, self._received))
            if stream is None:
                yield None
                return
            began = time.monotonic()
            try:
                yield stream
            except Interrupted as interruption:
                self._failed(Use.STREAM, f"a blob broke off: {interruption}")
                raise
            self._worked(Use.STREAM, began)

    async def upload(self, key: str, payload: Payload) -> bool:
        """Put a file in place, unless an object of its size is there already; whether it is there now.

        Raises OSError where the file cannot be read, Vanished.
        """
        if self._rests(Use.UPLOAD):
            return False
        began = time.monotonic()
        try:
            if key not in self._disowned and _is_content(key) and await self._bucket.size(key) == payload.size:
                return True  # which tells nothing of uploading
            await self._bucket.upload(key, payload)
        except BucketError as error:
            self._failed(Use.UPLOAD, error.reason)
            return False
        self._worked(Use.UPLOAD, began)
        self._sent(payload.size)
        self._disowned.pop(key, None)
        return True

    async def remove(self, key: str) -> bool:
        """Remove an object, if that can be done now; whether it is gone."""
        if self._rests(Use.REMOVE):
            return False
        with self._noting(Use.REMOVE):
            async with asyncio.timeout(PATIENCE):
                await self._bucket.remove(key)
            return True
        return False

    async def disown(self, key: str, why: str) -> None:
        """Remove an object that is not what its key says: somebody else has written there, or it has rotted.

        What cannot be removed is not read again before the right one has taken its place.
        """
        self._disowned[key] = True
        is_gone = await self.remove(key)
        if is_gone:
            self._disowned.pop(key, None)
        event = "object removed from the bucket" if is_gone else "object in the bucket passed over"
        self._log.error(event, key=key, reason=why, remedy="it comes from upstream again")

    async def abandon(self, before: float) -> None:
        """Give up uploads that were begun before then (seconds since the epoch) and never ended."""
        with self._noting(Use.LIST):
            count = await self._bucket.abandon(before)
            if count:
                self._log.info("abandoned uploads given up", count=count)

    async def sweep(self, lives: Mapping[str, float]) -> None:
        """Remove what has outlived its use: below each prefix the objects written more than so many seconds ago."""
        with self._noting(Use.LIST):
            now, count = await self._bucket.now(), 0
            for prefix, life in lives.items():
                async with contextlib.aclosing(self._bucket.keys(prefix)) as found:
                    async for one in found:
                        count += one.modified < now - life and await self.remove(one.key)
            if count:
                self._log.info("objects that outlived their use removed from the bucket", count=count)

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
    def _noting(self, use: Use) -> Iterator[None]:
        """Around what is asked of it: a failure is noted, and said if it is the first."""
        began = time.monotonic()
        try:
            yield
        except BucketError as error:
            self._failed(use, error.reason)
        except TimeoutError:
            self._failed(use, f"it does not answer within {PATIENCE:g} s")
        else:
            self._worked(use, began)

    def _failed(self, use: Use, reason: str) -> None:
        outage = self._outages[use]
        if not self._fails and not outage.failures:
            event = "bucket fails" if use in ESSENTIAL else "bucket fails in part"
            self._log.error(event, reason=reason, meanwhile=use.value)
        outage.failures += 1
        outage.failed = time.monotonic()
        outage.until = outage.failed + min(LONGEST_REST, FIRST_REST * 2 ** min(outage.failures - 1, 10))
        self._metrics.bucket_up.set(not self._fails)

    def _worked(self, use: Use, began: float) -> None:
        """Something was done. What began before the last failure tells nothing of now."""
        outage = self._outages[use]
        if began >= outage.failed:
            did_fail, failures = self._fails, outage.failures
            outage.failures, outage.until = 0, 0.0
            if did_fail and not self._fails:
                self._log.info("bucket answers again", failures=failures)
        self._metrics.bucket_up.set(not self._fails)

    @property
    def _fails(self) -> bool:
        """Whether it is down. What else fails may not be tried again for days, and must not keep it so."""
        return any(self._outages[use].failures for use in ESSENTIAL)


def _is_content(key: str) -> bool:
    """Whether a key is the digest of what it holds, so that what is there needs no second upload."""
    return key.startswith("blobs/")
