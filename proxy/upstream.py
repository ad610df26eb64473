"""One upstream registry over HTTP: manifests, blob streams, listings; retries and the breaker."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Self
from urllib.parse import urlencode

import aiohttp
from yarl import URL

from proxy import sections
from proxy.blob_stream import BlobStream
from proxy.egress import Egress, read_limited
from proxy.oci import challenge
from proxy.oci.digest import Digest
from proxy.oci.errors import OciError, Problem
from proxy.oci.manifest import ACCEPT as MANIFEST_TYPES
from proxy.oci.manifest import MAX_BYTES, Manifest, ManifestInvalid
from proxy.oci.manifest import parse as parse_manifest
from proxy.oci.reference import Reference, Repository
from proxy.oci.retry import Breaker, pause, retry_after
from proxy.telemetry import Metrics
from proxy.tokens import Tokens

BUDGET = 14.0  # seconds for connect, token, redirects and headers together: clients give up at 30
STALE_BUDGET = 4.0  # seconds, when there is a cached answer to fall back on
PROBE_BUDGET = 2.5  # seconds to find out whether it was one question that failed, or upstream does not answer at all
NO_HEAD = frozenset({400, 401, 403, 405, 501})  # answers to a HEAD that may be about the method
TRIES = 3
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


@dataclass(frozen=True, slots=True)
class Ask:
    """One question to upstream, before authorization."""

    method: str
    repository: Repository
    url: URL
    headers: Mapping[str, str]
    missing: Problem
    fresh: bool = False
    redirects: bool = True


class Upstream:
    """One registry, under the name clients use for it. Every method raises OciError, and nothing else."""

    def __init__(self, settings: sections.Upstream, metrics: Metrics) -> None:
        self.registry = settings.registry
        self.tag_ttl = settings.tag_ttl
        self.egress = Egress(settings.base, settings.private_networks)
        self._tokens = Tokens(settings, self.egress)
        self._stall_timeout = settings.stall_timeout
        self._breaker = Breaker(first=1.0, longest=8.0)
        self._probe: asyncio.Task[None] | None = None
        self._metrics = metrics
        self._count_bytes = metrics.upstream_bytes.labels(self.registry).inc

    async def __aenter__(self) -> Self:
        await self.egress.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._probe is not None:
            self._probe.cancel()
            await asyncio.wait({self._probe})
        await self._tokens.aclose()
        await self.egress.__aexit__(kind, error, trace)

    # Manifests

    async def head_manifest(self, repository: Repository, reference: Reference) -> ManifestHead:
        """Ask what a tag stands for now: it costs no pull on Docker Hub. There is something to fall back on.

        A registry that will not answer a HEAD says nothing: the digest is unknown then, and a GET has to tell.
        """
        ask = self._ask(
            "HEAD", repository, f"manifests/{reference}", Problem.MANIFEST_UNKNOWN, fresh=True, headers=ACCEPT
        )
        response = await self._send(ask, tries=1, budget=STALE_BUDGET, allowed=NO_HEAD)
        response.close()
        if response.status in NO_HEAD:
            return ManifestHead(None)
        text = response.headers.get("Docker-Content-Digest")
        try:
            return ManifestHead(None if text is None else Digest.parse(text))
        except OciError:
            raise self._invalid("names a digest that is none") from None

    async def manifest(self, repository: Repository, reference: Reference, *, fallback: bool) -> Manifest:
        """Fetch a manifest whole, and check it: against its digest, its header's digest, its media type.

        `fallback`: the caller has an older answer to give, so there is no use in trying for long.
        """
        by_digest = isinstance(reference, Digest)
        ask = self._ask(
            "GET", repository, f"manifests/{reference}", Problem.MANIFEST_UNKNOWN, fresh=not by_digest,
            headers=ACCEPT,
        )  # fmt: skip
        tries, budget = (1, STALE_BUDGET) if fallback else (TRIES, BUDGET)
        response, body = await self._whole(ask, MAX_BYTES, tries=tries, budget=budget)
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
        ask = self._ask("HEAD", repository, f"blobs/{digest}", Problem.BLOB_UNKNOWN, redirects=False)
        began = time.monotonic()
        try:
            response = await self._send(ask)
        except OciError as error:
            if error.problem not in {Problem.DENIED, Problem.UPSTREAM_INVALID}:  # some allow GET, but no HEAD
                raise
        else:
            response.close()
            if response.status == 200 and response.content_length is not None:
                return response.content_length
        # A redirect leads to storage, whose signed URLs are good for GET only: ask for one byte, and read none.
        left = BUDGET - (time.monotonic() - began)
        async with self.blob(repository, digest, start=0, stop=1, budget=left) as stream:
            return stream.total

    @contextlib.asynccontextmanager
    async def blob(
        self, repository: Repository, digest: Digest, *, start: int = 0, stop: int | None = None, budget: float = BUDGET
    ) -> AsyncIterator[BlobStream]:
        """Stream a blob from `start` (to `stop`, exclusive). Upstream may answer from 0 all the same: see `start`."""
        headers = {"Range": f"bytes={start}-{'' if stop is None else stop - 1}"} if start or stop is not None else {}
        ask = self._ask("GET", repository, f"blobs/{digest}", Problem.BLOB_UNKNOWN, headers=headers)
        response = await self._send(ask, budget=budget)
        with contextlib.closing(response):
            try:
                stream = BlobStream(response, self._stall_timeout, self._count_bytes)
            except ValueError:
                raise self._invalid("sent a partial blob without saying which part") from None
            if stream.start not in {0, start}:
                raise self._invalid("sent another part of a blob than was asked for")
            if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise self._invalid("sent an encoded blob, though asked for identity")
            yield stream

    # Listings

    async def listing(
        self, repository: Repository, path: str, query: Sequence[tuple[str, str]], accept: str
    ) -> Listing:
        """A page of tags or referrers; a 404 is returned, not raised: what it means depends on its body."""
        ask = self._ask("GET", repository, path, Problem.NAME_UNKNOWN, query, fresh=True, headers={"Accept": accept})
        response, body = await self._whole(ask, LISTING_LIMIT, allowed={404})
        return Listing(response.status, response.headers, tuple(response.headers.getall("Link", ())), body)

    # One request

    def _ask(  # noqa: PLR0913  a question has that many sides
        self,
        method: str,
        repository: Repository,
        path: str,
        missing: Problem,
        query: Sequence[tuple[str, str]] = (),
        *,
        fresh: bool = False,
        redirects: bool = True,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> Ask:
        suffix = f"?{urlencode(query)}" if query else ""
        url = URL(f"{self.egress.base}/v2/{repository.name}/{path}{suffix}", encoded=True)
        return Ask(method, repository, url, headers, missing, fresh, redirects)

    async def _whole(
        self,
        ask: Ask,
        limit: int,
        *,
        tries: int = TRIES,
        budget: float = BUDGET,
        allowed: frozenset[int] | set[int] = frozenset(),
    ) -> tuple[aiohttp.ClientResponse, bytes]:
        """Send, and read the body whole: a client waits for all of it, so the budget is for all of it."""
        began = time.monotonic()
        response = await self._send(ask, tries=tries, budget=budget, allowed=allowed)
        try:
            async with asyncio.timeout(budget - (time.monotonic() - began)):
                body = await read_limited(response, limit)
        except TimeoutError:
            raise OciError(Problem.UPSTREAM_TIMEOUT, f"{self.registry} stalled within an answer") from None
        self._count_bytes(len(body))
        return response, body

    async def _send(
        self, ask: Ask, *, tries: int = TRIES, budget: float = BUDGET, allowed: frozenset[int] | set[int] = frozenset()
    ) -> aiohttp.ClientResponse:
        """Send until there is an answer, within the budget; an answer that is a refusal is raised."""
        await self._admitted(is_patient=budget > STALE_BUDGET)
        try:
            async with asyncio.timeout(budget):
                response = await self._retried(lambda: self._authorized(ask), tries)
        except TimeoutError:
            await self._failed(ask, "timeout")
            raise OciError(Problem.UPSTREAM_TIMEOUT, f"{self.registry} did not answer within {budget:g} s") from None
        except OciError as error:
            if error.problem in {Problem.UPSTREAM_UNREACHABLE, Problem.UPSTREAM_TIMEOUT}:
                await self._failed(ask, "unreachable")
            raise
        return self._accepted(ask, response, allowed)

    async def _admitted(self, *, is_patient: bool) -> None:
        """Let a request pass, unless upstream is known not to answer; who is not patient waits for no probe."""
        if not self._breaker.is_open:
            return
        probe = self._probe
        if probe is None and self._breaker.admit(time.monotonic()):
            probe = self._start_probe()
        if probe is not None and is_patient:
            await asyncio.wait({probe})
        if self._breaker.is_open:
            is_looking = probe is not None and not probe.done()  # and will soon know better
            wait = PROBE_BUDGET if is_looking else self._breaker.reopens_in(time.monotonic())
            raise OciError(Problem.UPSTREAM_PAUSED, f"{self.registry} does not answer", retry_after=wait)

    async def _failed(self, ask: Ask, why: str) -> None:
        """One question failed: see whether upstream answers any, before others are kept from asking theirs."""
        self._metrics.upstream_answers.labels(self.registry, ask.method, why).inc()
        if self._breaker.is_open:
            return
        await asyncio.wait({self._probe or self._start_probe()})

    def _start_probe(self) -> asyncio.Task[None]:
        self._probe = asyncio.create_task(self._look())
        return self._probe

    async def _look(self) -> None:
        """Ask for /v2/, a question of our own that no client can make hang; any answer at all will do."""
        try:
            async with asyncio.timeout(PROBE_BUDGET):
                url = URL(f"{self.egress.base}/v2/", encoded=True)
                (await self.egress.request("GET", url, {}, fresh=True)).close()
        except (OciError, TimeoutError) as error:
            if not isinstance(error, OciError) or error.problem is not Problem.OVERLOADED:
                self._breaker.failed(time.monotonic())
        else:
            self._breaker.succeeded()
        finally:
            self._probe = None

    async def _retried(
        self, attempt: Callable[[], Awaitable[aiohttp.ClientResponse]], tries: int
    ) -> aiohttp.ClientResponse:
        for number in range(tries - 1):
            try:
                response = await attempt()
                if response.status < 500:
                    return response
                response.close()
            except OciError as error:
                if error.problem not in {Problem.UPSTREAM_UNREACHABLE, Problem.UPSTREAM_ERROR}:
                    raise
            await asyncio.sleep(pause(number, secrets.SystemRandom().random()))
        return await attempt()

    async def _authorized(self, ask: Ask) -> aiohttp.ClientResponse:
        """Send with what authorization there is; after a 401, once more with what it asks for."""
        authorization = await self._tokens.authorization(ask.repository)
        response = await self._followed(ask, authorization)
        if response.status != 401:
            return response
        challenges = challenge.parse(response.headers.getall("WWW-Authenticate", ()))
        renewed = None
        if response.url.origin() == self.egress.origin:
            renewed = await self._tokens.renewed(ask.repository, challenges, authorization)
        if renewed is None:
            return response
        response.close()
        return await self._followed(ask, renewed)

    async def _followed(self, ask: Ask, authorization: str | None) -> aiohttp.ClientResponse:
        response = await self.egress.request(ask.method, ask.url, ask.headers, authorization, fresh=ask.fresh)
        self._metrics.upstream_answers.labels(self.registry, ask.method, response.status).inc()
        self._breaker.succeeded()
        if not ask.redirects:
            return response
        response = await self.egress.follow(ask.method, response, ask.headers, authorization, fresh=ask.fresh)
        if response.status in {400, 401, 403, 410} and response.url.origin() != self.egress.origin:
            # Signed URLs expire: that is not upstream's word on who may read what, and it will sign another.
            response.close()
            raise OciError(
                Problem.UPSTREAM_ERROR,
                f"{response.url.host}, where {self.registry} sends us, answered {response.status}",
            )
        return response

    def _accepted(
        self, ask: Ask, response: aiohttp.ClientResponse, allowed: frozenset[int] | set[int]
    ) -> aiohttp.ClientResponse:
        status = response.status
        if status in {200, 206} or status in allowed or (300 <= status < 400 and not ask.redirects):
            return response
        wait = retry_after(response.headers.get("Retry-After"), time.time())
        response.close()
        raise self._refusal(ask, status, wait)

    def _refusal(self, ask: Ask, status: int, wait: float | None) -> OciError:
        name = ask.repository
        match status:
            case 404 | 410:
                return OciError(ask.missing, f"{self.registry} has no such thing in {name.name}")
            case 401 | 403:
                return OciError(
                    Problem.DENIED,
                    f"{self.registry} denies access to {name.name}: it does not exist, or is not for us to read",
                )
            case 429:
                return OciError(Problem.TOO_MANY_REQUESTS, f"{self.registry} limits our rate", retry_after=wait)
            case 416:
                return OciError(Problem.UPSTREAM_INVALID, f"{self.registry} has less of this blob than it said")
            case _ if status >= 500:
                return OciError(Problem.UPSTREAM_ERROR, f"{self.registry} answered {status}", retry_after=wait)
            case _:
                return OciError(Problem.UPSTREAM_INVALID, f"{self.registry} answered {status}")

    def _invalid(self, what: str) -> OciError:
        return OciError(Problem.UPSTREAM_INVALID, f"{self.registry} {what}")
