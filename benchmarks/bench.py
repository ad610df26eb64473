"""What a case is, and what it is given."""

import contextlib
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.contenders import Contender
from benchmarks.report import Sample
from benchmarks.servers import program


@dataclass(frozen=True)
class Bench:
    """What a case is given: a place for its files on a real disk, how often it repeats, and whom to tell."""

    folder: Path
    repeats: int
    is_full: bool  # also what takes long
    say: Callable[[str], None]  # one line to who waits
    _missed: set[str] = field(default_factory=set)

    def has(self, name: str) -> bool:
        """Whether a program is installed; it is said once that it is not."""
        if program(name) is not None:
            return True
        if name not in self._missed:
            self._missed.add(name)
            self.say(f"{name} is not installed (a Debian package): what needs it is left out")
        return False

    def present(self, contenders: Iterable[Contender]) -> list[Contender]:
        """Those whose programs are installed."""
        return [contender for contender in contenders if contender.needs is None or self.has(contender.needs)]

    @contextlib.contextmanager
    def room(self) -> Iterator[Path]:
        """An empty folder, gone afterwards."""
        with tempfile.TemporaryDirectory(prefix="bench-", dir=self.folder) as name:
            yield Path(name)

    def turns(self, contenders: Sequence[Contender]) -> Iterator[Contender]:
        """All of them, as often as it repeats, in turns; another one begins each time."""
        for number in range(self.repeats):
            first = number % len(contenders)
            yield from (*contenders[first:], *contenders[:first])


@dataclass(frozen=True)
class Case:
    """One case, or several of a kind. `reference`: whom the others of its samples are held against.

    The names of its samples' cases begin with `name`. `run` yields samples as they come, in any order.
    """

    name: str
    about: str
    reference: str
    run: Callable[[Bench], AsyncIterator[Sample]]
