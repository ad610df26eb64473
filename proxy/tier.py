"""The store as a whole: on disk alone, or with a bucket behind it that replicas share."""

import contextlib
from dataclasses import dataclass

from proxy.config import Config, ConfigError
from proxy.files import Tree, hop
from proxy.lending import Lending
from proxy.origin import Replicas
from proxy.peers import Peers
from proxy.stores.disk import DiskBlobs, DiskRepositories
from proxy.stores.durable import Durable
from proxy.stores.leases import Leases, identify
from proxy.stores.s3 import Bucket
from proxy.stores.s3_errors import BucketError
from proxy.stores.tiered import TieredBlobs, TieredRepositories
from proxy.stores.uploads import Uploads
from proxy.telemetry import Logger, Metrics


@dataclass(frozen=True, slots=True)
class Shared:
    """What there is with a bucket only."""

    replicas: Replicas
    uploads: Uploads
    lending: Lending


@dataclass(frozen=True, slots=True)
class Tier:
    """Blobs and repositories, and what is shared of them."""

    blobs: DiskBlobs
    repositories: DiskRepositories
    shared: Shared | None = None

    @property
    def replicas(self) -> Replicas | None:
        """The others on the same bucket."""
        return None if self.shared is None else self.shared.replicas


async def open_tier(
    config: Config, tree: Tree, stack: contextlib.AsyncExitStack, metrics: Metrics, log: Logger
) -> Tier:
    """Build it; it is closed with the stack. Raises ConfigError, OSError."""
    if config.store.s3 is None:
        return Tier(DiskBlobs(tree), DiskRepositories(tree))
    try:
        bucket = await stack.enter_async_context(Bucket(config.store.s3))
    except BucketError as error:
        raise ConfigError([f"store.s3: {error.reason}"]) from None
    durable, identity = Durable(bucket, metrics, log), await hop(identify, tree)
    leases, peers = Leases(tree, durable, identity), Peers(metrics.lent_bytes.labels("in").inc, log)
    for one in (durable, peers, leases):
        stack.push_async_callback(one.aclose)
    replicas = Replicas(durable, leases, peers)
    uploads = Uploads(tree, durable, replicas.have, metrics, log)
    stack.push_async_callback(uploads.aclose)
    shared = Shared(replicas, uploads, Lending(tree, identity))
    return Tier(TieredBlobs(tree, durable, uploads), TieredRepositories(tree, durable, uploads), shared)
