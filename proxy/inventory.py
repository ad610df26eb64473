"""What is known of cached images, told: as rows for people, as JSON for programs, and one image in every particular."""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from proxy.accounts import able
from proxy.catalog import Catalog, Image, Variant
from proxy.files import Tree
from proxy.oci.digest import Digest
from proxy.oci.freshness import Verdict, verdict
from proxy.oci.manifest import INDEXES
from proxy.oci.ratelimit import Budget, State, as_utc
from proxy.oci.reference import Repository, Tag
from proxy.sections.upstream import Upstream
from proxy.stores import quarantine
from proxy.stores.base import Pin, TagRecord

_AGES = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))


def age(seconds: float) -> str:
    """A time span as people say it: "3 min"."""
    for unit, name in _AGES:
        if seconds >= unit:
            return f"{int(seconds // unit)} {name}"
    return "0 s"


def age_of(moment: str) -> str:
    """How long ago that was, which is told in UTC."""
    return age(max(0.0, time.time() - datetime.fromisoformat(moment).timestamp()))


def size(count: int) -> str:
    """Bytes as people say them: "72.1 MB"."""
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 999.95:
            return f"{count} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:,.1f} TB"


@dataclass(frozen=True, slots=True)
class Setting:
    """What of an upstream's configuration decides how an image is seen; None for one that is configured no more."""

    upstreams: Mapping[str, Upstream]
    now: float

    def verdict(self, image: Image, record: TagRecord) -> Verdict:
        """Whether the next pull of a tag asks upstream; what a rate limit adds to `tag_ttl` is not counted."""
        upstream = self.upstreams.get(image.repository.registry)
        if record.is_frozen or (upstream is not None and upstream.holds_tags(image.repository.name)):
            return Verdict.FRESH
        return verdict(record.checked, self.now, 0.0 if upstream is None else upstream.tag_ttl)

    def state(self, image: Image) -> str:
        """One image in two words."""
        if not image.variants:
            return "nothing of it"
        if not image.is_whole:
            return f"{size(image.missing)} missing"
        pin = image.pin(self.now)
        if pin is not None and pin.is_deleted:
            return "deleted upstream"
        if not image.tags:
            return "by digest"
        if all(record.is_frozen for record in image.tags.values()):
            return "frozen"
        checked = max(image.tags.values(), key=lambda record: record.checked)
        return f"{self.verdict(image, checked).value}, {age(self.now - checked.checked)}"


def name(image: Image) -> str:
    """What people call it: with its first tag, if it has any."""
    tags = sorted(map(str, image.tags))
    return f"{image.repository}:{tags[0]}" if tags else str(image.repository)


def as_json(image: Image, setting: Setting) -> dict[str, Any]:
    """An image for programs; sizes in bytes, times in UTC."""
    pin = image.pin(setting.now)
    return {
        "image": ", ".join([name(image), *sorted(map(str, image.tags))[1:]]),
        "state": setting.state(image),
        "repository": str(image.repository),
        "digest": str(image.digest),
        "mediaType": image.media_type,
        "tags": [
            {
                "tag": str(tag),
                "checked": as_utc(record.checked),
                "state": "frozen" if record.is_frozen else setting.verdict(image, record).value,
            }
            for tag, record in sorted(image.tags.items(), key=lambda item: str(item[0]))
        ],
        "platforms": [
            {
                "platform": None if one.platform is None else str(one.platform),
                "digest": str(one.digest),
                "missing": sum(one.missing.values()),
            }
            for one in image.variants
        ],
        "absent": [str(platform) for platform in image.absent],
        "size": image.size,
        "shared": image.shared,
        "missing": image.missing,
        "cached": None if image.cached is None else as_utc(image.cached),
        "pulled": as_utc(image.pulled),
        "pinned": None if pin is None else pin_as_json(pin),
    }


def pin_as_json(pin: Pin) -> dict[str, Any]:
    """A pin for programs."""
    return {"until": None if pin.until is None else as_utc(pin.until), "deleted": pin.is_deleted}


def told(image: Image, setting: Setting, limits: Sequence[tuple[str, str, State]]) -> list[tuple[str, str]]:
    """One image in every particular, as what is asked and the answer."""
    upstream = setting.upstreams.get(image.repository.registry)
    lines = [
        ("digest", str(image.digest)),
        ("kind", f"{'index' if image.media_type in INDEXES else 'manifest'} ({image.media_type})"),
        *(("tag", _tag(tag, record, image, setting)) for tag, record in image.tags.items()),
        *(("platform", _variant(one)) for one in image.variants),
    ]
    if image.absent:
        lines.append(("not cached", ", ".join(map(str, image.absent))))
    shared = f", {size(image.shared)} of it shared with other images" if image.shared else ""
    lines.append(("stored", f"{size(image.size)}{shared}"))
    if image.cached is not None:
        lines.append(("cached", f"{as_utc(image.cached)} ({age(setting.now - image.cached)} ago)"))
    lines.append(("last pull", f"{as_utc(image.pulled)} ({age(setting.now - image.pulled)} ago)"))
    lines.append(("pinned", _pinned(image, setting.now)))
    if upstream is None:
        return [*lines, ("upstream", f"none: {image.repository.registry} is not configured, so nobody can pull this")]
    lines.append(("upstream", f"{upstream.registry} at {upstream.url}"))
    lines += [("credential", text) for text in _accounts(image, upstream, limits, setting.now)]
    return [*lines, ("next pull", _cost(image, setting))]


