"""A library that blocks, asked where it can hold up nothing."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from proxy import daemon
from proxy.credentials.base import CredentialError

T = TypeVar("T")

LIMIT = 9.0  # seconds for an answer, less than Refreshing gives, so that whoever did not answer is named


class Apart:
    """Puts questions to one service through its blocking library, one at a time.

    Each has a thread of its own, not one of those that files are read and written by: a library may hang.
    """

    def __init__(self, service: str, limit: float = LIMIT) -> None:
        self._service = service
        self._limit = limit
        self._earlier: Future[Any] | None = None

    async def ask(self, call: Callable[[], T]) -> T:
        """What `call` returns. Raises CredentialError, also if it takes too long or an earlier question still hangs."""
        if self._earlier is not None and not self._earlier.done():
            raise CredentialError(f"{self._service} has not answered an earlier question yet")
        answer = self._earlier = daemon.start(call, f"ask {self._service}")
        try:
            async with asyncio.timeout(self._limit):
                return await asyncio.wrap_future(answer)
        except TimeoutError:
            raise CredentialError(f"{self._service} did not answer within {self._limit:g} s") from None
        except CredentialError:
            raise
        except (
            Exception
        ) as error:  # a library that does not catch what an odd answer does to it; the text may be a secret
            raise CredentialError(f"{self._service} answered in a way not foreseen ({type(error).__name__})") from None
