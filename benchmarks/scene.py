"""What cases have in common: an upstream that counts, the contenders, and having them filled and looked through."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import contenders, usage
from benchmarks.bench import Bench
from benchmarks.certificate import Certificate
from benchmarks.contenders import Contender
from benchmarks.contents import MIB, Blob, Image, lay
from benchmarks.drain import Load
from benchmarks.load import drain
from benchmarks.servers import Place
from benchmarks.upstream import own
from proxy import nearby

GIGABIT = 125e6  # bytes a second
QUIET = 0.1  # seconds without work after which an upstream has nothing more to send

DIRECT = Contender("direct", contenders.direct)
ENTREPOT = Contender("entrepot", contenders.entrepot)
PROXY_CACHE = Contender("nginx proxy_cache", contenders.proxy_cache, "nginx")
PULL_THROUGH = Contender("docker-registry pull-through", contenders.docker_registry, "docker-registry")
VARNISH = Contender("varnish", contenders.varnish, "varnishd")
CACHES = (ENTREPOT, PROXY_CACHE, PULL_THROUGH, VARNISH)


def static(image: Image, workers: int, tls: Certificate | None = None) -> Contender:
    """nginx with the image's files: what this machine can do."""
    name = "nginx" if workers == 1 else f"nginx, {workers} workers"
    return Contender(name, partial(contenders.nginx, image, workers=workers, tls=tls), "nginx")


def unpaced(image: Image, workers: int) -> list[Contender]:
    """The same with connections that the kernel does not pace, as Entrepot's to this machine; none if it never does."""
    name = f"nginx, {workers} workers, unpaced"
    serve = partial(contenders.nginx, image, workers=workers, is_unpaced=True)
    return [] if nearby.paced() is None else [Contender(name, serve, "nginx")]


def cache(workers: int, tls: Certificate | None = None) -> Contender:
    """Entrepot with so many workers."""
    name = "entrepot" if workers == 1 else f"entrepot, {workers} workers"
    return Contender(name, partial(contenders.entrepot, workers=workers, tls=tls))


def plain(image: Image) -> Contender:
    """docker-registry with the image in it."""
    return Contender("docker-registry", partial(contenders.plain_registry, image), "docker-registry")


@dataclass(frozen=True)
class Origin:
    """The upstream of a case: where it is, what it has, and what it has sent."""

    place: Place
    image: Image
    log: Path

    @property
    def sent(self) -> int:
        """Bytes of blobs, of answers that have ended."""
        return contenders.sent(self.log)

    async def settled(self) -> None:
        """Wait until it sends nothing any more: docker-registry goes on fetching when its client has everything."""
        if self.place.pid is None:
            return
        before = -1.0
        while before != (before := usage.cpu(self.place.pid)):  # noqa: ASYNC110  another process
            await asyncio.sleep(QUIET)


@contextlib.asynccontextmanager
async def origin(bench: Bench, sizes: Sequence[int], rate: float | None = None) -> AsyncIterator[Origin]:
    """An upstream with one image of such layers, in front of which nothing is slow but its `rate`.

    At memory speed that is nginx, which sends a GB for a tenth of the processor's time that Python takes, so that it is
    not what is measured; at a rate it is our own, since nginx's rate is for each connection and comes in bursts.
    """
    with bench.room() as folder:
        image, log = lay(folder / "image", sizes), folder / "upstream.log"
        serve: AbstractAsyncContextManager[Place] = own(image, log, rate)
        if rate is None and bench.has("nginx"):
            serve = contenders.nginx(image, "", folder, log=log)
        async with serve as place:
            yield Origin(place, image, log)


@contextlib.asynccontextmanager
async def started(bench: Bench, origin: Origin, those: Sequence[Contender]) -> AsyncIterator[dict[Contender, Place]]:
    """All of them at once, each in a folder of its own: for what is warm, where who is not asked does nothing."""
    async with AsyncExitStack() as stack:
        places = {}
        for one in bench.present(those):
            with bench.sparing(one):
                folder = stack.enter_context(bench.room())
                places[one] = await stack.enter_async_context(one.start(origin.place.host, folder))
        yield places


def whole(
    place: Place, blob: Blob, connections: int = 1, *, seconds: float | None = None, is_hashed: bool = False
) -> Load:
    """A load of whole blobs."""
    digests = (blob.digest,) if is_hashed else ()
    return Load(place.host, blob.path, blob.size, connections, seconds, digests=digests, is_tls=place.is_tls)


async def introduced(origin: Origin, place: Place) -> None:
    """Pull the manifest, as every client does before it asks for blobs. Raises WrongAnswerError."""
    await drain(Load(place.host, origin.image.by_tag, origin.image.manifest.size, is_tls=place.is_tls), place)


async def filled(origin: Origin, place: Place, blob: Blob) -> None:
    """Have it in a cache, and hash it: as it comes, and again when it is there. Raises WrongAnswerError."""
    for _ in range(2):
        await drain(whole(place, blob, is_hashed=True), place)
        await origin.settled()


def size_name(size: int) -> str:
    """Of so many bytes, as people say it."""
    if size < MIB:
        return f"{size // 1024} KiB"
    return f"{size // MIB} MiB" if size < 1024 * MIB else f"{size // 1024 // MIB} GiB"


def clients(count: int, what: str = "client") -> str:
    """So many of them."""
    return f"1 {what}" if count == 1 else f"{count:,} {what}s"
