"""One upstream registry over HTTP: manifests, blob streams, listings; retries and the breaker."""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType, TracebackType
from typing import Literal, Self
from urllib.parse import urlencode

import aiohttp
from cachetools import TTLCache
from yarl import URL

from proxy.accounts import Accounts, open_account
from proxy.blob_stream import BlobStream
from proxy.egress import Egress
from proxy.exchange import Ask, Exchange, Lane
from proxy.oci.digest import Digest
from proxy.oci.errors import OciError, Problem
from proxy.oci.manifest import ACCEPT as MANIFEST_TYPES
from proxy.oci.manifest import MAX_BYTES, Manifest, ManifestInvalid
from proxy.oci.manifest import parse as parse_manifest
from proxy.oci.reference import Reference, Repository
from proxy.pace import WORTHWHILE, Pace
from proxy.parts import Lead, Memory, PartedStream, PartMeans
from proxy.sections.upstream import Upstream as UpstreamSection
from proxy.stores.base import LimitStore
from proxy.telemetry import Logger, Metrics
from proxy.turns import Turn

NO_HEAD = frozenset({400, 401, 403, 405, 501})  # answers to a HEAD that may be about the method
NO_HEAD_LIFE = 3600.0  # seconds that a repository is not asked by HEAD after it refused one
NO_HEADS = 4096  # repositories of which that is remembered
LISTING_LIMIT = 4 * 1024 * 1024  # bytes of a page of tags or referrers
ACCEPT = MappingProxyType({"Accept": MANIFEST_TYPES})


@dataclass(frozen=True, slots=True)
class ManifestHead:
    """What a HEAD of a manifest says; the digest may be missing."""

    digest: Digest | None


@dataclass(frozen=True, slots=True)
class Listing:
    """A page of tags or referrers as upstream sent it."""

    status: int
    headers: Mapping[str, str]
    links: tuple[str, ...]
    body: bytes


