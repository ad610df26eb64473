"""Which cached images lifecycle policies take, and taking them out.

Blocking, as the catalog is that it is read from; `Lifecycle` is the work of a server, in threads.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import islice
from typing import Any

from proxy import daemon, inventory, sections
from proxy.catalog import Catalog, Image
from proxy.files import Tree, hop
from proxy.oci.digest import Digest
from proxy.oci.lifecycle import Policy, Subject, Taken, evaluate
from proxy.oci.ratelimit import as_utc
from proxy.oci.reference import Reference, Repository
from proxy.removal import Needs, carry_out
from proxy.stores import disk
from proxy.stores.disk import announce_change

JOB = "lifecycle"  # what the job is called: its lock is that of everybody who takes images out by policies
AT_ONCE = 50  # images that go within one hop


@dataclass(frozen=True, slots=True)
class Assignment:
    """A policy, the key that it is configured by, and the repositories that it is for."""

    name: str
    repositories: Sequence[str]
    policy: Policy

    def covers(self, repository: Repository) -> bool:
        """Whether a repository has this policy, unless an assignment before this one covers it too."""
        return any(fnmatchcase(str(repository), pattern) for pattern in self.repositories)


@dataclass(frozen=True, slots=True)
class Due:
    """An image that a rule takes; `kept` is what keeps it all the same.

    `pulled`: when it and each of its platforms were last pulled, as far as was known then.
    """

    image: Image
    policy: str
    taken: Taken
    pulled: Mapping[Digest, float]
    kept: str | None


@dataclass(frozen=True, slots=True)
class Plan:
    """What is due by one look at the store, the oldest first, and what all images need."""

    due: Sequence[Due]
    needs: Needs
    at: float  # seconds since the epoch

    @property
    def going(self) -> Iterator[Due]:
        """Those that nothing keeps."""
        return (one for one in self.due if one.kept is None)


def assigned(entries: Sequence[sections.Lifecycle]) -> list[Assignment]:
    """The configured policies; the first that covers a repository is its policy."""
    return [
        Assignment(f"lifecycle[{index}]", entry.repositories, entry.policy)
        for index, entry in enumerate(entries)
        if entry.policy is not None
    ]


def plan(
    tree: Tree,
    assignments: Sequence[Assignment],
    upstreams: Sequence[sections.Upstream],
    wanted: Callable[[Repository], bool] = lambda _: True,
) -> Plan:
    """Find out what is to go of the repositories that are wanted. Raises OSError."""
    now, catalog = time.time(), Catalog(tree)
    settings = {one.registry: one for one in upstreams}
    images = catalog.images()
    own: defaultdict[Repository, list[Image]] = defaultdict(list)
    for image in images:
        own[image.repository].append(image)
    due: list[Due] = []
    for repository, found in own.items():
        assignment = next((one for one in assignments if one.covers(repository)), None)
        if assignment is not None and wanted(repository):
            pulled = catalog.repositories[repository].pulled
            taken = _taken(found, assignment, pulled, now)
            kept = [replace(one, kept=_kept(one.image, settings.get(repository.registry), now)) for one in taken]
            due += _with_parts(kept, found)
    due.sort(key=lambda one: one.image.cached or 0.0)
    return Plan(due, Needs(images, [one.image for one in due if one.kept is None]), now)


def _taken(
    images: Sequence[Image], assignment: Assignment, pulled: Mapping[Digest, float], now: float
) -> Iterator[Due]:
    parts = [{digest: pulled[digest] for digest in _manifests(image) if digest in pulled} for image in images]
    subjects = [_subject(image, max(times.values())) for image, times in zip(images, parts, strict=True)]
    for image, times, taken in zip(images, parts, evaluate(assignment.policy, subjects, now), strict=True):
        if taken is not None:
            yield Due(image, assignment.name, taken, times, None)


def _manifests(image: Image) -> Iterator[Digest]:
    yield image.digest
    for variant in image.variants:
        yield variant.digest


def _subject(image: Image, pulled: float) -> Subject:
    """As policies see it; where nobody wrote down when it was cached, it was so at its last pull the latest."""
    return Subject(tuple(map(str, image.tags)), pulled if image.cached is None else image.cached, pulled)


def _kept(image: Image, upstream: sections.Upstream | None, now: float) -> str | None:
    """What keeps an image, in a word or two: what an operator wants to stay, and what nobody could bring back."""
    pin = image.pin(now)
    if pin is not None:
        return "deleted upstream" if pin.is_deleted else "pinned"
    freeze = () if upstream is None or not image.tags else upstream.freeze
    is_frozen = any(record.is_frozen for record in image.tags.values())
    if is_frozen or any(fnmatchcase(image.repository.name, pattern) for pattern in freeze):
        return "frozen"
    return "upstream is sealed" if upstream is not None and upstream.sealed else None


def _with_parts(due: Sequence[Due], images: Iterable[Image]) -> list[Due]:
    """An image with a tag of its own that an index names stays until all such indexes go."""
    digests = {one.image.digest for one in due}
    indexes: defaultdict[Digest, set[Digest]] = defaultdict(set)
    for image in images:
        for digest in digests.intersection(image.needed) - {image.digest}:
            indexes[digest].add(image.digest)
    going = {one.image.digest for one in due if one.kept is None}
    while staying := {digest for digest in going if not indexes[digest] <= going}:
        going -= staying
    return [
        one if one.kept is not None or one.image.digest in going else replace(one, kept="part of an index that stays")
        for one in due
    ]


def take(tree: Tree, plan: Plan, one: Due) -> int | None:
    """Take an image out. Returns the bytes that are free; None if it was pulled, pinned or moved since it was due."""
    if not _is_as_it_was(tree, one):
        return None
    return carry_out(tree, plan.needs.without(one.image), plan.at)


def _is_as_it_was(tree: Tree, one: Due) -> bool:
    repository, tags, now = one.image.repository, one.image.tags, time.time()
    if any(tree.used(disk.link_key(repository, digest)) != when for digest, when in one.pulled.items()):
        return False
    if any(disk.read_tag(tree, repository, tag) != record for tag, record in tags.items()):
        return False
    names: list[Reference] = [one.image.digest, *tags]
    pins = [disk.read_pin(tree, disk.pin_key(repository, name)) for name in names]
    return not any(pin is not None and pin.holds(now) for pin in pins)


def as_json(one: Due, freed: int) -> dict[str, Any]:
    """For programs; sizes in bytes, times in UTC."""
    image = one.image
    return {
        "image": inventory.name(image),
        "repository": str(image.repository),
        "digest": str(image.digest),
        "tags": sorted(map(str, image.tags)),
        "policy": one.policy,
        "rule": one.taken.rule.priority,
        "description": one.taken.rule.description,
        "why": one.taken.why,
        "kept": one.kept,
        "cached": None if image.cached is None else as_utc(image.cached),
        "pulled": as_utc(max(one.pulled.values())),
        "freed": freed,
    }


class Lifecycle:
    """The job: what is due goes, and each image that has gone is told."""

    def __init__(
        self,
        tree: Tree,
        assignments: Sequence[Assignment],
        upstreams: Sequence[sections.Upstream],
        record_pulls: Callable[[], Awaitable[None]],
        expired: Callable[[Due, int], None],
    ) -> None:
        """`record_pulls` writes down this process's pulls; `expired` is told of each image, and the bytes freed."""
        self._tree = tree
        self._assignments = assignments
        self._upstreams = upstreams
        self._record_pulls = record_pulls
        self._expired = expired

    async def run(self) -> None:
        """Take out what is due now. Raises OSError."""
        await self._record_pulls()
        # Not by a hop: it takes as long as there are manifests, and an exit need not wait for a look at them.
        looking = daemon.start(lambda: plan(self._tree, self._assignments, self._upstreams), "lifecycle")
        found = await asyncio.wrap_future(looking)
        going = found.going
        while some := list(islice(going, AT_ONCE)):
            await self._record_pulls()
            if await hop(self._take, found, some):
                await announce_change(self._tree)

    def _take(self, found: Plan, some: Sequence[Due]) -> bool:
        freed = [(one, take(self._tree, found, one)) for one in some]
        for one, count in freed:
            if count is not None:
                self._expired(one, count)
        return any(count is not None for _, count in freed)
