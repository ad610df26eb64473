"""The accounts of one upstream: which one asks next, what each may still ask, and what is said when one may not."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Protocol, TypeVar

from proxy.credentials.opening import source_of
from proxy.credentials.refreshing import Refreshing
from proxy.egress import Egress
from proxy.oci.errors import OciError, Problem
from proxy.oci.ratelimit import Budget, State, as_utc, parse
from proxy.oci.reference import Repository
from proxy.sections.account import Account as AccountSection
from proxy.sections.upstream import Upstream as UpstreamSection
from proxy.stores.base import LimitStore
from proxy.telemetry import Logger, Metrics
from proxy.tokens import Tokens


class _Chosen(Protocol):
    @property
    def repositories(self) -> Sequence[str]: ...


T = TypeVar("T", bound=_Chosen)

LOOK = 1.0  # seconds between looks at what other processes have learnt


@dataclass(slots=True)
class Account:
    """One way to be known to an upstream. `repositories`: patterns of those it is for; empty for all others."""

    label: str
    tokens: Tokens
    budget: Budget
    repositories: Sequence[str] = ()
    looked: float = field(default=float("-inf"), repr=False)  # monotonic seconds
    saved: State | None = field(default=None, repr=False)  # the state that is on disk, as far as is known
    was_low: bool = field(default=False, repr=False)


def able(accounts: Sequence[T], repository: Repository) -> Sequence[T]:
    """The accounts for a repository: those whose patterns name it, else those that have none."""
    named = [one for one in accounts if any(fnmatchcase(repository.name, pattern) for pattern in one.repositories)]
    return named or [one for one in accounts if not one.repositories]


class Accounts:
    """Chooses among the accounts of one upstream: the first, in the configuration's order, whose budget allows."""

    def __init__(
        self, registry: str, accounts: Sequence[Account], limits: LimitStore, metrics: Metrics, log: Logger
    ) -> None:
        self._registry = registry
        self._accounts = accounts
        self._limits = limits
        self._metrics = metrics
        self._log = log.bind(upstream=registry)
        self._usual = accounts[0].label
        self._writing: set[asyncio.Task[None]] = set()
        self._recording = asyncio.Lock()  # two at once could leave the older state on disk

    async def aclose(self) -> None:
        """Leave what is known to the next process, and close the accounts' sources."""
        await self.record()
        if self._writing:
            await asyncio.wait(self._writing)
        for account in self._accounts:
            await account.tokens.aclose()

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._accounts)

    async def choose(self, repository: Repository, *, is_blob: bool) -> Account:
        """Whom to ask as. Raises OciError TOO_MANY_REQUESTS while none may, DENIED if none is for this repository."""
        those = able(self._accounts, repository)
        if not those:
            raise OciError(
                Problem.DENIED, f"no account of {self._registry} is for {repository.name}: see its repositories"
            )
        for account in those:
            await self._look(account)
        now = time.time()
        free = [account for account in those if not account.budget.pause(now, is_blob=is_blob)]
        if not free:
            wait = min(account.budget.pause(now, is_blob=is_blob) for account in those)
            raise OciError(Problem.TOO_MANY_REQUESTS, f"{self._registry} limits our rate", retry_after=wait)
        chosen = next((account for account in free if not account.budget.is_low(now)), None)
        chosen = chosen or max(free, key=lambda account: _remaining(account, now))
        self._note_choice(chosen, free, those)
        return chosen

    def _note_choice(self, chosen: Account, free: Sequence[Account], those: Sequence[Account]) -> None:
        if len(those) != len(self._accounts) or chosen.label == self._usual:
            return
        reason = "is low" if any(one.label == self._usual for one in free) else "is paused"
        self._log.warning("account switched", was=self._usual, account=chosen.label, reason=f"its budget {reason}")
        self._usual = chosen.label

    # What upstream says

    def answered(self, account: Account, headers: Mapping[str, str]) -> None:
        """Upstream answered a request of this account, with these headers, and not with 429."""
        now, before = time.time(), account.budget.state
        account.budget.answered(parse(headers), now)
        self._watch(account, now)
        if before.refusals and not account.budget.state.refusals:
            self._log.info("rate limit over", account=account.label)
            self._save(account)

    def refused(self, account: Account, headers: Mapping[str, str], wait: float | None, *, is_blob: bool) -> None:
        """Upstream answered 429: nobody asks as this account until the pause (seconds, if it says so) is over."""
        now = time.time()
        paused = account.budget.pause(now, is_blob=is_blob)
        pause = account.budget.refused(wait, is_blob=is_blob, allowance=parse(headers), now=now)
        if pause > paused + 1:
            self._log.warning(
                "rate limited",
                account=account.label,
                seconds=round(pause),
                said_by="us" if wait is None else "upstream",
                until=as_utc(now + pause),
            )
        self._watch(account, now)
        self._save(account)

    def _watch(self, account: Account, now: float) -> None:
        known = account.budget.allowance(now)
        if known is None:
            return
        self._metrics.rate_remaining.labels(self._registry, account.label).set(known.remaining)
        self._metrics.rate_limit.labels(self._registry, account.label).set(known.limit)
        low = account.budget.is_low(now)
        if low and not account.was_low:
            empty = account.budget.state.empty_at
            self._log.warning(
                "rate budget low", account=account.label, remaining=known.remaining, limit=known.limit,
                source=known.source, remedy="tags are believed for longer, and the rest is kept for cold pulls",
                **({} if empty is None else {"empty_at": as_utc(empty)}),
            )  # fmt: skip
        account.was_low = low

    # What it means for what is cached

    def stretch(self, repository: Repository) -> float:
        """By which factor answers about a repository are to be believed for longer; 1 while there is plenty."""
        now = time.time()
        return min((account.budget.stretch(now) for account in able(self._accounts, repository)), default=1.0)

    def is_reserved(self, repository: Repository) -> bool:
        """Whether what is left, of every account, is kept for what is not cached yet."""
        now = time.time()
        those = able(self._accounts, repository)
        return bool(those) and all(account.budget.is_low(now) for account in those)

    # Between processes

    async def _look(self, account: Account) -> None:
        """Learn what another process was told, if the last look is a while ago."""
        if time.monotonic() - account.looked >= LOOK:
            account.looked = time.monotonic()
            await self._learn(account)

    async def _learn(self, account: Account) -> None:
        try:
            found = await self._limits.load(self._registry, account.label)
        except OSError as error:
            self._log.warning("rate limits not read", reason=error.strerror)
            return
        if found is not None:
            account.budget.state = account.budget.state.merged(found, time.time())

    async def record(self) -> None:
        """Tell the other processes, and the next one, what is known; called every few seconds."""
        async with self._recording:
            for account in self._accounts:
                if account.budget.state not in {account.saved, State()}:
                    await self._record(account)

    async def _record(self, account: Account) -> None:
        await self._learn(account)  # so as not to write over what another one was told
        state = account.budget.state
        try:
            await self._limits.save(self._registry, account.label, state)
            account.saved = state
        except OSError as error:
            self._log.warning("rate limits not recorded", reason=error.strerror)

    def _save(self, account: Account) -> None:
        """Have a pause, or its end, written at once: the other workers are about to run into it."""
        account.looked = time.monotonic()
        task = asyncio.create_task(self.record())
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)


def open_account(settings: AccountSection, upstream: UpstreamSection, egress: Egress, log: Logger) -> Account:
    """An account as it is configured; nothing is asked yet."""
    source = source_of(settings, upstream.registry, upstream.base)
    credential = (
        None if source is None else Refreshing(source, log.bind(upstream=upstream.registry, account=settings.label))
    )
    tokens = Tokens(upstream.registry, upstream.realm_hosts, egress, credential, settings.label)
    return Account(settings.label, tokens, Budget(upstream.rate_reserve), settings.repositories)


def _remaining(account: Account, now: float) -> float:
    known = account.budget.allowance(now)
    return float("inf") if known is None else known.remaining
