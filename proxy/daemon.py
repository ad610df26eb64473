"""A blocking call in a daemon thread of its own: should it hang, neither files nor the process's end wait for it."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


class Exited(Exception):
    """The call tried to end the process, or its thread."""


def start(call: Callable[[], T], name: str) -> Future[T]:
    """Begin; the future has what the call returns or raises. Cancelling it stops nothing."""
    answer: Future[T] = Future()
    answer.set_running_or_notify_cancel()  # from here on nobody can cancel it, only stop waiting
    threading.Thread(target=_run, args=(call, answer), name=name, daemon=True).start()
    return answer


def _run(call: Callable[[], T], answer: Future[T]) -> None:
    try:
        answer.set_result(call())
    except Exception as error:
        answer.set_exception(error)
    except BaseException as error:  # SystemExit, which would break through an event loop
        answer.set_exception(Exited(type(error).__name__))
