"""A credential that stays fresh, and that nobody waits for once there is one."""

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from proxy.credentials.base import Credential, CredentialError, Issued, Source
from proxy.oci.retry import pause
from proxy.telemetry import Logger

LIMIT = 10.0  # seconds that a source has to answer
LOOK = 5.0  # seconds between questions to a source at the least, and between looks at one whose credentials do not end
FIRST_PAUSE = 1.0  # after a failure: full jitter on top of half a second, growing from here ...
LONGEST_PAUSE = 60.0  # ... to here
REFUSALS = 10.0  # seconds between questions that are asked since the registry refused what the source had given


@dataclass(frozen=True, slots=True)
class _Held:
    """A credential; from `renew_at` a newer one is looked for, from `until` it is worth nothing (both monotonic)."""

    credential: Credential
    renew_at: float
    until: float


class Refreshing:
    """The credential of one account, all that the rest of the program sees of its source.

    What is asked of the source belongs to this object: one question at a time, whoever waits for it or stops waiting.
    """

    def __init__(
        self,
        source: Source,
        log: Logger,
        *,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
        limit: float = LIMIT,
    ) -> None:
        self._source = source
        self._log = log
        self._clock = clock
        self._draw = draw
        self._limit = limit
        self._held: _Held | None = None
        self._question: asyncio.Task[None] | None = None
        self._failure = ""  # what went wrong the last time, if it did
        self._failures = 0  # in a row
        self._next_question = float("-inf")  # not before, after a failure
        self._refused = False
        self._next_refusal = float("-inf")

    async def aclose(self) -> None:
        """Give up what is being asked, and wait for its end."""
        question, self._question = self._question, None
        if question is not None:
            question.cancel()
            await asyncio.wait({question})

    async def current(self) -> Credential:
        """What to be known by now. Raises CredentialError if there is nothing that is still good.

        Waits for the source only if nothing good is at hand, or the registry refused it; for LIMIT seconds at most.
        """
        held = self._valid()
        if held is None or (self._refused and self._may_ask()):
            return await self._asked()
        if self._clock() >= held.renew_at and self._may_ask():
            self._question = self._question or asyncio.create_task(self._fetch())
        return held.credential

    def rejected(self, credential: Credential) -> None:
        """The registry did not accept this one: `current` asks for another, though not time and again."""
        if self._held is None or self._held.credential != credential or self._clock() < self._next_refusal:
            return
        self._refused = True
        self._next_refusal = self._clock() + REFUSALS

    def _valid(self) -> _Held | None:
        return self._held if self._held is not None and self._clock() < self._held.until else None

    def _may_ask(self) -> bool:
        return self._clock() >= self._next_question

    async def _asked(self) -> Credential:
        if self._question is None and self._may_ask():
            self._question = asyncio.create_task(self._fetch())
        if self._question is not None:
            await asyncio.shield(self._question)  # a caller that gives up leaves the question to the others
        held = self._valid() if self._failure else self._held
        if held is None:
            raise CredentialError(self._failure)
        return held.credential

    async def _fetch(self) -> None:
        began = self._clock()
        try:
            async with asyncio.timeout(self._limit):
                issued = await self._source.fetch()
            if issued.life is not None and not issued.life > 0:
                self._failed("the credential it gave has expired already: is this machine's clock right?")
            else:
                self._took(issued, began)
        except CredentialError as error:
            self._failed(str(error))
        except TimeoutError:
            self._failed(f"no answer within {self._limit:g} s")
        except Exception as error:  # a library's own mistake must not cost what is still good; its text may be a secret
            self._failed(f"the source of the credential failed in a way not foreseen ({type(error).__name__})")
        finally:
            self._refused = False
            self._question = None

    def _took(self, issued: Issued, began: float) -> None:
        if self._failures:
            self._log.info("credential refreshed again", failures=self._failures)
        self._failures = 0
        self._failure = ""
        half, end = (0.0, float("inf")) if issued.life is None else (issued.life / 2, began + issued.life)
        self._held = _Held(issued.credential, max(began + half, self._clock() + LOOK), end)

    def _failed(self, reason: str) -> None:
        wait = FIRST_PAUSE / 2 + pause(self._failures, self._draw(), base=FIRST_PAUSE, cap=LONGEST_PAUSE)
        self._failures += 1
        self._failure = reason
        self._next_question = self._clock() + wait
        event = "no credential" if self._valid() is None else "credential not refreshed, keeping the old one"
        self._log.warning(event, reason=reason, retry_in=round(wait, 1))
