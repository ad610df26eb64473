"""What is done once in a while, by one process at a time.

Each job has a file: whoever is at it holds the lock, and its content is when it was done last.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from proxy.files import Tree, hop, read_number, write_number
from proxy.telemetry import Logger

LOOK = 60.0  # seconds after which it is looked at the latest whether a job is due, or its process gone


@dataclass(frozen=True, slots=True)
class Job:
    """Some work, and the seconds between its end and its next beginning, restarts included.

    What a kill cuts short is not done, and begins anew; it has to bear that.
    """

    name: str
    every: float
    work: Callable[[], Awaitable[object]]


class Jobs:
    """Sees to it that each job is done when it is due, by one of the processes on a directory."""

    def __init__(self, tree: Tree, jobs: Sequence[Job], log: Logger) -> None:
        self._tree = tree
        self._jobs = jobs
        self._log = log

    async def run(self) -> None:
        """Go on until cancelled; what fails is logged, and tried again. A disk that goes on refusing is one line."""
        async with asyncio.TaskGroup() as group:
            for job in self._jobs:
                group.create_task(self._repeat(job))

    async def _repeat(self, job: Job) -> None:
        trouble: str | None = None  # of the last time
        while True:
            wait = LOOK
            try:
                wait = await self.turn(job)
            except OSError as error:
                if error.strerror != trouble:
                    self._log.error("job failed; it is tried again", job=job.name, reason=error.strerror)
                trouble = error.strerror
            except Exception:
                self._log.exception("job failed; it is tried again", job=job.name)
            else:
                trouble = None
            await asyncio.sleep(min(wait, LOOK))

    async def turn(self, job: Job) -> float:
        """Do a job if it is due and nobody is at it. Returns the seconds until it is due, as far as is known."""
        with contextlib.ExitStack() as stack:
            fd = await hop(stack.enter_context, self._tree.claimed(f"jobs/{job.name}"))
            if fd is None:
                return LOOK
            since = time.time() - await hop(read_number, fd)
            if 0 <= since < job.every:  # below 0 the clock has been set back, and says nothing
                return job.every - since
            await job.work()
            await hop(write_number, fd, int(time.time()))
        return job.every