class Upstream:
    """One registry, under the name clients use for it. Every method raises OciError, and nothing else."""

    def __init__(
        self, settings: UpstreamSection, limits: LimitStore, memory: Memory, metrics: Metrics, log: Logger
    ) -> None:
        """`memory`: what all upstreams' downloads may hold of blobs that come by several connections."""
        self.registry = settings.registry
        self.as_of = settings.as_of
        self.is_sealed = settings.sealed
        self._holds_tags = settings.holds_tags
        self.least_tag_ttl = settings.tag_ttl  # seconds for which a tag is believed in any case
        self._longest_tag_ttl = max(settings.tag_ttl, settings.longest_tag_ttl)
        self.egress = Egress(settings)
        self._accounts = Accounts(
            self.registry,
            [open_account(one, settings, self.egress, log) for one in settings.accounts],
            limits,
            metrics,
            log,
        )
        self._exchange = Exchange(
            self.registry,
            self.egress,
            self._accounts,
            metrics,
            max_requests=settings.max_requests,
            missed=self._missed if settings.sealed else None,
        )
        self._pace = Pace(settings.connections_per_blob)
        self._memory = memory
        # Of what of a repository refused a HEAD: whether it then answered a GET, so that it was about the method. A
        # word on its blobs is none on its manifests, whose HEADs cost no pull.
        self._no_head: TTLCache[tuple[Literal["manifests", "blobs"], Repository], bool] = TTLCache(
            NO_HEADS, NO_HEAD_LIFE
        )
        self._stall_timeout = settings.stall_timeout
        self._log = log
        self._metrics = metrics
        self._count_bytes = metrics.upstream_bytes.labels(self.registry).inc

    async def __aenter__(self) -> Self:
        await self.egress.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._exchange.aclose()
        await self.egress.__aexit__(kind, error, trace)

    def _missed(self, ask: Ask) -> None:
        """A sealed upstream is asked nothing: what was wanted of it is said, so that it can be brought in."""
        wanted = ask.url.raw_path.partition(f"/v2/{ask.repository.name}/")[2]
        self._log.warning("sealed", upstream=self.registry, repository=ask.repository.name, missed=wanted)
        self._metrics.sealed_misses.labels(self.registry).inc()

    async def tick(self) -> None:
        """What is done every few seconds, and not per request."""
        await self._accounts.record()
        await self.egress.refresh(self._log)

    def tag_ttl(self, repository: Repository) -> float:
        """Seconds for which a tag is believed: the longer, the less upstream still allows us to ask."""
        if self._holds_tags(repository.name):
            return math.inf
        return min(self._longest_tag_ttl, self.least_tag_ttl * self._accounts.stretch(repository))

    def is_stretched(self, repository: Repository, age: float) -> bool:
        """Whether an answer of this age, in seconds, is believed only because upstream allows little more."""
        is_late = self.least_tag_ttl <= age and self.tag_ttl(repository) < math.inf
        return is_late and self._accounts.stretch(repository) > 1

    # Manifests

    async def head_manifest(self, repository: Repository, reference: Reference) -> ManifestHead:
        """Ask what a tag stands for now: it costs no pull on Docker Hub. There is something to fall back on.

        A registry that will not answer a HEAD says nothing: the digest is unknown then, and a GET has to tell. If that
        is answered, no HEAD is sent there for an hour: after a 401 each would cost a token.
        """
        if self.refuses_head(repository):
            return ManifestHead(None)
        ask = Ask(
            "HEAD", repository, self._url(repository, f"manifests/{reference}"), Problem.MANIFEST_UNKNOWN,
            headers=ACCEPT, fresh=True, has_fallback=True, allowed=NO_HEAD,
        )  # fmt: skip
        response, _ = await self._exchange.whole(ask, 0)
        if response.status in NO_HEAD:
            self._no_head["manifests", repository] = (
                False  # it may be the repository that is refused: a GET has to tell
            )
            return ManifestHead(None)
        self._no_head.pop(("manifests", repository), None)
        return ManifestHead(self._claimed(response.headers.get("Docker-Content-Digest")))

    def refuses_head(self, repository: Repository) -> bool:
        """Whether only a GET can tell what a tag stands for, which may count as a pull."""
        return self._no_head.get(("manifests", repository), False)

    async def manifest(self, repository: Repository, reference: Reference, *, fallback: bool) -> Manifest:
        """Fetch a manifest whole, and check it: against its digest, its header's digest, its media type.

        `fallback`: the caller has an older answer to give, so there is no use in trying for long.
        """
        if fallback and self._accounts.is_reserved(repository):
            raise OciError(
                Problem.TOO_MANY_REQUESTS, f"what {self.registry} still allows us is kept for images not cached yet"
            )
        ask = Ask(
            "GET", repository, self._url(repository, f"manifests/{reference}"), Problem.MANIFEST_UNKNOWN,
            headers=ACCEPT, fresh=not isinstance(reference, Digest), has_fallback=fallback,
        )  # fmt: skip
        response, body = await self._whole(ask, MAX_BYTES)
        if fallback and ("manifests", repository) in self._no_head:
            self._no_head["manifests", repository] = True
        claimed = response.headers.get("Docker-Content-Digest")
        declared = response.headers.get("Content-Type", "")
        expected = reference if isinstance(reference, Digest) else self._claimed(claimed)
        return await asyncio.to_thread(self._checked, body, declared, expected)

    def _claimed(self, header: str | None) -> Digest | None:
        try:
            return None if header is None else Digest.parse(header)
        except OciError:
            raise self._invalid("names a digest that is none") from None

    def _checked(self, body: bytes, declared: str, expected: Digest | None) -> Manifest:
        algorithm = "sha256" if expected is None else expected.algorithm
        if expected is not None and Digest.of(body, algorithm) != expected:
            raise self._invalid("sent a manifest whose bytes are not those of its digest")
        try:
            return parse_manifest(body, declared, algorithm)
        except ManifestInvalid as error:
            raise self._invalid(f"sent a manifest that is none: {error}") from None

    # Blobs

    async def head_blob(self, repository: Repository, digest: Digest) -> int | None:
        """Whether a repository contains a blob: its size in bytes, if upstream tells it. Downloads nothing."""
        ask = Ask(
            "HEAD",
            repository,
            self._url(repository, f"blobs/{digest}"),
            Problem.BLOB_UNKNOWN,
            redirects=False,
            is_blob=True,
        )
        began, is_refused = time.monotonic(), self._no_head.get(("blobs", repository), False)
        try:
            size = None if is_refused else await self._length(ask)
        except OciError as error:
            if error.problem not in {Problem.DENIED, Problem.UPSTREAM_INVALID}:  # some allow GET, but no HEAD
                raise
            size, is_refused = None, True
        if size is not None:
            return size
        # A redirect leads to storage, whose signed URLs are good for GET only: ask for one byte, and read none.
        stop = None if digest.matches(digest.hasher()) else 1  # nothing has no first byte
        left = max(1.0, ask.budget - (time.monotonic() - began))
        ask = replace(self._blob_ask(repository, digest, 0, stop), lane=Lane.ASIDE)
        async with self._streamed(ask, 0, budget=left) as stream:
            if is_refused:
                self._no_head["blobs", repository] = True
            return stream.total

    async def _length(self, ask: Ask) -> int | None:
        """The Content-Length of an answer, if it is a 200."""
        async with self._exchange.answer(ask) as response:
            return response.content_length if response.status == 200 else None

    @contextlib.asynccontextmanager
    async def blob(
        self, repository: Repository, digest: Digest, *, start: int = 0, stop: int | None = None
    ) -> AsyncIterator[BlobStream]:
        """Stream a blob to one client from `start` (to `stop`, exclusive). Upstream may answer from 0: see `start`."""
        async with self._exchange.downloading(repository) as turn:
            ask = replace(self._blob_ask(repository, digest, start, stop), lane=Lane.HELD)
            async with self._streamed(ask, start, turn=turn) as stream:
                yield stream

    @contextlib.asynccontextmanager
    async def download(
        self, repository: Repository, digest: Digest, *, start: int = 0
    ) -> AsyncIterator[BlobStream | PartedStream]:
        """Stream a blob from `start` to its end, by several connections where that is faster: see `start`, as above."""
        async with self._exchange.downloading(repository):
            fetch = self._fetcher(repository, digest)
            lead = await Lead.open(fetch(start, None))
            total = lead.stream.total
            if self._pace.most == 1 or total is None or lead.stream.start != start or total - start < WORTHWHILE:
                async with lead.connection:
                    yield lead.stream
                return
            means = PartMeans(self._pace, self._memory, fetch, partial(self._exchange.spare, repository))
            async with contextlib.aclosing(PartedStream(lead, total, means)) as stream:
                yield stream

    def distrust_parts(self) -> None:
        """The bytes of a blob were wrong, maybe because they came in parts: each by one connection, for a while."""
        self._pace.retire(time.monotonic())

    def _fetcher(
        self, repository: Repository, digest: Digest
    ) -> Callable[[int, int | None], contextlib.AbstractAsyncContextManager[BlobStream]]:
        place: URL | None = None

        @contextlib.asynccontextmanager
        async def fetch(start: int, stop: int | None) -> AsyncIterator[BlobStream]:
            nonlocal place
            ask = replace(self._blob_ask(repository, digest, start, stop), lane=Lane.HELD, place=place)
            async with self._streamed(ask, start) as stream:
                place = stream.place
                yield stream

        return fetch

    def _blob_ask(self, repository: Repository, digest: Digest, start: int, stop: int | None) -> Ask:
        headers = {"Range": f"bytes={start}-{'' if stop is None else stop - 1}"} if start or stop is not None else {}
        url = self._url(repository, f"blobs/{digest}")
        return Ask("GET", repository, url, Problem.BLOB_UNKNOWN, headers=headers, is_blob=True)

    @contextlib.asynccontextmanager
    async def _streamed(
        self, ask: Ask, start: int, *, budget: float | None = None, turn: Turn | None = None
    ) -> AsyncIterator[BlobStream]:
        async with self._exchange.answer(ask, budget=budget) as response:
            try:
                stream = BlobStream(response, self._stall_timeout, self._count_bytes, turn)
            except ValueError:
                raise self._invalid("sent a partial blob without saying which part") from None
            if stream.start not in {0, start}:
                raise self._invalid("sent another part of a blob than was asked for")
            if stream.start != start:
                stream.keep_turn()
            if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise self._invalid("sent an encoded blob, though asked for identity")
            yield stream

    # Listings

    async def listing(
        self, repository: Repository, path: str, query: Sequence[tuple[str, str]], accept: str
    ) -> Listing:
        """A page of tags or referrers; a 404 is returned, not raised: what it means depends on its body."""
        suffix = f"?{urlencode(query)}" if query else ""
        ask = Ask(
            "GET", repository, self._url(repository, f"{path}{suffix}"), Problem.NAME_UNKNOWN,
            headers={"Accept": accept}, fresh=True, allowed=frozenset({404}),
        )  # fmt: skip
        response, body = await self._whole(ask, LISTING_LIMIT)
        return Listing(response.status, response.headers, tuple(response.headers.getall("Link", ())), body)

    def _url(self, repository: Repository, path: str) -> URL:
        return URL(f"{self.egress.base}/v2/{repository.name}/{path}", encoded=True)

    async def _whole(self, ask: Ask, limit: int) -> tuple[aiohttp.ClientResponse, bytes]:
        response, body = await self._exchange.whole(ask, limit)
        self._count_bytes(len(body))
        return response, body

    def _invalid(self, what: str) -> OciError:
        return OciError(Problem.UPSTREAM_INVALID, f"{self.registry} {what}")
