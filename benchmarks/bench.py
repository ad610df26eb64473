"""What a case is, and what it is given."""

import contextlib
import tempfile
import traceback
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.contenders import Contender
from benchmarks.report import Sample
from benchmarks.servers import program

PACKAGES = {"varnishd": "varnish"}  # of Debian, where they are not called as the program is
FAILURES = (RuntimeError, OSError)  # what a contender or a case may fail with, time-outs included


@dataclass(frozen=True)
class Bench:
    """What a case is given: a place for its files on a real disk, how often it repeats, and whom to tell."""

    folder: Path
    repeats: int
    is_full: bool  # also what takes long
    say: Callable[[str], None]  # one line to who waits
    failed: list[str] = field(default_factory=list)  # cases and contenders, for the whole run
    _missed: set[str] = field(default_factory=set)
    _out: set[str] = field(default_factory=set)

    def begin(self) -> None:
        """Another case: who failed in the one before takes part again."""
        self._out.clear()

    def fail(self, what: str, error: BaseException) -> None:
        """Say that something failed, and remember it; a defect of ours is said with where it is."""
        self.say("\n".join([f"{what} failed: {str(error) or type(error).__name__}", *getattr(error, "__notes__", ())]))
        if not isinstance(error, (*FAILURES, KeyboardInterrupt)):
            self.say("".join(traceback.format_exception(error)))
        self.failed.append(what)

    async def measure(
        self, turns: Iterable[Contender], measured: Callable[[Contender], Awaitable[Iterable[Sample]]]
    ) -> AsyncIterator[Sample]:
        """What is measured of each in its turn; one that fails is left out from then on."""
        for one in turns:
            samples: list[Sample] = []
            if one.name not in self._out:
                with self.sparing(one):
                    samples += await measured(one)
            for sample in samples:
                yield sample

    @contextlib.contextmanager
    def sparing(self, one: Contender) -> Iterator[None]:
        """Have a contender that fails leave the others alone: it is left out of the rest of the case."""
        try:
            yield
        except FAILURES as error:
            self._out.add(one.name)
            self.fail(one.name, error)

    def has(self, name: str) -> bool:
        """Whether a program is installed; it is said once that it is not."""
        if program(name) is not None:
            return True
        if name not in self._missed:
            self._missed.add(name)
            self.say(f"{name} is not installed (Debian: {PACKAGES.get(name, name)}): what needs it is left out")
        return False

    def present(self, contenders: Iterable[Contender]) -> list[Contender]:
        """Those whose programs are installed."""
        return [contender for contender in contenders if contender.needs is None or self.has(contender.needs)]

    @contextlib.contextmanager
    def room(self) -> Iterator[Path]:
        """An empty folder, gone afterwards."""
        with tempfile.TemporaryDirectory(prefix="bench-", dir=self.folder) as name:
            yield Path(name)

    def turns(self, contenders: Collection[Contender]) -> Iterator[Contender]:
        """All of them, as often as it repeats, in turns; another one begins each time."""
        for number in range(self.repeats):
            order = deque(contenders)
            order.rotate(-number)
            yield from order


@dataclass(frozen=True)
class Case:
    """Several cases of a kind.

    `chief`: the measure that says most, which is drawn. `reference`: whom the others are held against. `run` yields
    samples as they come, in any order; what it does is said by its first line.
    """

    name: str
    chief: str
    reference: str
    run: Callable[[Bench], AsyncIterator[Sample]]

    @property
    def about(self) -> str:
        """A sentence."""
        return (self.run.__doc__ or "").partition("\n")[0]
