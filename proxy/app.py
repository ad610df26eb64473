"""Composition root of one process: builds everything, closes it in reverse order; nothing is global."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from aiohttp import http_parser
from cachetools import LRUCache

from proxy import files, pins
from proxy.blobs import Blobs
from proxy.config import Config, ConfigError
from proxy.desk import Desk
from proxy.errands import Errands
from proxy.eviction import Bounds, Evicted, Space
from proxy.fill import Means
from proxy.handlers import Handlers
from proxy.healing import Healing
from proxy.housekeeping import Housekeeping, drop_lost, sweep
from proxy.jobs import Jobs
from proxy.listings import Listings
from proxy.manifests import Manifests
from proxy.origin import Replicas
from proxy.parts import Memory
from proxy.permissions import Permissions, Sizes
from proxy.prefetch import Prefetch
from proxy.recorder import Recorder
from proxy.redirects import Redirects, Rules
from proxy.rounds import Stock
from proxy.scrubbing import Scrubber
from proxy.stores import uploads
from proxy.stores.base import LimitStore, RepositoryStore
from proxy.stores.directory import open_tree
from proxy.stores.keys import spool_key
from proxy.stores.limits import DiskLimits
from proxy.telemetry import Logger, Metrics
from proxy.tier import Shared, open_tier
from proxy.upstream import Upstream

SIZES_IN_MEMORY = 65536
SENDERS = 8  # threads that send files, at most: one for each processor, shared by the workers
PARTS_IN_MEMORY = 64 * 1024 * 1024  # bytes of blobs that come by several connections, until they are written


@dataclass(frozen=True, slots=True)
class App:
    """One process's cache, ready to answer."""

    handlers: Handlers
    manifests: Manifests
    blobs: Blobs
    repositories: RepositoryStore
    means: Means
    metrics: Metrics
    limits: LimitStore
    desk: Desk
    housekeeping: Housekeeping
    jobs: Jobs
    scrubber: Scrubber
    recorder: Recorder
    shared: Shared | None


@contextlib.asynccontextmanager
async def build(config: Config, log: Logger, metrics: Metrics) -> AsyncIterator[App]:
    """Put the cache together, and take it apart again. Raises ConfigError, UnsafeDirectory, OSError."""
    _check_parser()
    async with contextlib.AsyncExitStack() as stack:
        tree = await files.hop(open_tree, config.store.path)
        stack.callback(tree.close)
        tier = await open_tier(config, tree, stack, metrics, log)
        store, repositories = tier.blobs, tier.repositories
        space = Space(
            tree,
            Bounds(config.store.max_size, config.store.min_free),
            record_uses=store.record_uses,
            kept=lambda: _kept(config, tree),
            evicted=lambda gone: _evicted(gone, log, metrics),
        )
        stack.push_async_callback(space.aclose)
        await _take_stock(config, tree, space, log)
        for record in (store.record_uses, repositories.record_pulls):
            stack.push_async_callback(record)
        limits, memory = DiskLimits(tree), Memory(PARTS_IN_MEMORY)
        upstreams = {
            settings.registry: await stack.enter_async_context(Upstream(settings, limits, memory, metrics, log))
            for settings in config.upstream
        }
        sizes: Sizes = LRUCache(SIZES_IN_MEMORY)
        manifests = Manifests(upstreams, store, repositories, space, sizes, log, keep_deleted=config.store.keep_deleted)
        stack.push_async_callback(manifests.aclose)
        permissions = Permissions(upstreams, repositories, sizes, log)
        stack.push_async_callback(permissions.aclose)
        means = Means(tree, store, space, log, spool_key, tier.shared)
        blobs = Blobs(upstreams, means, permissions, metrics, verifies=config.store.verify_on_read)
        stack.push_async_callback(blobs.aclose)
        prefetch = Prefetch({one.registry: one.prefetch for one in config.upstream}, blobs, log)
        stack.push_async_callback(prefetch.aclose)
        manifests.tell(prefetch.came)
        handlers = Handlers(
            config.routes,
            manifests,
            blobs,
            Listings(upstreams, manifests),
            metrics=metrics,
            log=log,
            senders=_senders(config, stack),
            client_stall_timeout=config.server.client_stall_timeout,
            recorder=(recorder := Recorder(tree, log)),
            lending=None if tier.shared is None else tier.shared.lending,
            redirects=_redirects(config, tier.replicas, permissions, blobs, stack),
        )
        housekeeping = Housekeeping(
            tree=tree, store=store, repositories=repositories, space=space, manifests=manifests,
            upstreams=tuple(upstreams.values()), metrics=metrics, log=log,
        )  # fmt: skip
        healing = Healing(tree, store, manifests, blobs, {one.registry for one in config.upstream if not one.sealed})
        scrubber = Scrubber(tree, healing, metrics, log, config.store.scrub_rate)
        jobs = Errands(config, tree, housekeeping, metrics, log).jobs(
            scrubber, Stock(manifests, blobs, repositories), tier.replicas
        )
        yield App(
            handlers, manifests, blobs, repositories, means, metrics, limits, Desk(config, tree), housekeeping,
            Jobs(tree, jobs, log), scrubber, recorder, tier.shared,
        )  # fmt: skip


def _senders(config: Config, stack: contextlib.AsyncExitStack) -> files.Senders:
    senders = files.Senders(min(SENDERS, max(1, files.processors() // config.server.workers)))
    stack.push_async_callback(senders.aclose)
    return senders


def _redirects(
    config: Config, replicas: Replicas | None, permissions: Permissions, blobs: Blobs, stack: contextlib.AsyncExitStack
) -> Redirects | None:
    """What sends clients to the bucket, if any are to be sent there."""
    if config.store.s3 is None or replicas is None or (endpoint := replicas.durable.public_endpoint) is None:
        return None
    rules = Rules.leading_to(endpoint, config.store.s3.redirect_networks)
    redirects = Redirects(rules, replicas.durable, permissions, blobs)
    stack.push_async_callback(redirects.aclose)
    return redirects


def _kept(config: Config, tree: files.Tree) -> frozenset[str]:
    """What must not go, whatever is wanted. Where nobody is asked, nobody could bring back what an image needs."""
    if config.store.s3 is not None:
        return pins.kept(tree) | frozenset(uploads.wanted(tree))
    return pins.linked(tree) if all(upstream.sealed for upstream in config.upstream) else pins.kept(tree)


def _check_parser() -> None:
    if "Py" in http_parser.HttpRequestParser.__name__:
        raise ConfigError(["aiohttp runs without its C parser: install it from a wheel for this platform"])


async def _take_stock(config: Config, tree: files.Tree, space: Space, log: Logger) -> None:
    """Look through the store. A disk that takes no writes is no reason not to serve what is on it. Raises OSError."""
    try:
        await drop_lost(tree)
        await files.hop(sweep, tree)
        await files.hop(space.open)
    except OSError as error:
        if files.is_exhausted(error):
            raise
        log.warning(
            "the store takes no writes", path=str(config.store.path), reason=error.strerror,
            meanwhile="what is cached is served, and all else passes through",
        )  # fmt: skip


def _evicted(gone: Evicted, log: Logger, metrics: Metrics) -> None:
    metrics.evicted_bytes.inc(gone.size)
    log.info("evicted", blobs=gone.blobs, bytes=gone.size)
