"""Every case, in the order in which they are run."""

from benchmarks.bench import Case
from benchmarks.cases import cold, manifests, ranges, warm

CASES = (
    Case("warm manifests", "requests/s", "nginx", manifests.manifests),
    Case("warm small blobs", "requests/s", "nginx, 2 workers", warm.small_blobs),
    Case("warm blobs, plain", "GB/s", "nginx, 2 workers", warm.blobs),
    Case("warm large blobs, plain", "GB/s", "nginx, 2 workers", warm.large_blobs),
    Case("warm blobs over TLS", "GB/s", "nginx, 2 workers", warm.blobs_over_tls),
    Case("cold blob at memory speed", "seconds", "nginx proxy_cache", cold.cold),
    Case("cold blob at 1 Gbit/s", "seconds", "direct", cold.cold_at_a_gigabit),
    Case("herd", "seconds", "nginx proxy_cache", cold.herd),
    Case("crowd", "peak memory, MiB", "nginx proxy_cache", cold.crowd),
    Case("ranges", "seconds", "nginx proxy_cache", ranges.ranges),
)
