"""Whether a client is sent to the bucket for a blob, in place of getting its bytes from here.

Bytes never fail a pull, and a redirect that a client cannot follow does: whoever is not known to follow one gets bytes.
"""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

from cachetools import TTLCache
from pydantic import SecretStr

from proxy.blobs import Blobs
from proxy.oci.digest import Digest
from proxy.oci.reference import Repository
from proxy.permissions import Permissions
from proxy.single_flight import SingleFlight
from proxy.stores.durable import Durable
from proxy.stores.keys import blob_key
from proxy.values import Networks

LOOK = 5.0  # seconds for which it is remembered how long an object is, or that there is none
AGAIN = 60.0  # seconds in which a client that comes back for a blob could not use its URL
REMEMBERED = 16384

# The first word of their User-Agent: they follow a redirect of a blob to another host, with the headers that matter.
FOLLOWING = frozenset({
    "docker", "containerd", "buildkit", "containers", "skopeo", "buildah", "libpod", "cri-o", "go-containerregistry",
    "crane", "oras", "oras-go", "helm",
})  # fmt: skip
# It follows to a name only: an address may be one of a cloud's own services.
BY_NAME = "go-containerregistry"
# With one of these the answer is ours: a part, since what broke off is resumed here; a condition, since the bucket does
# not know our ETag; credentials, which some clients would send on to a bucket below the same name, and which it refuses
# beside a signature; a proxy in between, since nobody knows then whose address it is.
ANSWERED_HERE = ("Range", "If-Range", "If-None-Match", "Authorization", "Forwarded", "X-Forwarded-For", "Via")


@dataclass(frozen=True, slots=True)
class Client:
    """Who asks for a blob: from which address, by which version of HTTP, by TLS or not, with which headers."""

    address: str | None
    version: tuple[int, int]
    is_secure: bool
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Rules:
    """Who may be redirected: clients from `networks`, to a place that is reached by TLS or not, by name or address."""

    networks: Networks
    is_secure: bool
    is_named: bool

    @classmethod
    def leading_to(cls, endpoint: str, networks: Networks) -> Self:
        """The rules for a place of this URL."""
        url = urlsplit(endpoint)
        return cls(networks, url.scheme == "https", _address(url.hostname) is None)

    def admit(self, client: Client) -> bool:
        """Whether it comes from the right place, and is known to follow."""
        return self._is_near(client.address) and self._is_followed_by(client)

    def _is_near(self, text: str | None) -> bool:
        address = _address(text)
        return address is not None and any(address in network for network in self.networks)

    def _is_followed_by(self, client: Client) -> bool:
        if client.version < (1, 1) or (client.is_secure and not self.is_secure):
            return False
        if any(name in client.headers for name in ANSWERED_HERE):
            return False
        agent = client.headers.get("User-Agent", "").lower()
        name = agent.partition(" ")[0].partition("/")[0]
        return name in FOLLOWING and (self.is_named or BY_NAME not in agent)


class Redirects:
    """The use case: a URL of the bucket's for a blob that a repository may have."""

    def __init__(self, rules: Rules, durable: Durable, permissions: Permissions, blobs: Blobs) -> None:
        self._rules = rules
        self._durable = durable
        self._permissions = permissions
        self._blobs = blobs
        self._sizes: TTLCache[Digest, int | None] = TTLCache(REMEMBERED, LOOK)
        self._looks: SingleFlight[Digest, int | None] = SingleFlight()
        self._sent: TTLCache[tuple[str | None, Digest], bool] = TTLCache(REMEMBERED, AGAIN)

    async def find(self, client: Client, repository: Repository, digest: Digest) -> SecretStr | None:
        """Where this client gets the blob, in place of here; None if it is to get it here. Raises OSError.

        That it may have it is known by the repository's link: without one it is asked for here, as ever.
        """
        if not self._rules.admit(client) or self._blobs.is_coming(repository, digest):
            return None
        if (client.address, digest) in self._sent:
            return None
        link = await self._permissions.known(repository, digest)
        if link is None or not link.size or link.size != await self._size(digest):
            return None
        url = await self._durable.presign(blob_key(digest))
        if url is not None:
            self._sent[client.address, digest] = True
        return url

    async def _size(self, digest: Digest) -> int | None:
        """How many bytes of it the bucket has; one question for all who want to know."""
        size = self._sizes.get(digest, -1)
        if size == -1:
            size = self._sizes[digest] = await self._looks.run(digest, lambda: self._durable.size(blob_key(digest)))
        return size

    async def aclose(self) -> None:
        """Give up the questions in flight."""
        await self._looks.aclose()


def _address(text: str | None) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """What an address is, if it is one: that of IPv4 where one of IPv6 only wraps it."""
    try:
        address = ipaddress.ip_address(text or "")
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
