"""One task per key, any number of waiters: the work belongs to the flight, not to whoever asked first."""

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class SingleFlight(Generic[Key, Value]):
    """Coalesces equal work: whoever asks for a key while its task runs gets that task's result or error."""

    def __init__(self) -> None:
        self._tasks: dict[Key, asyncio.Task[Value]] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    async def run(self, key: Key, work: Callable[[], Coroutine[Any, Any, Value]]) -> Value:
        """Join the task of `key`, or start one. A caller that is cancelled leaves the task running."""
        return await asyncio.shield(self.start(key, work))

    def start(self, key: Key, work: Callable[[], Coroutine[Any, Any, Value]]) -> "asyncio.Task[Value]":
        """The task of `key`, which is started if there is none; nobody needs to wait for it."""
        task = self._tasks.get(key)
        if task is None:
            task = asyncio.create_task(work())
            self._tasks[key] = task
            task.add_done_callback(lambda done: self._landed(key, done))
        return task

    def _landed(self, key: Key, task: asyncio.Task[Value]) -> None:
        del self._tasks[key]
        if not task.cancelled():
            task.exception()  # taken note of: with every waiter gone nobody else would

    async def aclose(self) -> None:
        """Cancel what is in flight, and wait until it has ended."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
