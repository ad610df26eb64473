"""Which of the replicas on one bucket brings in a blob: whoever has the lease for it, an object that only one can make.

A lease is never changed. It is worth what its holder's answer is worth: where nobody answers for it at its address,
whoever finds that out may make the next one, `.after-<nonce>` of the first, which again only one can. All that a store
must know for that is `If-None-Match: *`, which some know that know no other condition (Ceph).
"""

import asyncio
import contextlib
import hashlib
import hmac
import json
import re
import secrets
import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field
from typing import Self

from yarl import URL

from proxy.files import Tree, hop
from proxy.oci.digest import Digest
from proxy.stores.durable import Durable
from proxy.stores.keys import blob_key, upload_key

DIRECTORY = "leases"
LIMIT = 4096  # bytes of a lease
GENERATIONS = 16  # holders of one lease that died one after the other
LOOK = 2.0  # seconds between looks whether what was brought in is in the bucket
GRACE = 10.0  # seconds that a lease outlives its upload: whoever has just not found the blob in the bucket meets it
SECRET = "replica"  # the file; what it holds is for this directory's processes alone  # noqa: S105
_BYTES = 32  # of the secret
_HEX = re.compile(r"[0-9a-f]{32,64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Identity:
    """The processes on one directory as other replicas see them: one holder, whichever of them answers."""

    secret: bytes = field(repr=False)

    @property
    def holder(self) -> str:
        """What it is called; nothing follows from it."""
        return self._derived("holder")

    def token(self, digest: Digest) -> str:
        """What a replica has to show for this blob's bytes. It is in the lease: who reads the bucket may have them."""
        return self._derived(f"token {digest}")

    def _derived(self, purpose: str) -> str:
        return hmac.new(self.secret, purpose.encode(), hashlib.sha256).hexdigest()


def identify(tree: Tree) -> Identity:
    """The identity of a directory, made when it is first asked for; blocking.

    Where the disk takes none it is for this process only: its other workers will not answer for it.
    """
    secret = secrets.token_bytes(_BYTES)
    with contextlib.suppress(OSError), tree.locked(f"jobs/{SECRET}"):
        known = tree.read_now(SECRET, _BYTES)
        if known is not None and len(known) == _BYTES:
            return Identity(known)
        tree.write_now(SECRET, secret)
    return Identity(secret)


@dataclass(frozen=True, slots=True)
class Lease:
    """Who brings in a blob: where it answers, and what to show there."""

    holder: str
    address: str  # http://host:port or https://host:port
    token: str = field(repr=False)
    nonce: str
    certificate: str | None = None  # the SHA-256 of the one it answers with, in hex; None: any that can be verified

    @classmethod
    def parse(cls, body: bytes) -> Self | None:
        """Read one; None for what is none: anybody who may write to the bucket may have written it."""
        try:
            found = cls(**json.loads(body))
            words = (found.holder, found.token, found.nonce, found.certificate or found.nonce)
            is_sound = all(map(_HEX.fullmatch, words)) and is_address(found.address)
        except (ValueError, TypeError, RecursionError):
            return None
        return found if is_sound else None


def is_address(text: str) -> bool:
    """Whether this is where a replica may say that it is: http(s)://host:port. Who connects looks at the address."""
    url = URL(text)
    has_more = url.path not in {"", "/"} or any(sign in text for sign in "?#@")
    return url.scheme in {"http", "https"} and bool(url.host) and not has_more


@dataclass(slots=True)
class _Held:
    """A lease of this process's, and since when (monotonic) the blob is in the bucket.

    `chain`: the keys and nonces of those that go with it: its own, and before it those that nobody answered for.
    """

    lease: Lease
    chain: tuple[tuple[str, str], ...]
    is_done: bool = False
    kept_since: float | None = None


class Leases:
    """The leases of this process, and a look at those of others. Nothing here raises for what the bucket does."""

    def __init__(self, tree: Tree, durable: Durable, identity: Identity) -> None:
        self._tree = tree
        self._durable = durable
        self._identity = identity
        self._held: dict[Digest, _Held] = {}
        self._going: dict[Digest, asyncio.Task[None]] = {}  # leases that are being given up
        self._address: str | None = None
        self._certificate: Callable[[], str | None] = lambda: None

    def introduce(self, address: str | None, certificate: Callable[[], str | None] = lambda: None) -> None:
        """Say where other replicas reach this one, and what TLS certificate they meet there, by its SHA-256 in hex.

        Until then, and where there is no address, it follows others and holds no leases.
        """
        self._address, self._certificate = address, certificate

    @property
    def holder(self) -> str:
        """What this directory is called in the bucket."""
        return self._identity.holder

    def is_ours(self, lease: Lease) -> bool:
        """Whether a lease is this directory's: of this process, or of another that is no more."""
        return lease.holder == self._identity.holder

    async def claim(self, digest: Digest, dead: Collection[str] = ()) -> Lease | None:
        """Take the lease for a blob, or learn who has it. None: each on its own.

        `dead`: the nonces of leases that nobody answers for.
        """
        if (going := self._going.get(digest)) is not None:
            await asyncio.wait({going})
        if (held := self._held.get(digest)) is not None:
            held.is_done, held.kept_since = False, None
            return held.lease
        chain, key = list[tuple[str, str]](), _key(digest)
        for _ in range(GENERATIONS):
            lease = await self._claimed(digest, key)
            if lease is None:
                return None
            chain.append((key, lease.nonce))
            if self.is_ours(lease) and self._address in {None, lease.address}:
                self._held[digest] = _Held(lease, tuple(chain))
                return lease
            if not self.is_ours(lease) and lease.nonce not in dead:
                return lease
            key = _key(digest, lease.nonce)
        return None

    async def _claimed(self, digest: Digest, key: str) -> Lease | None:
        """The lease at a key, which is ours if there was none. None if that cannot be known."""
        if self._address is None:
            return await self._found(key)
        identity = self._identity
        token, certificate = identity.token(digest), self._certificate()
        mine = Lease(identity.holder, self._address, token, secrets.token_hex(16), certificate)
        for _ in range(2):  # the one that was in the way may be gone when it is to be read
            is_made = await self._durable.create(key, json.dumps(asdict(mine)).encode())
            if is_made is None or is_made:
                return mine if is_made else None
            found = await self._found(key)
            if found is not None:
                return found
        return None

    async def _found(self, key: str) -> Lease | None:
        body = await self._durable.read(key, LIMIT)
        return None if body is None else Lease.parse(body)

    async def others(self, digest: Digest) -> list[Lease]:
        """The leases that other replicas have, or had, for a blob, in the order in which they were made."""
        if digest in self._held:
            return []
        return [lease for _, lease in await self._chain(digest) if not self.is_ours(lease)]

    async def _chain(self, digest: Digest) -> list[tuple[str, Lease]]:
        """All leases for a blob, with their keys."""
        found, key = list[tuple[str, Lease]](), _key(digest)
        while len(found) < GENERATIONS and (lease := await self._found(key)) is not None:
            found.append((key, lease))
            key = _key(digest, lease.nonce)
        return found

    def settle(self, digest: Digest, *, is_stored: bool) -> None:
        """This process is done with a blob: its lease goes now, or if it is stored, once it is in the bucket."""
        held = self._held.get(digest)
        if held is not None and is_stored:
            held.is_done = True
        elif held is not None:
            self._give_up(digest)

    async def disown(self, digest: Digest, nonce: str) -> None:
        """Remove a lease whose holder sent wrong bytes: nobody is to follow it any more."""
        for key, lease in await self._chain(digest):
            if lease.nonce == nonce:
                await self._durable.disown(key, "its holder sent wrong bytes")

    async def run(self) -> None:
        """Give up leases some time after their blobs are in the bucket, until cancelled."""
        while True:
            await asyncio.sleep(LOOK)
            for digest, held in list(self._held.items()):
                if held.is_done and await self._has_gone_by(digest, held, GRACE) and held.is_done:
                    self._give_up(digest)

    async def _has_gone_by(self, digest: Digest, held: _Held, seconds: float) -> bool:
        """Whether a blob has been in the bucket for so long."""
        if held.kept_since is None:
            if await hop(self._tree.has, upload_key(blob_key(digest))):
                return False
            held.kept_since = time.monotonic()
        return time.monotonic() - held.kept_since >= seconds

    def _give_up(self, digest: Digest) -> None:
        held = self._held.pop(digest)
        task = asyncio.create_task(self._removed(held.chain))
        self._going[digest] = task
        task.add_done_callback(lambda _: self._going.pop(digest, None))

    async def _removed(self, chain: tuple[tuple[str, str], ...]) -> None:
        """Remove leases, but none that somebody has made in the place of one of them since.

        One that is made between the look and the removal goes with it, and may cost a transfer: not every store knows
        a removal with a condition.
        """
        for key, nonce in chain:
            found = await self._found(key)
            if found is not None and found.nonce == nonce:
                await self._durable.remove(key)

    async def aclose(self) -> None:
        """Give up what nobody waits for any more: fills that go on no further, and blobs that are in the bucket."""
        for digest, held in list(self._held.items()):
            if not held.is_done or await self._has_gone_by(digest, held, 0.0):
                self._give_up(digest)
        await asyncio.gather(*self._going.values())


def _key(digest: Digest, nonce: str | None = None) -> str:
    after = "" if nonce is None else f".after-{nonce}"
    return f"{DIRECTORY}/{digest.algorithm}-{digest.encoded}{after}"
