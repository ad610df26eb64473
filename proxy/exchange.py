"""One question to an upstream and its answer: whose turn it is, asked as whom, authorized, retried, and told apart."""

import asyncio
import contextlib
import enum
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import aiohttp
from yarl import URL

from proxy.accounts import Account, Accounts
from proxy.egress import Egress, asked_for, read_limited
from proxy.oci.challenge import Challenge
from proxy.oci.errors import OciError, Problem
from proxy.oci.ratelimit import FIRST_PAUSE
from proxy.oci.reference import Repository
from proxy.oci.retry import Ramp, RetryBudget, pause, retry_after
from proxy.outage import Outage
from proxy.telemetry import Metrics
from proxy.turns import CarefulTurns, Turn, Turns

BUDGET = 14.0  # seconds for connect, token, redirects and headers together: clients give up at 30
STALE_BUDGET = 4.0  # seconds, when there is a cached answer to fall back on
TRIES = 3
_EXPIRED = frozenset({400, 401, 403, 410})  # what storage says of a signed URL whose time is over

Result = TypeVar("Result")


class Lane(enum.Enum):
    """Whose turn it has to be for a question to be asked."""

    QUESTION = enum.auto()
    ASIDE = enum.auto()  # a question that leads to storage: should that be silent, the others do not wait behind it
    HELD = enum.auto()  # the caller has a turn


@dataclass(frozen=True, slots=True)
class Ask:
    """One question to upstream, before authorization."""

    method: str
    repository: Repository
    url: URL
    missing: Problem  # what a 404 means
    headers: Mapping[str, str] = field(default_factory=dict)
    fresh: bool = False  # no digest vouches for the answer: it needs a connection of its own
    redirects: bool = True
    is_blob: bool = False  # which no registry counts as a pull
    lane: Lane = Lane.QUESTION
    place: URL | None = None  # where a redirect led to when it was asked before
    has_fallback: bool = False  # there is an older answer to give: no use in trying for long, or all at once
    allowed: frozenset[int] = frozenset()  # statuses that are answers, besides the usual ones

    @property
    def budget(self) -> float:
        """Seconds until there must be an answer."""
        return STALE_BUDGET if self.has_fallback else BUDGET


