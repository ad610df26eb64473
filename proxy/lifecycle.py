"""Which cached images lifecycle policies take, and taking them out.

Blocking, as the catalog is that it is read from: a server does it in a process of its own (`expiry`).
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from proxy import inventory
from proxy.catalog import Catalog, Image
from proxy.files import Tree
from proxy.oci.digest import Digest
from proxy.oci.lifecycle import Policy, Subject, Taken, evaluate
from proxy.oci.ratelimit import as_utc
from proxy.oci.reference import Reference, Repository
from proxy.removal import Needs, carry_out
from proxy.sections.images import Lifecycle
from proxy.sections.upstream import Upstream
from proxy.stores.keys import link_key, pin_key
from proxy.stores.records import read_pin, read_tag

JOB = "lifecycle"  # what the job is called: its lock is that of everybody who takes images out by policies


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
class Policies:
    """All of the configuration that decides what is to go: the policies, and which tags it keeps, by registry."""

    assignments: Sequence[Assignment]
    freeze: Mapping[str, Sequence[str]]
    sealed: frozenset[str]


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


def configured(entries: Sequence[Lifecycle], upstreams: Sequence[Upstream]) -> Policies:
    """The policies of the configuration; the first that covers a repository is its policy."""
    assignments = [
        Assignment(f"lifecycle[{index}]", entry.repositories, entry.policy)
        for index, entry in enumerate(entries)
        if entry.policy is not None
    ]
    freeze = {upstream.registry: upstream.freeze for upstream in upstreams}
    return Policies(assignments, freeze, frozenset(one.registry for one in upstreams if one.sealed))


def plan(tree: Tree, policies: Policies, wanted: Callable[[Repository], bool] = lambda _: True) -> Plan:
    """Find out what is to go of the repositories that are wanted. Raises OSError."""
    now, catalog = time.time(), Catalog(tree)
    images = catalog.images()
    own: defaultdict[Repository, list[Image]] = defaultdict(list)
    for image in images:
        own[image.repository].append(image)
    due: list[Due] = []
    for repository, found in own.items():
        assignment = next((one for one in policies.assignments if one.covers(repository)), None)
        if assignment is not None and wanted(repository):
            pulled = catalog.repositories[repository].pulled
            taken = _taken(found, assignment, pulled, now)
            kept = [replace(one, kept=_kept(one.image, policies, now)) for one in taken]
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


def _kept(image: Image, policies: Policies, now: float) -> str | None:
    """What keeps an image, in a word or two: what an operator wants to stay, and what nobody could bring back."""
    pin = image.pin(now)
    if pin is not None:
        return "deleted upstream" if pin.is_deleted else "pinned"
    registry = image.repository.registry
    freeze = policies.freeze.get(registry, ()) if image.tags else ()
    is_frozen = any(record.is_frozen for record in image.tags.values())
    if is_frozen or any(fnmatchcase(image.repository.name, pattern) for pattern in freeze):
        return "frozen"
    return "upstream is sealed" if registry in policies.sealed else None


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
    if any(tree.used(link_key(repository, digest)) != when for digest, when in one.pulled.items()):
        return False
    if any(read_tag(tree, repository, tag) != record for tag, record in tags.items()):
        return False
    names: list[Reference] = [*_manifests(one.image), *tags]
    pins = [read_pin(tree, pin_key(repository, name)) for name in names]
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
