"""Where a measured pull gets its bytes from: the registry itself as it is configured, or the cache as its clients do.

Each is opened for one pull, with connections and tokens of its own: so does a client that begins.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
from prometheus_client import CollectorRegistry
from yarl import URL

from proxy.blob_stream import Interrupted
from proxy.egress import USER_AGENT, read_limited
from proxy.oci.digest import Digest
from proxy.oci.errors import OciError, Problem
from proxy.oci.manifest import ACCEPT, MAX_BYTES, Manifest, ManifestInvalid, parse
from proxy.oci.ratelimit import State
from proxy.oci.reference import Reference, Repository
from proxy.oci.retry import retry_after
from proxy.parts import Memory
from proxy.pulling import Read
from proxy.sections.upstream import Upstream as UpstreamSection
from proxy.stores.base import LimitStore
from proxy.telemetry import Metrics, quiet
from proxy.upstream import Upstream

CONNECT_TIMEOUT = 10.0  # seconds
SILENCE = 60.0  # seconds without a byte, until it is given up


class MemoryLimits:
    """What upstreams allow, where no cache's directory is at hand to learn it from, or to tell it to."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], State] = {}

    async def load(self, registry: str, account: str) -> State | None:
        return self._known.get((registry, account))

    async def save(self, registry: str, account: str, state: State) -> None:
        self._known[registry, account] = state

    async def all(self) -> list[tuple[str, str, State]]:
        return [(*key, state) for key, state in sorted(self._known.items())]


class Direct:
    """One upstream, as the cache would ask it."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    async def head(self, repository: Repository, reference: Reference) -> Digest | None:
        return (await self._upstream.head_manifest(repository, reference)).digest

    async def manifest(self, repository: Repository, reference: Reference) -> Manifest:
        return await self._upstream.manifest(repository, reference, fallback=False)

    @contextlib.asynccontextmanager
    async def blob(self, repository: Repository, digest: Digest) -> AsyncIterator[Read]:
        async with self._upstream.blob(repository, digest) as stream:

            async def read() -> bytes:
                try:
                    return await stream.read()
                except Interrupted as error:
                    raise OciError(
                        Problem.UPSTREAM_UNREACHABLE, f"{repository.registry} broke off within {digest}: {error}"
                    ) from None

            yield read


@contextlib.asynccontextmanager
async def direct(settings: UpstreamSection, limits: LimitStore) -> AsyncIterator[Direct]:
    """The registry itself. Raises ConfigError for what is wrong with its TLS files."""
    async with Upstream(settings, limits, Memory(0), Metrics(CollectorRegistry()), quiet()) as upstream:
        yield Direct(upstream)


class Through:
    """A cache's registry listener, asked as containerd asks a mirror."""

    def __init__(self, session: aiohttp.ClientSession, url: str, key: str) -> None:
        self._session = session
        self._url = url
        self._key = key

    async def head(self, repository: Repository, reference: Reference) -> Digest | None:
        async with self._answer("HEAD", repository, f"manifests/{reference}") as answer:
            claimed = answer.headers.get("Docker-Content-Digest")
            return None if claimed is None else Digest.parse(claimed)

    async def manifest(self, repository: Repository, reference: Reference) -> Manifest:
        async with self._answer("GET", repository, f"manifests/{reference}") as answer:
            body = await read_limited(answer, MAX_BYTES)
            return await asyncio.to_thread(self._checked, body, answer.headers.get("Content-Type", ""), reference)

    def _checked(self, body: bytes, declared: str, reference: Reference) -> Manifest:
        algorithm = reference.algorithm if isinstance(reference, Digest) else "sha256"
        try:
            found = parse(body, declared, algorithm)
        except ManifestInvalid as error:
            raise OciError(Problem.UPSTREAM_INVALID, f"{self._url} sent a manifest that is none: {error}") from None
        if isinstance(reference, Digest) and found.digest != reference:
            raise OciError(Problem.UPSTREAM_INVALID, f"{reference} came with other bytes than those of its digest")
        return found

    @contextlib.asynccontextmanager
    async def blob(self, repository: Repository, digest: Digest) -> AsyncIterator[Read]:
        async with self._answer("GET", repository, f"blobs/{digest}") as answer:

            async def read() -> bytes:
                try:
                    return await answer.content.readany()
                except (aiohttp.ClientError, TimeoutError, OSError) as error:
                    why = f"{self._url} broke off within {digest}: {type(error).__name__}"
                    raise OciError(Problem.UPSTREAM_UNREACHABLE, why) from None

            yield read

    async def answers(self) -> None:
        """Raises OciError unless there is a registry at the address."""
        async with self._asked("GET", URL(f"{self._url}/v2/", encoded=True)):
            return

    @contextlib.asynccontextmanager
    async def _answer(self, method: str, repository: Repository, path: str) -> AsyncIterator[aiohttp.ClientResponse]:
        url = URL(f"{self._url}/v2/{repository.name}/{path}?ns={repository.registry}", encoded=True)
        async with self._asked(method, url) as answer:
            yield answer

    @contextlib.asynccontextmanager
    async def _asked(self, method: str, url: URL) -> AsyncIterator[aiohttp.ClientResponse]:
        try:
            # Redirects are followed, as clients do: they lead to the bucket.
            answer = await self._session.request(method, url, allow_redirects=True)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._failed(error) from None
        with contextlib.closing(answer):
            if answer.status != 200:
                raise await _refusal(answer, self._url)
            yield answer

    def _failed(self, error: Exception) -> OciError:
        return OciError(
            Problem.UPSTREAM_UNREACHABLE,
            f"no cache answers at {self._url} ({str(error) or type(error).__name__}): see {self._key}",
        )


async def _refusal(answer: aiohttp.ClientResponse, url: str) -> OciError:
    told = f"{url} answered {answer.status}"
    with contextlib.suppress(ValueError, KeyError, IndexError, TypeError):
        body: Any = json.loads(await read_limited(answer, MAX_BYTES))
        message = str(body["errors"][0]["message"])  # which must not drive the terminal
        told = f"{told}: {message if message.isprintable() else message.encode('unicode_escape').decode('ascii')}"
    problems = {404: Problem.MANIFEST_UNKNOWN, 403: Problem.DENIED, 429: Problem.TOO_MANY_REQUESTS}
    wait = retry_after(answer.headers.get("Retry-After"), time.time())
    return OciError(problems.get(answer.status, Problem.UPSTREAM_ERROR), told, retry_after=wait)


@contextlib.asynccontextmanager
async def through(url: str, key: str) -> AsyncIterator[Through]:
    """The cache at `url`; `key`: where that is said, for who has to mend it."""
    # Unverified, for the certificate is made out to the name that clients use; nothing secret is said, and every
    # byte is held against its digest.
    connector = aiohttp.TCPConnector(ssl=False, limit=0)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT, sock_read=SILENCE)
    headers = {"Accept": ACCEPT, "Accept-Encoding": "identity", "User-Agent": USER_AGENT}
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, headers=headers, cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False, trust_env=False, requote_redirect_url=False,  # signatures cover every byte
    ) as session:  # fmt: skip
        yield Through(session, url, key)