class Exchange:
    """Asks one upstream, and raises OciError for whatever is no answer."""

    def __init__(
        self, registry: str, egress: Egress, accounts: Accounts, metrics: Metrics, *, max_requests: int,
        missed: Callable[[Ask], None] | None = None,
    ) -> None:  # fmt: skip
        """`missed`: the upstream is sealed; whatever would be asked of it is reported there instead."""
        self._registry = registry
        self._missed = missed
        self._egress = egress
        self._accounts = accounts
        self._metrics = metrics
        # Questions are short: they do not wait behind downloads.
        questions = max(1, max_requests // 4)
        self._questions, self._downloads = Turns(questions), Turns(max_requests - questions)
        self._asides = Turns(questions)
        self._careful = CarefulTurns(Ramp())
        self._retries = RetryBudget()
        self._outage = Outage(registry, egress)

    async def aclose(self) -> None:
        """Give up what is in flight."""
        await self._outage.aclose()
        await self._accounts.aclose()

    @contextlib.asynccontextmanager
    async def answer(self, ask: Ask, *, budget: float | None = None) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer to a question, within its budget (seconds) once it is its turn; closed on leaving."""
        self._check_seal(ask)
        async with self._turn(ask):
            response = await self._within(ask, ask.budget if budget is None else budget, self._asked)
            with contextlib.closing(response):
                yield response

    def _turn(self, ask: Ask) -> contextlib.AbstractAsyncContextManager[object]:
        match ask.lane:
            case Lane.QUESTION:
                return self._questions.turn(ask.repository)
            case Lane.ASIDE:
                return self._asides.turn(ask.repository)
            case Lane.HELD:
                return contextlib.nullcontext()

    def downloading(self, repository: Repository) -> contextlib.AbstractAsyncContextManager[Turn]:
        """Hold a turn for a download, for as many requests as it makes one after the other."""
        return self._downloads.turn(repository)

    def spare(self, repository: Repository) -> contextlib.ExitStack | None:
        """One more turn for a download, if nobody else wants it; to be closed."""
        return self._downloads.spare(repository)

    async def whole(self, ask: Ask, limit: int) -> tuple[aiohttp.ClientResponse, bytes]:
        """The answer with its body of at most `limit` bytes: a client waits for all of it, the budget is for all of it.

        With something to fall back on, waiting for a turn comes out of the budget as well.
        """

        async def read(ask: Ask) -> tuple[aiohttp.ClientResponse, bytes]:
            response = await self._asked(ask)
            return response, await read_limited(response, limit)

        async def in_turn(ask: Ask) -> tuple[aiohttp.ClientResponse, bytes]:
            async with self._careful.turn(), self._questions.turn(ask.repository):
                return await read(ask)

        self._check_seal(ask)
        if ask.has_fallback:
            return await self._within(ask, ask.budget, in_turn)
        async with self._questions.turn(ask.repository):
            return await self._within(ask, ask.budget, read)

    def _check_seal(self, ask: Ask) -> None:
        """Raises the OciError of what is not there, where upstream is not to be asked at all."""
        if self._missed is not None:
            self._missed(ask)
            raise OciError(ask.missing, f"{self._registry} is sealed: what is not cached cannot be had")

    async def _within(self, ask: Ask, budget: float, work: Callable[[Ask], Awaitable[Result]]) -> Result:
        try:
            async with asyncio.timeout(budget):
                return await work(ask)
        except TimeoutError:
            await self._failed(ask, "timeout")
            raise OciError(Problem.UPSTREAM_TIMEOUT, f"{self._registry} did not answer within {budget:g} s") from None
        except OciError as error:
            if error.problem in {Problem.UPSTREAM_UNREACHABLE, Problem.UPSTREAM_TIMEOUT}:
                await self._failed(ask, "unreachable")
            raise

    async def _asked(self, ask: Ask) -> aiohttp.ClientResponse:
        """Ask; an answer that is a refusal is raised."""
        await self._outage.admit(is_patient=not ask.has_fallback)
        return self._accepted(ask, await self._from_any_account(ask))

    async def _failed(self, ask: Ask, why: str) -> None:
        self._metrics.upstream_answers.labels(self._registry, ask.method, why).inc()
        await self._outage.failed()

    async def _from_any_account(self, ask: Ask) -> aiohttp.ClientResponse:
        """From the account whose turn it is; from the next one when that is refused for its rate."""
        for _ in range(self._accounts.count + 1):  # the last time to be told how long there is to wait
            account = await self._accounts.choose(ask.repository, is_blob=ask.is_blob)
            try:
                response = await self._retried(ask, account)
            except OciError as error:
                if error.problem is not Problem.TOO_MANY_REQUESTS:
                    raise
                self._accounts.refused(account, {}, error.retry_after, is_blob=True)  # its token service refused it
                continue
            if response.status != 429:
                return response
            response.close()
        raise OciError(Problem.TOO_MANY_REQUESTS, f"{self._registry} limits our rate", retry_after=FIRST_PAUSE)

    async def _retried(self, ask: Ask, account: Account) -> aiohttp.ClientResponse:
        """Once more, and once more, what failed in a way that may be over: as far as the budget of retries goes."""
        self._retries.asked()
        for number in range(0 if ask.has_fallback else TRIES - 1):
            try:
                response = await self._authorized(ask, account)
                if response.status < 500 or not self._retries.take():
                    return response
                response.close()
            except OciError as error:
                may_pass = error.problem in {Problem.UPSTREAM_UNREACHABLE, Problem.UPSTREAM_ERROR}
                if not may_pass or not self._retries.take():
                    raise
            await asyncio.sleep(pause(number, secrets.SystemRandom().random()))
        return await self._authorized(ask, account)

    # Authorization

    async def _authorized(self, ask: Ask, account: Account) -> aiohttp.ClientResponse:
        """Send with what authorization there is; after a 401, once more with what it asks for."""
        authorization = await account.tokens.authorization(ask.repository)
        response = await self._followed(ask, account, authorization)
        if response.status != 401:
            return response
        if authorization is not None and _leads_elsewhere(asked_for(response), account.tokens.known(ask.repository)):
            # NVCR: what it asks for once a token has expired is not to be had; what it asks of strangers is.
            response.close()
            response = await self._followed(ask, account, None)
            if response.status != 401:
                return response
        try:
            renewed = await account.tokens.renewed(ask.repository, await self._challenges(response), authorization)
        except BaseException:
            response.close()
            raise
        if renewed is None:
            return response
        response.close()
        return await self._followed(ask, account, renewed)

    async def _challenges(self, response: aiohttp.ClientResponse) -> tuple[Challenge, ...]:
        """What upstream asks for; if this answer does not say, what /v2/ says (Google's registries)."""
        found = asked_for(response)
        if any(one.scheme in {"bearer", "basic"} for one in found):
            return found
        with contextlib.closing(await self._egress.ping()) as ping:
            return asked_for(ping)

    # One request

    async def _followed(self, ask: Ask, account: Account, authorization: str | None) -> aiohttp.ClientResponse:
        placed = None if ask.place is None else await self._at_place(ask, ask.place)
        if placed is not None:
            return placed
        response = await self._egress.request(ask.method, ask.url, ask.headers, authorization, fresh=ask.fresh)
        self._note(ask, account, response)
        if not ask.redirects:
            return response
        response = await self._egress.follow(ask.method, response, ask.headers, authorization, fresh=ask.fresh)
        if response.status == 401 and response.url.origin() != self._egress.origin:
            response = await self._introduced(ask, account, response)
        return self._expired(response)

    async def _at_place(self, ask: Ask, place: URL) -> aiohttp.ClientResponse | None:
        """What storage sends without asking upstream once more; None if it will not: signed URLs expire."""
        if place.origin() == self._egress.origin:
            return None
        try:
            response = await self._egress.request(ask.method, place, ask.headers, fresh=ask.fresh)
        except OciError:
            return None  # upstream is asked then, and whatever is wrong is said of its answer
        if response.status in {200, 206}:
            return response
        response.close()
        return None

    async def _introduced(self, ask: Ask, account: Account, response: aiohttp.ClientResponse) -> aiohttp.ClientResponse:
        """A host that upstream redirects to wants to know us (registry.k8s.io): it gets an anonymous token."""
        bearer = next((one for one in asked_for(response) if one.scheme == "bearer" and one.realm), None)
        if bearer is None:
            return response
        token, again = None, response
        for _ in range(2):  # the second time with a new token, should the one at hand be good no more
            again.close()
            token = await self._introduction(ask, account, bearer, response.url.origin(), token)
            headers = {**ask.headers, "Authorization": token}
            again = await self._egress.request(ask.method, response.url, headers, fresh=ask.fresh)
            if again.status != 401:
                break
        return await self._egress.follow(ask.method, again, ask.headers, None, fresh=ask.fresh)

    async def _introduction(
        self, ask: Ask, account: Account, challenge: Challenge, origin: URL, rejected: str | None
    ) -> str:
        """As the token service of that host has it; what it refuses, or limits, is no word of upstream's."""
        try:
            return await account.tokens.introduction(ask.repository, challenge, origin, rejected)
        except OciError as error:
            if error.problem not in {Problem.DENIED, Problem.TOO_MANY_REQUESTS}:
                raise
            raise OciError(Problem.UPSTREAM_ERROR, error.message) from None

    def _expired(self, response: aiohttp.ClientResponse) -> aiohttp.ClientResponse:
        """Signed URLs expire, and storage has limits: no word of upstream's on who may read what. It will sign another.

        Raises OciError UPSTREAM_ERROR.
        """
        if response.url.origin() == self._egress.origin or response.status not in _EXPIRED | {429}:
            return response
        response.close()
        raise OciError(
            Problem.UPSTREAM_ERROR,
            f"{response.url.host}, where {self._registry} sends us, answered {response.status}",
        )

    def _note(self, ask: Ask, account: Account, response: aiohttp.ClientResponse) -> None:
        """What the registry's own answer says of it, and of what the account may ask."""
        self._metrics.upstream_answers.labels(self._registry, ask.method, response.status).inc()
        self._outage.answered()
        if response.status == 429:
            wait = retry_after(response.headers.get("Retry-After"), time.time())
            self._accounts.refused(account, response.headers, wait, is_blob=ask.is_blob)
        elif response.status < 500:
            self._accounts.answered(account, response.headers)

    # What an answer means

    def _accepted(self, ask: Ask, response: aiohttp.ClientResponse) -> aiohttp.ClientResponse:
        status = response.status
        if status in {200, 206} or status in ask.allowed or (300 <= status < 400 and not ask.redirects):
            return response
        wait = retry_after(response.headers.get("Retry-After"), time.time())
        response.close()
        raise self._refusal(ask, status, wait)

    def _refusal(self, ask: Ask, status: int, wait: float | None) -> OciError:
        name = ask.repository.name
        match status:
            case 404 | 410:
                return OciError(ask.missing, f"{self._registry} has no such thing in {name}")
            case 401 | 403:
                return OciError(
                    Problem.DENIED,
                    f"{self._registry} denies access to {name}: it does not exist, or is not for us to read",
                )
            case 416:
                return OciError(Problem.UPSTREAM_INVALID, f"{self._registry} has less of this blob than it said")
            case _ if status >= 500:
                return OciError(Problem.UPSTREAM_ERROR, f"{self._registry} answered {status}", retry_after=wait)
            case _:
                return OciError(Problem.UPSTREAM_INVALID, f"{self._registry} answered {status}")


def _leads_elsewhere(challenges: tuple[Challenge, ...], known: Challenge | None) -> bool:
    """Whether a token was refused with a challenge that names another realm than the one it came from."""
    return known is not None and any(
        one.error == "invalid_token" and one.realm is not None and one.realm != known.realm for one in challenges
    )
