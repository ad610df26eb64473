"""What upstream still allows somebody who is about to ask for a known number of manifests."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from proxy.accounts import able
from proxy.oci.errors import OciError, Problem
from proxy.oci.ratelimit import Budget
from proxy.oci.reference import Repository
from proxy.sections.upstream import Upstream
from proxy.stores.base import LimitStore


@dataclass(frozen=True, slots=True)
class Allowed:
    """Pulls that are left, of how many, in how many seconds; how many of them are kept for images not cached yet."""

    remaining: int
    limit: int
    window: float | None
    kept: int

    @property
    def spare(self) -> int:
        """Those that may be spent."""
        return max(0, self.remaining - self.kept)


def accounts(settings: Upstream, repository: Repository) -> Sequence[str]:
    """The labels of those who may ask for it: what one spends the others have less of, if they are the same."""
    return tuple(account.label for account in able(settings.accounts, repository))


async def allowed(limits: LimitStore, settings: Upstream, repository: Repository) -> Allowed | None:
    """What all accounts for a repository have left together; None while one of them was told of no limit."""
    now, found = time.time(), []
    for label in accounts(settings, repository):
        known = Budget(state=await limits.load(settings.registry, label)).allowance(now)
        if known is None:
            return None
        found.append(Allowed(known.remaining, known.limit, known.window, int(settings.rate_reserve * known.limit)))
    if not found:
        return None
    window = max((one.window for one in found if one.window is not None), default=None)
    return Allowed(
        sum(one.remaining for one in found), sum(one.limit for one in found), window, sum(one.kept for one in found)
    )


def check(registry: str, known: Allowed | None, gets: int) -> None:
    """Raises OciError TOO_MANY_REQUESTS where so many are more than may be spent."""
    if known is not None and gets > known.spare:
        raise OciError(
            Problem.TOO_MANY_REQUESTS,
            f"{registry} allows {known.remaining} more pulls, {known.kept} of which are kept for images not cached yet "
            f"(rate_reserve), and this takes up to {gets}: fewer --runs, --no-direct, or later",
        )


@dataclass(frozen=True, slots=True)
class Bill:
    """What upstream is asked for by some accounts, at most: manifests by GET, beside those already asked, and bytes."""

    registry: str
    accounts: Sequence[str]
    gets: int
    asked: int
    size: int
    allowed: Allowed | None
