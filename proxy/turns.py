"""Turns at one upstream: so many requests at once, and no repository waits behind another's queue."""

import asyncio
import contextlib
import itertools
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Hashable, Iterator

from proxy.oci.errors import OciError
from proxy.oci.retry import Ramp

PATIENCE = 2.0  # seconds that a turn may rest while others wait for theirs


class Turn:
    """A turn that somebody holds, and may lose while it rests."""

    def __init__(self, key: Hashable, resting: "_Resting", rested: Callable[[], None]) -> None:
        self.key = key
        self.is_lost = False
        self._resting = resting
        self._rested = rested

    @contextlib.contextmanager
    def rest(self, give_up: Callable[[], None]) -> Iterator[None]:
        """Within this the turn is lost once it has taken too long and others wait; `give_up` is called then."""
        self._resting[self] = (time.monotonic(), give_up)
        self._rested()
        try:
            yield
        finally:
            self._resting.pop(self, None)


_Resting = OrderedDict[Turn, tuple[float, Callable[[], None]]]  # since when, and whom to tell; the oldest first


class Turns:
    """A bounded number of turns, given round robin between those who wait under different keys.

    The last quarter is for keys that hold none: whoever has many layers on their way cannot keep others from starting.
    Nor can a client that does not read what it has asked for: a turn that rests is taken from it, if others wait.
    """

    def __init__(self, most: int, patience: float = PATIENCE) -> None:
        self._most = most
        self._shared = most - most // 4
        self._held: Counter[Hashable] = Counter()
        self._total = 0
        self._waiting: OrderedDict[Hashable, deque[asyncio.Future[None]]] = OrderedDict()
        self._patience = patience
        self._resting: _Resting = OrderedDict()
        self._alarm: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        """How many wait for a turn."""
        return sum(len(queue) for queue in self._waiting.values())

    @contextlib.asynccontextmanager
    async def turn(self, key: Hashable) -> AsyncIterator[Turn]:
        """Hold one turn, first come first served under one key."""
        await self._take(key)
        turn = Turn(key, self._resting, self._watch)
        try:
            yield turn
        finally:
            if not turn.is_lost:
                self._give_back(key)

    def spare(self, key: Hashable) -> contextlib.ExitStack | None:
        """A turn of those that all may share, if nobody waits for any; closing what is returned gives it back."""
        if self._waiting or self._total >= self._shared:
            return None
        self._hold(key)
        stack = contextlib.ExitStack()
        stack.callback(self._give_back, key)
        return stack

    async def _take(self, key: Hashable) -> None:
        if key not in self._waiting and self._may(key):
            self._hold(key)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, deque()).append(turn)
        self._watch()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._give_back(key)  # given in the same moment
            else:
                self._forget(key, turn)
            raise

    def _may(self, key: Hashable) -> bool:
        return self._total < self._shared or (self._total < self._most and not self._held[key])

    def _hold(self, key: Hashable) -> None:
        self._held[key] += 1
        self._total += 1

    def _give_back(self, key: Hashable) -> None:
        self._total -= 1
        self._held[key] -= 1
        if not self._held[key]:
            del self._held[key]
        self._serve()
        self._watch()

    def _forget(self, key: Hashable, turn: asyncio.Future[None]) -> None:
        queue = self._waiting.get(key, deque())
        if turn in queue:  # else it was passed over already
            queue.remove(turn)
            if not queue:
                del self._waiting[key]

    def _watch(self) -> None:
        """See to it that turns which have rested for too long are taken, once that lets somebody in."""
        if self._alarm is None and (moment := self._ripe_at()) is not None:
            wait = max(0.0, moment - time.monotonic())
            self._alarm = asyncio.get_running_loop().call_later(wait, self._reclaim)

    def _reclaim(self) -> None:
        """Take those that have rested the longest, as many as it takes."""
        self._alarm = None
        moment = self._ripe_at()
        if moment is not None and moment <= time.monotonic():
            for turn in list(itertools.islice(self._resting, self._lacking())):
                _, give_up = self._resting.pop(turn)
                turn.is_lost = True
                give_up()
                self._give_back(turn.key)
        self._watch()

    def _ripe_at(self) -> float | None:
        """When so many turns will have rested for long enough that somebody could have theirs; None if never."""
        lacking = self._lacking() if self._waiting else 0
        moments = [since for since, _ in itertools.islice(self._resting.values(), lacking)]
        return moments[-1] + self._patience if moments and len(moments) == lacking else None

    def _lacking(self) -> int:
        """How many turns have to be given back before one of those who wait may have one.

        None, while whoever may have one has stopped waiting in this moment.
        """
        most = max(self._shared if self._held[key] else self._most for key in self._waiting)
        return max(0, self._total + 1 - most)

    def _serve(self) -> None:
        """Give what is free to whoever is next: the key that was served goes to the end of the round."""
        while (turn := self._next()) is not None:
            turn.set_result(None)

    def _next(self) -> asyncio.Future[None] | None:
        for key in [key for key in self._waiting if self._may(key)]:
            queue = self._waiting.pop(key)
            while queue:
                turn = queue.popleft()
                if not turn.cancelled():
                    if queue:
                        self._waiting[key] = queue  # at the end of the round
                    self._hold(key)
                    return turn
        return None


class CarefulTurns:
    """Turns that widen as answers come: for questions to which there is an older answer anyway."""

    def __init__(self, ramp: Ramp) -> None:
        self._ramp = ramp
        self._waiting: deque[asyncio.Future[None]] = deque()

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Hold one turn; an exception within says that there was no answer, but for one that is upstream's word."""
        while not self._ramp.enter(time.monotonic()):
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._wake(1)  # it was called in the same moment: the next one may
                raise
        is_good = False
        try:
            yield
            is_good = True
        except OciError as error:
            is_good = not error.problem.is_outage
            raise
        finally:
            self._ramp.leave(time.monotonic(), is_good=is_good)
            self._wake(2)  # each answer makes room for two

    def _wake(self, count: int) -> None:
        while self._waiting and count:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                count -= 1
