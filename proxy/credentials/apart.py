"""A library that blocks, asked where it can hold up nothing."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from proxy.credentials.base import CredentialError

T = TypeVar("T")

LIMIT = 9.0  # seconds for an answer, less than Refreshing gives, so that whoever did not answer is named


class Apart:
    """Puts questions to one service through its blocking library, one at a time.

    Each has a daemon thread of its own, not one of those that files are read and written by: a library that hangs, and
    no thread can be stopped, must keep neither pulls nor the end of the process waiting.
    """

    def __init__(self, service: str, limit: float = LIMIT) -> None:
        self._service = service
        self._limit = limit
        self._thread: threading.Thread | None = None

    async def ask(self, call: Callable[[], T]) -> T:
        """What `call` returns. Raises CredentialError, also if it takes too long or an earlier question still hangs."""
        if self._thread is not None and self._thread.is_alive():
            raise CredentialError(f"{self._service} has not answered an earlier question yet")
        answer: Future[T] = Future()
        self._thread = threading.Thread(target=_run, args=(call, answer), name=f"ask {self._service}", daemon=True)
        self._thread.start()
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


def _run(call: Callable[[], T], answer: Future[T]) -> None:
    answer.set_running_or_notify_cancel()  # from here on the loop cannot cancel it, only stop waiting
    try:
        answer.set_result(call())
    except BaseException as error:  # whatever it is, it is for whoever asked
        answer.set_exception(error)
