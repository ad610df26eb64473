"""The cache and the upstreams that `entrepot bench` measures: what is planned of them, and how it is done."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from itertools import chain

from proxy.allowances import Allowed, Bill, accounts, allowed, check
from proxy.benching import Bench, Order, Shown, Step, is_whole, objection
from proxy.commands.figures import Plan
from proxy.commands.images import Where
from proxy.config import Config
from proxy.housekeeping import TICK
from proxy.inventory import size
from proxy.oci.errors import OciError, Problem
from proxy.oci.manifest import MOST_NESTED
from proxy.oci.platform import Platform
from proxy.oci.reference import Reference, Repository, Tag
from proxy.pulling import Arrived, Image, Source, look_up
from proxy.routing import image as resolve
from proxy.sections.upstream import Upstream
from proxy.sources import direct, through
from proxy.stores.base import LimitStore

HEEDED = TICK + 1.0  # seconds until a server has surely noticed that an image was taken out: it does not tell

LOOK, LOOKS = 0.1, 50  # seconds between looks at what a cache has, and how many


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be measured. `cold`: how many pulls, each of an image taken out; None: one, of what is not cached."""

    images: Sequence[str]
    platform: Platform
    runs: int
    cold: int | None
    is_direct: bool
    at_once: int


class Site:
    """Every method raises OciError for what cannot be measured, and ConfigError."""

    def __init__(self, config: Config, url: str, key: str, limits: LimitStore, desk: Where | None) -> None:
        """`url`: where the cache is, and `key` where that is said; `desk`: who knows what it holds, if anybody does."""
        self._config = config
        self._url = url
        self._key = key
        self._limits = limits
        self._desk = desk
        self._upstreams = {one.registry: one for one in config.upstream}

    # Before it starts

    async def plan(self, wanted: Wanted) -> Plan:
        """Look at each image, which takes the GETs of its manifests; more than is to spare is refused."""
        async with through(self._url, self._key) as cache:
            await cache.answers()  # before anything is asked of upstream, or taken out
        orders = [await self._named(name, wanted) for name in wanted.images]
        bills = await self._bills(orders, wanted.is_direct)
        for bill in bills:
            check(bill.registry, bill.allowed, bill.gets)
        s3 = self._config.store.s3
        return Plan(self._url, None if s3 is None else s3.bucket, wanted.platform, wanted.at_once, orders, bills)

    async def _named(self, name: str, wanted: Wanted) -> Order:
        try:
            return await self._order(name, wanted)
        except OciError as error:
            raise OciError(error.problem, f"{name}: {error.message}") from None

    async def _order(self, name: str, wanted: Wanted) -> Order:
        repository, reference = resolve(self._config.routes, name)
        shown = await self._shown(name)
        if wanted.is_direct:
            await self._reached(repository, reference)
        async with self._direct(repository) if wanted.is_direct else self._cache() as source:
            image = await look_up(source, name, (repository, reference), wanted.platform)
        if not wanted.is_direct:
            shown = await self._shown(name)  # the cache has its manifests by now
        cold, note = await self._cold(image, wanted, shown)
        return Order(image, wanted.runs, wanted.is_direct, cold, shown is not None, is_whole(shown, image), note)

    async def _reached(self, repository: Repository, reference: Reference) -> None:
        """Ask by HEAD, which costs nothing, what is left; then see whether that is enough for a look at the image."""
        async with self._direct(repository) as source:
            await source.head(repository, reference)
        check(repository.registry, await self._allowed(repository), 1 + MOST_NESTED)

    async def _cold(self, image: Image, wanted: Wanted, shown: Shown | None) -> tuple[int, str]:
        """How many cold pulls, and why none, or what else there is to know. Raises OciError for what must not be."""
        against = self._against(image, shown)
        if wanted.cold is None:
            if against is None and shown is not None:
                against = "it is cached already: --cold N takes it out of the cache before each of N pulls"
            return (1, "") if against is None else (0, against)
        if not wanted.cold:
            return 0, "--cold 0"
        if against is not None:
            raise OciError(Problem.DENIED, f"--cold: it is not taken out of the cache: {against}")
        return wanted.cold, "" if shown is None else await self._goes_too(image, wanted.platform, shown)

    def _against(self, image: Image, shown: Shown | None) -> str | None:
        settings = self._upstreams[image.repository.registry]
        if self._desk is None:
            return "nobody tells what that cache holds: name its admin listener by --server"
        if settings.sealed:
            return "its upstream is sealed"
        if settings.holds_tags(image.repository.name) and isinstance(image.reference, Tag):
            return "freeze holds its tag"
        return None if shown is None else objection(shown, image.reference)

    async def _goes_too(self, image: Image, platform: Platform, shown: Shown) -> str:
        """What else goes with an image that is taken out, and what of it stays."""
        others = [one["platform"] for one in shown["platforms"] if one["platform"] and not one["missing"]]
        others = [text for text in others if not platform.covers(Platform.parse(text))]
        said = [f"{', '.join(others)} goes with it and is not brought back"] if others else []
        shared = min(shown["shared"], image.size)
        if shared:
            said.append(f"up to {size(shared)} of it stay, for other images need them")
        return "; ".join(said)

    async def _bills(self, orders: Sequence[Order], has_asked: bool) -> list[Bill]:
        groups: defaultdict[tuple[str, Sequence[str]], list[Order]] = defaultdict(list)
        for order in orders:
            repository = order.image.repository
            groups[repository.registry, accounts(self._upstreams[repository.registry], repository)].append(order)
        bills = []
        for (registry, labels), group in groups.items():
            steps = list(chain.from_iterable(order.steps() for order in group))
            gets, count = sum(step.gets for step in steps), sum(step.size for step in steps)
            asked = sum(len(order.image.manifests) for order in group) if has_asked else 0
            known = await self._allowed(group[0].image.repository)
            bills.append(Bill(registry, labels, gets, asked, count, known))
        return bills

    # While it goes on

    def bench(self, plan: Plan, began: Callable[[Image, Step], None], arrived: Arrived) -> Bench:
        """What the plan is carried out with."""
        return Bench(
            direct=lambda image: self._direct(image.repository),
            cache=self._cache,
            admit=self._admit,
            take_out=self._take_out,
            began=began,
            arrived=arrived,
        )

    async def _admit(self, image: Image, gets: int) -> None:
        """Others ask as well meanwhile."""
        if gets:
            check(image.repository.registry, await self._allowed(image.repository), gets)

    async def _take_out(self, image: Image, has_come: bool) -> None:
        shown = await self._put_away(image, has_come)
        against = self._against(image, shown)
        if against is not None:  # it may have been pinned since
            raise OciError(Problem.DENIED, f"it is not taken out of the cache: {against}")
        if shown is not None and self._desk is not None:
            await asyncio.to_thread(self._desk.remove, [image.name], dry_run=False)
            await asyncio.sleep(HEEDED)

    async def _put_away(self, image: Image, has_come: bool) -> Shown | None:
        """What the cache has of an image; that what was pulled is there is waited for, a moment after its last byte."""
        for _ in range(LOOKS if has_come else 0):
            if is_whole(shown := await self._shown(image.name), image):
                return shown
            await asyncio.sleep(LOOK)
        return await self._shown(image.name)

    async def _shown(self, name: str) -> Shown | None:
        """What the cache has of an image; None if nothing."""
        try:
            return None if self._desk is None else await asyncio.to_thread(self._desk.show, name)
        except OciError as error:
            if error.problem is not Problem.NOT_FOUND:
                raise
            return None

    async def _allowed(self, repository: Repository) -> Allowed | None:
        return await allowed(self._limits, self._upstreams[repository.registry], repository)

    def _direct(self, repository: Repository) -> AbstractAsyncContextManager[Source]:
        settings: Upstream = self._upstreams[repository.registry]
        return direct(settings, self._limits)

    def _cache(self) -> AbstractAsyncContextManager[Source]:
        return through(self._url, self._key)
