"""What the configuration wants to be warm, brought in once in a while: rounds over the images of a [[warm]] entry."""

import errno
import hashlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from proxy.blobs import Blobs
from proxy.files import Unusable, reading
from proxy.manifests import Manifests
from proxy.oci.errors import OciError
from proxy.oci.imagelist import Wish, parse
from proxy.oci.reference import Reference, Repository
from proxy.routing import Routes
from proxy.routing import image as resolve
from proxy.sections.images import Warm
from proxy.stores.base import Pin, RepositoryStore
from proxy.telemetry import Logger, Metrics
from proxy.warming import Report, Warmed, Warming, platforms
from proxy.wishes import put_tags, resolved

LONGEST_LIST = 16 * 1024 * 1024  # bytes of a file of images

_NOBODY = Report(found=lambda _: None, arrived=lambda _: None)


@dataclass(frozen=True, slots=True)
class Stock:
    """What images are brought into."""

    manifests: Manifests
    blobs: Blobs
    repositories: RepositoryStore


class Round:
    """Brings the images of one entry in, one after the other, as a client would and with no more turns than it has."""

    def __init__(self, entry: Warm, routes: Routes, stock: Stock, metrics: Metrics, log: Logger) -> None:
        self._entry = entry
        self._routes = routes
        self._warming = Warming(stock.manifests, stock.blobs, platforms(entry.platforms))
        self._repositories = stock.repositories
        self._metrics = metrics
        self._log = log

    @property
    def name(self) -> str:
        """The same for the same entry, wherever it stands in the configuration."""
        return f"warm-{hashlib.sha256(self._entry.model_dump_json().encode()).hexdigest()[:16]}"

    async def __call__(self) -> None:
        """Go round once; what could not be had is logged, and tried again in the next round. Raises OSError."""
        began, whole, failed, size = time.monotonic(), 0, 0, 0
        async for name, warmed in self._went([*map(Wish, self._entry.images), *await self._listed()]):
            failures = [warmed] if isinstance(warmed, str) else warmed.failures
            for failure in failures:
                self._log.warning("not warmed", image=name, reason=failure)
            whole, failed = whole + (not failures), failed + bool(failures)
            size += 0 if isinstance(warmed, str) else sum(warmed.blobs.values())
            self._metrics.warmed.labels("failed" if failures else "whole").inc()
        seconds = round(time.monotonic() - began, 1)
        self._log.info("warmed", images=whole, failed=failed, bytes=size, seconds=seconds)

    async def _listed(self) -> list[Wish]:
        if self._entry.file is None:
            return []
        try:
            async with reading(self._entry.file) as stream:
                return parse((await stream.read(LONGEST_LIST)).decode("utf-8", "replace"))
        except (Unusable, ValueError) as error:
            raise OSError(errno.EINVAL, f"warm.file: {error}") from None

    async def _went(self, wishes: Sequence[Wish]) -> AsyncIterator[tuple[str, Warmed | str]]:
        for wish in dict.fromkeys(wishes):
            if wish.part is None:
                yield wish.name, await self._one(wish.name)
        try:
            wanted = resolved(self._routes, [wish for wish in wishes if wish.part is not None])
        except OciError as error:
            yield str(self._entry.file), error.message
            return
        for repository, parts in wanted.parts.items():
            for digest in parts.manifests:
                await self._pin(repository, digest)
            warmed = await self._warming.exactly(repository, parts, _NOBODY)
            await put_tags(self._repositories, repository, parts)
            yield str(repository), warmed

    async def _one(self, name: str) -> Warmed | str:
        try:
            image = resolve(self._routes, name)
            await self._pin(*image)
            return await self._warming.bring(*image, _NOBODY)
        except OciError as error:
            return error.message

    async def _pin(self, repository: Repository, reference: Reference) -> None:
        """First, so that nothing of it goes while the rest comes."""
        if self._entry.keep is not None:
            await self._repositories.put_pin(repository, reference, Pin(time.time(), time.time() + self._entry.keep))
