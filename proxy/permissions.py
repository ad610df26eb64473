"""Which repository may have which digest: by the link it has, or by upstream's word. Bytes are shared, this is not."""

import errno
from collections.abc import Mapping, MutableMapping
from dataclasses import replace

from proxy.oci.digest import Digest
from proxy.oci.reference import Repository
from proxy.single_flight import SingleFlight
from proxy.stores.base import Link, RepositoryStore
from proxy.telemetry import Logger
from proxy.upstream import Upstream

Sizes = MutableMapping[tuple[Repository, Digest], int]


class Permissions:
    """The links, and the questions to upstream where there is none. `sizes` is what manifests say, in bytes."""

    def __init__(
        self, upstreams: Mapping[str, Upstream], repositories: RepositoryStore, sizes: Sizes, log: Logger
    ) -> None:
        self._upstreams = upstreams
        self._repositories = repositories
        self._sizes = sizes
        self._log = log
        self._flights: SingleFlight[tuple[Repository, Digest], Link] = SingleFlight()

    async def known(self, repository: Repository, digest: Digest) -> Link | None:
        """The link, if there is one: upstream is not asked. Raises OSError.

        One that the disk cannot read is as good as none where upstream can be asked.
        """
        try:
            return await self._repositories.link(repository, digest)
        except OSError as error:
            if error.errno != errno.EIO or self._upstreams[repository.registry].is_sealed:
                raise
            return None

    def is_known(self, repository: Repository, digest: Digest) -> bool:
        """Whether there is a link, as far as memory alone can say."""
        return self._repositories.is_known(repository, digest)

    async def granted(self, repository: Repository, digest: Digest) -> Link:
        """The link; without one, upstream's word. Raises the OciError of an upstream that denies it, or is away."""
        return await self.known(repository, digest) or await self.asked(repository, digest)

    async def asked(self, repository: Repository, digest: Digest) -> Link:
        """Upstream's word of now, link or no link; one question for all who ask at once. Raises OciError."""
        return await self._flights.run((repository, digest), lambda: self._ask(repository, digest))

    async def _ask(self, repository: Repository, digest: Digest) -> Link:
        size = await self._upstreams[repository.registry].head_blob(repository, digest)
        return await self.confirmed(repository, digest, self.promised(repository, digest) if size is None else size)

    def promised(self, repository: Repository, digest: Digest) -> int | None:
        """How many bytes a blob has by the word of a manifest of the same repository."""
        return self._sizes.get((repository, digest))

    async def confirmed(self, repository: Repository, digest: Digest, size: int | None) -> Link:
        """Record that the repository contains the digest.

        A disk that will not take the record must not keep the blob from whoever may have it.
        """
        link = Link(size)
        try:
            known = await self.known(repository, digest)
            link = link if known is None else replace(known, size=size)  # a manifest keeps its media type
            await self._repositories.put_link(repository, digest, link)
        except OSError as error:
            self._log.warning("link not recorded", repository=str(repository), reason=error.strerror)
        return link

    async def aclose(self) -> None:
        """Give up the questions in flight."""
        await self._flights.aclose()
