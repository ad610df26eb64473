"""Every single request to the bucket goes wrong in turn, in each way that it may: pulls neither wait for it nor fail.

For each scenario the requests are counted first; then it is run once for each of them and each fault, once with that
request alone and once with all from there on. `ENTREPOT_FAULTS=all` runs every point, and is what `make faults` does;
otherwise it is as many of each scenario as the number says, chosen by `ENTREPOT_SEED`. `ENTREPOT_FAULTS="7+ 503"` runs
that point alone.
"""

import asyncio
import hashlib
import os
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from proxy.files import hop
from tests.buckets import TestBucket

from .faulty_bucket import FAULTS, FaultyBucket, Point
from .harness import Proxy
from .test_s3 import REPO, cached, configured, pending, pull, uploaded
from .upstream import FakeRegistry, Image, digest_of

pytestmark = pytest.mark.slow

CHOSEN = os.environ.get("ENTREPOT_FAULTS", "2")
SEED = int(os.environ.get("ENTREPOT_SEED", time.time_ns() % 10**6))
SHARDS = 6 if CHOSEN == "all" else 1
STRIDE = 4  # requests between one beginning of an outage and the next
BOUND = 20.0  # seconds for a pull, with what the bucket may hold up scaled down to 0.6: on a busy machine as well
LAYERS = [bytes(range(256)) * 1200, b"small"]  # one by several parts, one whole
SHORT_ONCE = {"wrong"}  # nobody can know before the end
FITFUL = {  # what befalls some answers and others not: those with a body, those without
    "broken", "stalled", "truncated", "shorter", "longer", "wrong",
    "412", "409", "no-bucket", "error-in-200", "page", "bare",
}  # fmt: skip


class Trial:
    """A pull that is run with one fault after the other, each with a directory of its own.

    Cold: nothing is anywhere, and the bucket gets it all, below a prefix of its own. Warm: it comes from the bucket.
    """

    def __init__(
        self, name: str, upstream: FakeRegistry, faulty: FaultyBucket, bucket: TestBucket, place: Path
    ) -> None:
        self._is_cold = name == "cold"
        self._upstream = upstream
        self._faulty = faulty
        self._bucket = bucket
        self._place = place
        self._image: Image = upstream.add_image(REPO, "v1", LAYERS)

    async def prepare(self) -> None:
        """Fill the bucket that the warm pulls find."""
        if not self._is_cold:
            async with cached(self._text("template"), self._place / "template") as proxy:
                await pull(proxy, self._image)
                await uploaded(proxy.store)

    async def run(self, name: str, point: Point | None) -> int:
        """Go through it once; returns how many requests went wrong."""
        store, where = self._place / name, name if self._is_cold else "template"
        self._faulty.fail(point)
        try:
            async with cached(self._text(where), store) as proxy:
                async with asyncio.timeout(BOUND):
                    await self._pull(proxy, point)
                assert proxy.app.handlers.is_ready
                assert (await proxy.get("/readyz")).status == 200
                await self._wait_for_the_fault(proxy, point)
                hits, made = self._faulty.hits.total(), self._faulty.made
                self._faulty.heal()
                await self._check_recovered(proxy, point)
            await self._check_bucket(where)
        finally:
            self._faulty.heal()
        return made if point is None else hits

    async def _pull(self, proxy: Proxy, point: Point | None) -> None:
        """All of the image, with every byte right; where the bucket's were wrong the second time is to be right."""
        assert (await proxy.get(f"/v2/{REPO}/manifests/v1")).body == self._image.body
        for digest in self._image.blob_digests:
            answer = await proxy.get(f"/v2/{REPO}/blobs/{digest}")
            if point is not None and point.fault in SHORT_ONCE and answer.ended == "short":
                assert digest_of(answer.body) != digest
                answer = await proxy.get(f"/v2/{REPO}/blobs/{digest}")
            assert (answer.status, answer.ended, digest_of(answer.body)) == (200, "complete", digest)

    async def _wait_for_the_fault(self, proxy: Proxy, point: Point | None) -> None:
        """Until all is uploaded, or nothing gets on: an outage does not end before it is noticed."""
        lasts = point is not None and point.lasts
        async with asyncio.timeout(BOUND):
            while pending(proxy.store) and not (lasts and _said(proxy, "bucket fails")):  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        if _said(proxy, "bucket fails") > _said(proxy, "bucket answers again"):
            assert _is_up(proxy) == 0

    async def _check_recovered(self, proxy: Proxy, point: Point | None) -> None:
        """The bucket gets what it has not got, without anybody's doing, and it is said once that it is well."""
        await uploaded(proxy.store)
        assert proxy.app.shared is not None
        remote = proxy.app.shared.replicas.durable
        async with asyncio.timeout(BOUND):
            while _is_up(proxy) != 1:
                await remote.size("nothing")
                await asyncio.sleep(0.005)
        reasons = [record["reason"] for record in proxy.log if record["event"] == "bucket fails"]
        is_fitful = point is not None and point.fault in FITFUL
        assert len(reasons) == _said(proxy, "bucket answers again"), proxy.log
        of_faults = [reason for reason in reasons if "does not answer" not in reason]  # what is slow is this machine
        assert len(of_faults) <= 1 or is_fitful, reasons
        assert _said(proxy, "bucket fails in part") <= 3, proxy.log
        await remote.abandon(time.time() + 600)
        await pull(proxy, self._image)

    async def _check_bucket(self, where: str) -> None:
        assert await hop(self._bucket.uploads) == [], "an upload is left begun"
        objects = await hop(self._objects, where)
        for digest in (self._image.digest, *self._image.blob_digests):
            algorithm, _, encoded = digest.partition(":")
            body = objects[f"{where}/blobs/{algorithm}/{encoded[:2]}/{encoded}"]
            assert hashlib.new(algorithm, body).hexdigest() == encoded, "wrong bytes in the bucket"
        assert f"{where}/repositories/docker.io/{REPO}/_tags/v1" in objects

    def _objects(self, where: str) -> dict[str, bytes]:
        return {key: self._bucket[key] for key in self._bucket.keys(f"{where}/")}

    def _text(self, where: str) -> str:
        return configured(self._upstream.url, self._bucket, url=self._faulty.url).replace('"cache/"', f'"{where}/"')


