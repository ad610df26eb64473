"""How a request for a manifest or a small blob is answered when it comes again: in the same words, while they hold."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from proxy.accesslog import Tally
from proxy.recorder import Recorder
from proxy.respond import Print

LARGEST = 64 * 1024  # bytes of an answer that is sent without waiting for its client to take it


class Standing:
    """A yes that stands for one turn of the event loop; a no is asked for anew each time.

    All that is read in a turn had come before it began: whatever changes meanwhile, it was asked at the same time.
    """

    __slots__ = ("_ask", "_stands")

    def __init__(self, ask: Callable[[], bool]) -> None:
        self._ask = ask
        self._stands = False

    def __call__(self) -> bool:
        """The answer. To find it took a third of what an encore took (docs/performance.md)."""
        if not self._stands and self._ask():
            self._stands = True
            asyncio.get_running_loop().call_soon(self._lapse)
        return self._stands

    def _lapse(self) -> None:
        self._stands = False


@dataclass(frozen=True, slots=True)
class Encore:
    """A `repeats.Again`: what was served and how it was put, and whether the same would be served now.

    `holds` asks whoever served it, and has it counted as a use: by memory alone, without waiting for anything.
    """

    holds: Callable[[], bool]
    recorder: Recorder
    print: Print
    body: bytes
    tally: Tally

    @property
    def size(self) -> int:
        """Bytes that it takes to keep this: the body stays for it as well, whether it is sent or (HEAD) not."""
        return len(self.print.before) + len(self.body)

    def __call__(self, client: str) -> bytes | None:
        """The answer; None where it would be another one, or somebody wants to know of each."""
        began = time.monotonic()
        if self.recorder.is_on or not self.holds():
            return None
        answer = self.print.dated(self.body if self.tally.sent else b"")
        self.tally.count(client, time.monotonic() - began)
        return answer
