"""Where an operator asks what is cached and has it changed: the same for the command line and the admin listener.

Questions come as people write them, answers are what JSON can hold. All of it blocks, but for `refresh`.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, replace
from fnmatch import fnmatchcase
from typing import Any

from proxy import inventory, lifecycle, removal, scrubbing
from proxy.catalog import Catalog, Image
from proxy.config import Config
from proxy.files import Tree
from proxy.frontdoor import FrontDoor, Told
from proxy.oci import history
from proxy.oci.errors import OciError, Problem
from proxy.oci.lifecycle import PolicyInvalid, parse
from proxy.oci.ratelimit import as_utc
from proxy.oci.reference import Reference, Repository, Tag
from proxy.routing import image as resolve
from proxy.stores import quarantine
from proxy.stores.base import Pin, TagRecord
from proxy.stores.directory import announce_change
from proxy.stores.disk import DiskRepositories
from proxy.stores.limits import DiskLimits
from proxy.stores.records import read_history, read_tag

Answer = dict[str, Any]
Ask = Callable[[Repository, Reference], Awaitable[Told]]


class Desk:
    """Over one store and its configuration. Every method raises OciError for what cannot be answered, and OSError."""

    def __init__(self, config: Config, tree: Tree) -> None:
        self._config = config
        self._tree = tree

    def images(self, patterns: Sequence[str]) -> list[Answer]:
        """The images of the repositories that match any of the patterns; of all without one."""
        setting = inventory.setting(self._config.upstream)
        return [inventory.as_json(image, setting) for image in Catalog(self._tree).images(_matching(patterns))]

    def moves(self, patterns: Sequence[str], since: float) -> list[Answer]:
        """Which tags of those repositories have moved since then, in seconds since the epoch."""
        return inventory.moves(Catalog(self._tree), _matching(patterns), since)

    def usage(self) -> Answer:
        """Where the bytes are."""
        return {**inventory.usage(Catalog(self._tree), self._tree), "max_size": self._config.store.max_size}

    def scrub(self) -> Answer:
        """How far the server's look for damage has come, and how the last whole one ended."""
        going_on, last = scrubbing.going_on(self._tree), scrubbing.done_last(self._tree)
        return {
            "rate": self._config.store.scrub_rate,
            "interval": self._config.store.scrub_interval,
            "going_on": None if going_on is None else going_on.told(),
            "last": None if last is None else last.told(),
            "quarantine": quarantine.size(self._tree),
        }

    def show(self, name: str) -> Answer:
        """Everything that is known of one image; `told` is the same for people, in pairs of what and how."""
        setting = inventory.setting(self._config.upstream)
        image = self._found(Catalog(self._tree), name, *self._parsed(name))
        limits = asyncio.run(DiskLimits(self._tree).all())
        return {**inventory.as_json(image, setting), "told": inventory.told(image, setting, limits)}

    def remove(self, names: Sequence[str], *, dry_run: bool) -> list[Answer]:
        """Take images out, or say what would go."""
        parsed = [(name, *self._parsed(name)) for name in names]
        catalog, answers = Catalog(self._tree), []
        for one in parsed:
            self._found(catalog, *one)  # nothing goes if one of them is wrong
        for name, repository, reference in parsed:
            image = catalog.find(repository, reference)
            if image is None:
                continue  # it was named twice
            gone = removal.plan(catalog, image, reference if isinstance(reference, Tag) else None)
            freed = gone.size if dry_run else removal.carry_out(self._tree, gone)
            if not dry_run:
                catalog = Catalog(self._tree)  # anew: what this one shared with the next is the next one's now
            tags = [str(tag) for tag in gone.tags]
            answers.append({"image": name, "tags": tags, "freed": freed, "whole": gone.is_whole})
        if not dry_run:
            asyncio.run(announce_change(self._tree))
        return answers

    def pin(self, names: Sequence[str], seconds: float | None) -> list[Answer]:
        """Keep images, for so long or until they are unpinned."""
        now = time.time()
        pin = Pin(now, None if seconds is None else now + seconds)
        return self._pinned(names, pin)

    def unpin(self, names: Sequence[str]) -> list[Answer]:
        """Let images go again."""
        return self._pinned(names, None)

    def _pinned(self, names: Sequence[str], pin: Pin | None) -> list[Answer]:
        parsed = [self._parsed(name) for name in names]  # none is pinned if one of them is wrong
        repositories = DiskRepositories(self._tree)
        for repository, reference in parsed:
            if pin is None:
                asyncio.run(repositories.drop_pin(repository, reference))
            else:
                asyncio.run(repositories.put_pin(repository, reference, pin))
        return [{"image": name, "pinned": None if pin is None else inventory.pin_as_json(pin)} for name in names]

    def freeze(self, names: Sequence[str], when: float | None) -> list[Answer]:
        """Have tags stand for what they stand for now, or stood for then, whatever upstream says."""
        parsed = [(name, *self._tag(name)) for name in names]
        found = [(repository, tag, self._frozen(name, repository, tag, when)) for name, repository, tag in parsed]
        return self._put_tags(names, found)

    def unfreeze(self, names: Sequence[str]) -> list[Answer]:
        """Have upstream asked again."""
        parsed = [self._tag(name) for name in names]
        records = [(repository, tag, read_tag(self._tree, repository, tag)) for repository, tag in parsed]
        thawed = [
            (repository, tag, replace(record, is_frozen=False))
            for repository, tag, record in records
            if record is not None and record.is_frozen
        ]
        self._put_tags(names, thawed)
        return [{"image": name, "frozen": None} for name in names]

    def _tag(self, name: str) -> tuple[Repository, Tag]:
        repository, reference = self._parsed(name)
        if not isinstance(reference, Tag):
            raise OciError(Problem.TAG_INVALID, f"{name}: a digest stands for one thing always: name a tag")
        return repository, reference

    def _frozen(self, name: str, repository: Repository, tag: Tag, when: float | None) -> TagRecord:
        record = read_tag(self._tree, repository, tag)
        digest = None if record is None else record.digest
        if when is not None:
            digest = history.as_of(read_history(self._tree, repository, tag), when)
        if digest is None:
            then = "" if when is None else f" as of {as_utc(when)}"
            raise OciError(
                Problem.NOT_FOUND, f"{name}: nobody knows what it stood for{then}: it was not pulled by then"
            )
        return TagRecord(digest, time.time() if record is None else record.checked, is_frozen=True)

    def _put_tags(self, names: Sequence[str], records: Sequence[tuple[Repository, Tag, TagRecord]]) -> list[Answer]:
        repositories = DiskRepositories(self._tree)
        for repository, tag, record in records:
            asyncio.run(repositories.put_tag(repository, tag, record, thaws=True))
        asyncio.run(announce_change(self._tree))
        return [
            {"image": name, "frozen": str(record.digest)} for name, (_, _, record) in zip(names, records, strict=False)
        ]

    async def refresh(self, names: Sequence[str], ask: Ask | None = None) -> list[Answer]:
        """Ask upstream now what tags stand for; by way of the server, unless `ask` says how. Raises Closed as well."""
        ask, answers = ask or FrontDoor(self._config.server).ask, []
        for name in names:
            repository, reference = self._parsed(name)
            known = (
                await DiskRepositories(self._tree).tag(repository, reference) if isinstance(reference, Tag) else None
            )
            told = await ask(repository, reference)
            is_held = (known is not None and known.is_frozen) or self._holds_tags(repository)
            before = None if known is None else str(known.digest)
            answers.append({"image": name, "before": before, "held": is_held, **asdict(told)})
        return answers

    def preview(self, patterns: Sequence[str], policy: str | None = None) -> Answer:
        """What would go now of those repositories by their lifecycle policies, or if they had this one."""
        policies = self._policies
        if policy is not None:
            try:
                one = lifecycle.Assignment("policy", patterns or ["*"], parse(policy))
            except PolicyInvalid as error:
                raise OciError(Problem.BAD_REQUEST, f"policy: {error}") from None
            policies = replace(policies, assignments=[one])
        plan = lifecycle.plan(self._tree, policies, _matching(patterns))
        freed = [plan.needs.without(one.image).size if one.kept is None else 0 for one in plan.due]
        images = [lifecycle.as_json(one, size) for one, size in zip(plan.due, freed, strict=True)]
        return _by_policies(policies, images)

    def apply(self, patterns: Sequence[str]) -> Answer:
        """Take out now what the lifecycle policies of those repositories say is to go."""
        with self._tree.claimed(f"jobs/{lifecycle.JOB}") as claim:
            if claim is None:
                raise OciError(Problem.OVERLOADED, "the lifecycle policies are being applied by a server: ask again")
            plan = lifecycle.plan(self._tree, self._policies, _matching(patterns))
            gone = [(one, lifecycle.take(self._tree, plan, one)) for one in plan.going]
            asyncio.run(announce_change(self._tree))
        return _by_policies(self._policies, [lifecycle.as_json(one, size) for one, size in gone if size is not None])

    @property
    def _policies(self) -> lifecycle.Policies:
        return lifecycle.configured(self._config.lifecycle, self._config.upstream)

    def _holds_tags(self, repository: Repository) -> bool:
        return any(
            one.registry == repository.registry and one.holds_tags(repository.name) for one in self._config.upstream
        )

    def _parsed(self, name: str) -> tuple[Repository, Reference]:
        try:
            return resolve(self._config.routes, name)
        except OciError as error:
            raise OciError(error.problem, f"{name}: {error.message}") from None

    def _found(self, catalog: Catalog, name: str, repository: Repository, reference: Reference) -> Image:
        image = catalog.find(repository, reference)
        if image is None:
            raise OciError(Problem.NOT_FOUND, f"{name}: nothing of it is cached (see entrepot ls {repository})")
        return image


def _by_policies(policies: lifecycle.Policies, images: Sequence[Answer]) -> Answer:
    told = [{"name": one.name, "repositories": list(one.repositories)} for one in policies.assignments]
    return {"policies": told, "images": images, "freed": sum(one["freed"] for one in images)}


def _matching(patterns: Sequence[str]) -> Callable[[Repository], bool]:
    return lambda repository: not patterns or any(fnmatchcase(str(repository), pattern) for pattern in patterns)
