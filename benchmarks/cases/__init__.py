"""Every case, in the order in which they are run."""

from benchmarks.bench import Case
from benchmarks.cases import capped, cold, growth, image, manifests, ranges, readers, warm

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
    Case("image over a WAN", "seconds", "direct", image.image_over_wan),
    Case("capped upstream", "MB/s", "entrepot, 1 connection", capped.capped),
    Case("slow readers", "peak memory, MiB", "nginx, 2 workers", readers.slow_readers),
    Case("growth", "seconds from start to ready", "nothing else", growth.growth),
)
