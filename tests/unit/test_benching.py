"""Which pulls a measurement takes, what they cost, what upstream allows, and what is not taken out for it."""

import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from proxy import allowances
from proxy.allowances import Allowed
from proxy.benching import Bench, Measurement, Order, is_whole, measure, objection
from proxy.oci.digest import Digest
from proxy.oci.errors import OciError, Problem
from proxy.oci.manifest import OCI_MANIFEST, Descriptor, Manifest
from proxy.oci.ratelimit import Allowance, State
from proxy.oci.reference import Repository, Tag
from proxy.pulling import Image, Source
from proxy.sections.account import Account
from proxy.sections.upstream import Upstream
from proxy.sources import MemoryLimits
from proxy.timings import Way

REPOSITORY = Repository("docker.io", "library/app")
INDEX, MANIFEST = (Manifest(body, Digest.of(body), OCI_MANIFEST, ()) for body in (b"an index", b"a manifest"))
LAYER = Descriptor("", Digest.of(b"layer"), 1000)
SIZE = len(b"an index" + b"a manifest") + 1000


def order(*, cold: int = 0, runs: int = 2, is_cached: bool = False, is_whole: bool = False, **more: Any) -> Order:
    """To measure an image of an index and one layer."""
    image = Image(
        "app", REPOSITORY, Tag("v1"), [INDEX, MANIFEST], None, [LAYER], is_headless=more.get("headless", False)
    )
    return Order(image, runs, more.get("direct", True), cold, is_cached, is_whole)


def costs(one: Order) -> list[tuple[Way, int, int, bool, bool]]:
    """Its steps, in short."""
    return [(step.way, step.gets, step.size, step.is_measured, step.takes_out) for step in one.steps()]


DIRECT, WARM = (Way.DIRECT, 2, SIZE, True, False), (Way.WARM, 0, 0, True, False)


def test_direct_and_warm_pulls_take_turns_after_the_cold_ones() -> None:
    assert costs(order(cold=1)) == [(Way.COLD, 2, SIZE, True, False), DIRECT, WARM, DIRECT, WARM]


def test_what_is_cold_by_itself_is_taken_out_before_the_second_cold_pull_only() -> None:
    assert [step.takes_out for step in order(cold=3).steps()[:3]] == [False, True, True]
    assert [step.takes_out for step in order(cold=2, is_cached=True).steps()[:2]] == [True, True]


def test_without_a_cold_pull_the_first_is_not_counted_and_costs_nothing_of_what_is_there() -> None:
    assert costs(order(runs=1))[0] == (Way.WARM, 2, SIZE, False, False)
    assert costs(order(runs=1, is_cached=True, is_whole=True))[0] == (Way.WARM, 0, 0, False, False)


def test_where_a_head_tells_nothing_each_look_at_the_tag_costs_a_get() -> None:
    found = costs(order(runs=1, direct=True, headless=True, is_whole=True))
    assert [gets for _, gets, *_ in found] == [0, 3, 1]


def test_nothing_is_asked_directly_where_that_is_not_wanted() -> None:
    assert Way.DIRECT not in [step.way for step in order(direct=False).steps()]


class Failing:
    """The bench of a measurement whose cache fails; says what was called."""

    def __init__(self, *, is_refused: bool) -> None:
        self.calls: list[str] = []
        self._is_refused = is_refused

    async def admit(self, image: Image, gets: int) -> None:
        """All is allowed."""
        self.calls.append(f"admit {gets}")

    async def take_out(self, image: Image, has_come: bool) -> None:
        """May be refused."""
        self.calls.append("take out")
        if self._is_refused:
            raise OciError(Problem.DENIED, "it is pinned")

    @contextlib.asynccontextmanager
    async def cache(self) -> AsyncIterator[Source]:
        """It never answers."""
        raise OciError(Problem.UPSTREAM_UNREACHABLE, "no answer")
        yield

    def bench(self) -> Bench:
        """As a measurement takes them."""
        return Bench(
            direct=lambda _: self.cache(), cache=self.cache, admit=self.admit, take_out=self.take_out,
            began=lambda *_: None, arrived=lambda _: None,
        )  # fmt: skip