def _said(proxy: Proxy, event: str) -> int:
    return sum(record["event"] == event for record in proxy.log)


def _is_up(proxy: Proxy) -> float | None:
    return proxy.metrics.registry.get_sample_value("entrepot_bucket_up")


@pytest.mark.timeout(60 if CHOSEN == "2" else 3600)
@pytest.mark.usefixtures("impatient_bucket")
@pytest.mark.parametrize("shard", range(SHARDS))
@pytest.mark.parametrize("name", ["cold", "warm"])
async def test_whatever_request_to_the_bucket_goes_wrong_pulls_are_right_and_it_gets_everything_in_the_end(
    upstream: FakeRegistry,
    bucket: TestBucket,
    faulty: FaultyBucket,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
    name: str,
    shard: int,
) -> None:
    trial = Trial(name, upstream, faulty, bucket, tmp_path)
    await trial.prepare()
    made = await trial.run("counted", None)
    failures = []
    for number, point in enumerate(_chosen(name, made)[shard::SHARDS]):
        try:
            hits = await trial.run(str(number), point)
        except Exception as error:  # all of them are to be seen
            failures.append(f"{point}: {type(error).__name__} {str(error).partition(chr(10))[0][:300]}")
            await trial.prepare()
            continue
        if hits:
            record_property("bucket", str(point))
    assert not failures, f"{name}, {made} requests, ENTREPOT_SEED={SEED}:\n" + "\n".join(failures)


def _chosen(name: str, made: int) -> Sequence[Point]:
    single = [Point(number, fault) for number in range(1, made + 1) for fault in FAULTS]
    lasting = [Point(number, fault, lasts=True) for number in range(1, made + 1, STRIDE) for fault in FAULTS]
    if CHOSEN == "all":
        return [*single, *lasting]
    if CHOSEN.isdigit():
        chance, count = random.Random(f"{SEED} {name}"), int(CHOSEN)  # noqa: S311
        return [point for found in (single, lasting) for point in chance.sample(found, min(count, len(found)))]
    return [point for point in [*single, *lasting] if str(point) == CHOSEN]