def _tag(tag: Tag, record: TagRecord, image: Image, setting: Setting) -> str:
    since = age(setting.now - record.checked)
    if record.is_frozen:
        return f"{tag}: frozen, upstream was asked {since} ago and will not be until it is unfrozen"
    upstream = setting.upstreams.get(image.repository.registry)
    if upstream is not None and upstream.holds_tags(image.repository.name):
        why = "it is sealed" if upstream.sealed else "freeze says so"
        return f"{tag}: stays what it is, upstream was asked {since} ago and will not be again: {why}"
    match setting.verdict(image, record):
        case Verdict.FRESH:
            return f"{tag}: fresh, upstream was asked {since} ago, within tag_ttl"
        case _:
            return f"{tag}: stale, upstream was asked {since} ago; the next pull asks again, by a HEAD"


def _variant(one: Variant) -> str:
    what = "of no platform" if one.platform is None else str(one.platform)
    if one.is_whole:
        return f"{what}: whole, {len(one.blobs)} blobs, {size(sum(one.blobs.values()))}"
    return f"{what}: {len(one.missing)} of {len(one.blobs)} blobs missing, {size(sum(one.missing.values()))}"


def _pinned(image: Image, now: float) -> str:
    pin = image.pin(now)
    if pin is None:
        return "no: it goes when it has not been pulled for the longest and room is wanted"
    if pin.is_deleted:
        return f"deleted upstream, as was found {age(now - pin.since)} ago: it stays until it is unpinned or removed"
    return "until it is unpinned" if pin.until is None else f"until {as_utc(pin.until)} (for {age(pin.until - now)})"


def _accounts(image: Image, upstream: Upstream, limits: Sequence[tuple[str, str, State]], now: float) -> list[str]:
    known = {(registry, account): state for registry, account, state in limits}
    found = []
    for account in able(upstream.accounts, image.repository):
        state = known.get((upstream.registry, account.label))
        found.append(account.label if state is None else f"{account.label}{_budget(Budget(state=state), now)}")
    return found or ["none: no account of this upstream is for this repository"]


def _budget(budget: Budget, now: float) -> str:
    pause, allowance = budget.pause(now, is_blob=False), budget.allowance(now)
    left = "" if allowance is None else f", {allowance.remaining} of {allowance.limit} pulls left"
    return left + (f", paused for {age(pause)}" if pause else "")


def _cost(image: Image, setting: Setting) -> str:
    """What a pull of the platforms that are cached would ask of upstream."""
    upstream = setting.upstreams.get(image.repository.registry)
    if upstream is not None and upstream.sealed and not image.is_whole:
        return f"cannot be whole: {size(image.missing)} of blobs are missing, and upstream is sealed"
    questions = any(setting.verdict(image, record) is not Verdict.FRESH for record in image.tags.values())
    asked = "one HEAD for the tag, which no registry counts as a pull" if questions else "no question"
    blobs = "no bytes" if image.is_whole else f"{size(image.missing)} of blobs"
    return f"{asked}, {blobs}"


def usage(catalog: Catalog, tree: Tree) -> dict[str, Any]:
    """Where the bytes are: of each repository, and of what no image needs; blocking.

    A blob counts once in `total`, and what is in quarantine does not.
    """
    blobs: defaultdict[str, dict[Digest, int]] = defaultdict(dict)
    images = Counter(str(image.repository) for image in catalog.images())
    for image in catalog.images():
        blobs[str(image.repository)].update(image.stored)
    users = Counter(digest for stored in blobs.values() for digest in stored)
    stored, needed = sum(catalog.blobs.values()), sum(catalog.blobs.get(digest, 0) for digest in users)
    spools = sum(entry.size for entry in tree.scan("spool"))
    return {
        "repositories": [
            {
                "repository": repository,
                "images": images[repository],
                "size": sum(own.values()),
                "shared": sum(count for digest, count in own.items() if users[digest] > 1),
            }
            for repository, own in sorted(blobs.items())
        ],
        "images": needed,
        "unneeded": stored - needed,
        "downloads": spools,
        "quarantine": quarantine.size(tree),
        "total": stored + spools,
    }


def setting(upstreams: Sequence[Upstream]) -> Setting:
    """The configuration as it bears on images, now."""
    return Setting({one.registry: one for one in upstreams}, time.time())


def moves(catalog: Catalog, wanted: Callable[[Repository], bool], since: float) -> list[dict[str, Any]]:
    """Which tags have come to stand for something else since then (unix seconds), the oldest move first."""
    found = [
        (move.at, f"{repository}:{tag}", before, move)
        for repository, contents in catalog.repositories.items()
        if wanted(repository)
        for tag, history in contents.histories.items()
        for before, move in zip([None, *history], history, strict=False)
        if move.at >= since
    ]
    return [
        {
            "image": name,
            "at": as_utc(at),
            "from": None if before is None else str(before.digest),
            "to": str(move.digest),
        }
        for at, name, before, move in sorted(found, key=lambda one: one[:2])
    ]
