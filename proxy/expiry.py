"""Lifecycle policies applied once in a while, by a process of its own beside the server's.

To read a whole catalog takes Python half a millisecond for each image, and memory that it does not give back: in a
thread it would hold up every pull for as long. The process is told what to do on its standard input, and tells of each
image that has gone on its standard output, a line of JSON for each. An empty object asks the server to write down its
pulls, which it confirms by a line: an image that was pulled meanwhile stays, with all that it needs. Where the server
ends, so does its input, and with it the process.
"""

import asyncio
import contextlib
import errno
import json
import os
import pickle
import sys
from collections.abc import Awaitable, Callable
from itertools import islice
from pathlib import Path
from typing import IO, Any

from proxy import lifecycle
from proxy.beside import NICENESS, beside
from proxy.lifecycle import Policies
from proxy.stores.directory import announce_change, open_tree

AT_ONCE = 50  # images that go before it is asked again what has been pulled


class Expiry:
    """The server's side."""

    def __init__(
        self,
        store: Path,
        policies: Policies,
        record_uses: Callable[[], Awaitable[None]],
        expired: Callable[[dict[str, Any]], None],
    ) -> None:
        """`record_uses` writes down what clients pulled; `expired` is told of each image that has gone, as JSON."""
        self._order = pickle.dumps((store, policies))
        self._record_uses = record_uses
        self._expired = expired

    async def run(self) -> None:
        """Take out what is due now. Raises OSError."""
        async with beside("proxy.expiry") as (orders, answers):
            await self._attend(orders, answers)

    async def _attend(self, orders: asyncio.StreamWriter, answers: asyncio.StreamReader) -> None:
        orders.write(self._order)
        async for line in answers:
            said = json.loads(line)
            if "errno" in said:
                raise OSError(said["errno"], os.strerror(said["errno"]))
            if said:
                self._expired(said)
            else:
                await self._record_uses()
                orders.write(b"\n")


def work(orders: IO[bytes], answers: IO[str]) -> None:
    """The other side; blocking. Raises OSError."""
    store, policies = pickle.load(orders)  # noqa: S301  our own server's
    with contextlib.closing(open_tree(store)) as tree:
        plan = lifecycle.plan(tree, policies)
        going = plan.going
        while some := list(islice(going, AT_ONCE)):
            _say(answers, {})
            if not orders.readline():
                return  # the server has ended
            for one in some:
                freed = lifecycle.take(tree, plan, one)
                if freed is not None:
                    _say(answers, lifecycle.as_json(one, freed))
            asyncio.run(announce_change(tree))


def _say(answers: IO[str], answer: dict[str, Any]) -> None:
    answers.write(f"{json.dumps(answer)}\n")
    answers.flush()


def main() -> None:
    """Do what is ordered."""
    os.nice(NICENESS)
    try:
        work(sys.stdin.buffer, sys.stdout)
    except OSError as error:
        _say(sys.stdout, {"errno": error.errno or errno.EIO})


if __name__ == "__main__":
    main()
