"""One pull of an image as containerd does it, phase by phase; every byte is held against its digest, none is kept."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from proxy.oci.digest import Digest, Hasher
from proxy.oci.errors import OciError, Problem
from proxy.oci.manifest import INDEXES, MOST_NESTED, Descriptor, Manifest
from proxy.oci.platform import Platform, is_wanted, of_index
from proxy.oci.reference import Reference, Repository
from proxy.timings import Phase, Run, Way

PIECE = 1024 * 1024  # bytes that are hashed at a time, in a thread

Read = Callable[[], Awaitable[bytes]]  # what has come since; empty at the end
Arrived = Callable[[int], None]  # told of bytes as they come


class Source(Protocol):
    """Where images are pulled from. Every method raises OciError for what it cannot have."""

    async def head(self, repository: Repository, reference: Reference) -> Digest | None:
        """What a tag stands for; None where that is not told without the manifest."""

    async def manifest(self, repository: Repository, reference: Reference) -> Manifest:
        """A manifest, held against its digest if that is how it was asked for."""

    def blob(self, repository: Repository, digest: Digest) -> AbstractAsyncContextManager[Read]:
        """The bytes of a blob, not held against anything."""


@dataclass(frozen=True, slots=True)
class Image:
    """What a pull asks for: an index, if there is one, the manifest of the platform, its config and its layers."""

    name: str  # as somebody called it
    repository: Repository
    reference: Reference
    manifests: Sequence[Manifest]
    config: Descriptor | None
    layers: Sequence[Descriptor]
    is_headless: bool = False  # a HEAD does not tell what the tag stands for: resolving it takes a GET

    @property
    def digest(self) -> Digest:
        """What the tag stands for."""
        return self.manifests[0].digest

    @property
    def size(self) -> int:
        """Bytes of one pull."""
        blobs = [*([] if self.config is None else [self.config]), *self.layers]
        return sum(len(one.body) for one in self.manifests) + sum(one.size for one in blobs)

    @property
    def gets(self) -> int:
        """How many manifests one pull asks for by GET: what registries count."""
        return len(self.manifests) + self.is_headless


async def look_up(
    source: Source, name: str, image: tuple[Repository, Reference], platform: Platform
) -> Image:  # fmt: skip
    """See what a pull of an image will ask for. It takes the GETs of its manifests. Raises OciError."""
    repository, reference = image
    digest = await source.head(repository, reference)
    manifests = [await source.manifest(repository, reference if digest is None else digest)]
    while manifests[-1].media_type in INDEXES:
        found = next((one for one, of in of_index(manifests[-1].body) if is_wanted(of, [platform])), None)
        if found is None or len(manifests) > MOST_NESTED:
            raise OciError(Problem.MANIFEST_UNKNOWN, f"it has nothing for {platform}: see --platform")
        manifests.append(await source.manifest(repository, found))
    here = [one for one in dict.fromkeys(manifests[-1].descriptors) if not one.is_elsewhere]
    config, layers = (here[0], here[1:]) if here else (None, [])
    return Image(name, repository, reference, manifests, config, layers, is_headless=digest is None)


async def pull(source: Source, image: Image, way: Way, *, at_once: int, arrived: Arrived) -> Run:
    """Pull it; `at_once`: how many layers at a time. Raises OciError."""
    marks = [time.perf_counter()]
    await _resolve(source, image)
    marks.append(time.perf_counter())
    for manifest in image.manifests:
        await source.manifest(image.repository, manifest.digest)
        arrived(len(manifest.body))
    if image.config is not None:
        await _blob(source, image, image.config, arrived)
    marks.append(time.perf_counter())
    waits = await _layers(source, image, at_once, arrived)
    marks.append(time.perf_counter())
    seconds = dict(zip((Phase.RESOLVE, Phase.MANIFESTS), (marks[1] - marks[0], marks[2] - marks[1]), strict=True))
    if waits:
        seconds |= {Phase.FIRST_BYTE: waits[0], Phase.LAYERS: marks[3] - marks[2]}
    return Run(way, seconds | {Phase.TOTAL: marks[3] - marks[0]})


async def _resolve(source: Source, image: Image) -> None:
    digest = await source.head(image.repository, image.reference)
    if digest is None:
        digest = (await source.manifest(image.repository, image.reference)).digest
    if digest != image.digest:
        raise OciError(
            Problem.UPSTREAM_INVALID,
            f"it stands for {digest} here, and stood for {image.digest} when this began: it has moved, or the cache "
            f"has not asked since (entrepot refresh {image.name})",
        )


async def _layers(source: Source, image: Image, at_once: int, arrived: Arrived) -> list[float]:
    turns = asyncio.Semaphore(at_once)

    async def one(layer: Descriptor) -> float:
        async with turns:
            return await _blob(source, image, layer, arrived)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(layer)) for layer in image.layers]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None  # the first; the others ended because of it
    return [task.result() for task in tasks]


async def _blob(source: Source, image: Image, blob: Descriptor, arrived: Arrived) -> float:
    """Read a blob to its end. Returns the seconds until its first byte."""
    began, waited, count = time.perf_counter(), 0.0, 0
    hasher, pieces = blob.digest.hasher(), bytearray()
    async with source.blob(image.repository, blob.digest) as read:
        while data := await read():
            waited = waited or time.perf_counter() - began
            count += len(data)
            arrived(len(data))
            pieces += data
            if count > blob.size:
                break
            if len(pieces) >= PIECE:
                await asyncio.to_thread(hasher.update, pieces)
                pieces = bytearray()
    await _check(hasher, pieces, blob, count)
    return waited or time.perf_counter() - began


async def _check(hasher: Hasher, rest: bytearray, blob: Descriptor, count: int) -> None:
    await asyncio.to_thread(hasher.update, rest)
    if count != blob.size or not blob.digest.matches(hasher):
        raise OciError(Problem.UPSTREAM_INVALID, f"{blob.digest} came with other bytes than those of its digest")
