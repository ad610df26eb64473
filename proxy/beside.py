"""A module of ours in a process of its own beside the server's: orders on its standard input, answers on its output.

What it does would hold up every pull in a thread here. Where the server ends, so does its input.
"""

import asyncio
import contextlib
import errno
import sys
from collections.abc import AsyncIterator

NICENESS = 10  # of such a process: of a machine that is busy, pulls get more
LINE = 16 * 1024 * 1024  # bytes of an answer


@contextlib.asynccontextmanager
async def beside(module: str) -> AsyncIterator[tuple[asyncio.StreamWriter, asyncio.StreamReader]]:
    """Its input and its output; it is killed unless it has ended when the block does. Raises OSError if it failed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        limit=LINE, start_new_session=True,  # a terminal's Ctrl-C is for the server
    )  # fmt: skip
    try:
        yield process.stdin, process.stdout  # type: ignore[misc]  # they are pipes
        code = await process.wait()
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()  # it bears that at any point
            await process.wait()
    if code != 0:
        raise OSError(errno.ECHILD, f"the process for it ended with {code}")