@pytest.mark.parametrize(("is_refused", "missing"), [(False, "app"), (True, None)])
async def test_an_image_that_was_taken_out_and_did_not_come_back_is_named(
    is_refused: bool, missing: str | None
) -> None:
    failing, measurement = Failing(is_refused=is_refused), Measurement()
    await measure([order(cold=1, is_cached=True)], failing.bench(), measurement, at_once=3)
    assert failing.calls == ["admit 2", "take out"]
    assert measurement.missing == missing
    assert measurement.ended_by == ("app, cold: it is pinned" if is_refused else "app, cold: no answer")


def shown(**more: Any) -> dict[str, Any]:
    """What the desk tells of an image."""
    platforms = [{"platform": "linux/amd64", "digest": str(MANIFEST.digest), "missing": 0}]
    tags = [{"tag": "v1", "state": "fresh"}]
    return {"digest": str(INDEX.digest), "pinned": None, "tags": tags, "platforms": platforms, **more}


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({}, None),
        ({"pinned": {"until": None, "deleted": False}}, "it is pinned"),
        ({"pinned": {"until": None, "deleted": True}}, "upstream has deleted it"),
        ({"tags": [{"tag": "v1", "state": "frozen"}]}, "its tag is frozen"),
        (
            {"tags": [{"tag": "v1", "state": "fresh"}, {"tag": "v2", "state": "stale"}]},
            "it stays under its other tags (v2): name it by digest",
        ),
    ],
)
def test_what_somebody_wants_to_keep_is_not_taken_out(more: dict[str, Any], why: str | None) -> None:
    assert objection(shown(**more), Tag("v1")) == why


def test_an_image_is_whole_if_the_cache_has_this_very_one_and_its_platform() -> None:
    image = order().image
    assert is_whole(shown(), image)
    assert not is_whole(None, image)
    assert not is_whole(shown(digest=str(MANIFEST.digest)), image)
    assert not is_whole(shown(platforms=[{"digest": str(MANIFEST.digest), "missing": 1}]), image)
    assert not is_whole(shown(platforms=[]), image)


def upstream(*labels: str, reserve: float = 0.1) -> Upstream:
    """One that is asked as these."""
    named = tuple(Account(name=label, anonymous=True) for label in labels)
    return Upstream(registry="docker.io", url="https://hub.example", account=named, rate_reserve=reserve)


async def limits(**remaining: int) -> MemoryLimits:
    """So many of a hundred pulls are left of each account."""
    found = MemoryLimits()
    for label, left in remaining.items():
        await found.save("docker.io", label, State(Allowance(100, left, 21600.0), seen=time.time()))
    return found


async def test_all_accounts_of_a_repository_are_allowed_together_and_a_reserve_is_kept_of_each() -> None:
    known = await allowances.allowed(await limits(ann=30, bob=12), upstream("ann", "bob"), REPOSITORY)
    assert known == Allowed(42, 200, 21600.0, 20)
    assert known.spare == 22


async def test_where_one_account_has_been_told_of_no_limit_there_is_none() -> None:
    assert await allowances.allowed(await limits(ann=1), upstream("ann", "bob"), REPOSITORY) is None


async def test_more_than_is_to_spare_is_refused_and_not_one_less() -> None:
    known = Allowed(22, 100, 21600.0, 10)
    allowances.check("docker.io", known, 12)
    allowances.check("docker.io", None, 10**6)
    with pytest.raises(OciError, match=r"allows 22 more pulls, 10 of which are kept .* takes up to 13") as refused:
        allowances.check("docker.io", known, 13)
    assert refused.value.problem is Problem.TOO_MANY_REQUESTS
