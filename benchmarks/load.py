"""Clients at work: the blob client in its process, wrk, and what the machine used meanwhile."""

import asyncio
import json
import re
import statistics
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass

from benchmarks.contents import MANIFEST, MIB
from benchmarks.drain import Drained, Load, WrongAnswerError
from benchmarks.report import Sample
from benchmarks.servers import Place, program
from benchmarks.usage import Usage, used

GB = 1e9
UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 60e3}  # of wrk, in milliseconds


async def drain(
    load: Load, place: Place, *, settled: Callable[[], Awaitable[None]] | None = None, is_forgiving: bool = False
) -> tuple[Drained, Usage]:
    """Have a client in a process of its own at a place; what is used counts from its first request to its last byte.

    `settled`: what is waited for besides, if what goes on after the last byte is to count. Raises WrongAnswerError if
    any answer was wrong, unless it is told to forgive that.
    """
    pipe = asyncio.subprocess.PIPE
    client = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.drain", stdin=pipe, stdout=pipe, limit=2**26, start_new_session=True
    )  # Ctrl-C is for us, who end it
    if client.stdin is None or client.stdout is None:
        raise RuntimeError("a process without pipes")
    try:
        client.stdin.write(json.dumps(asdict(load)).encode() + b"\n")
        if await client.stdout.readline() != b"ready\n":
            raise WrongAnswerError(f"{place.host} could not be connected to")
        with used(place.pid) as usage:
            client.stdin.write(b"go\n")
            if not (line := await client.stdout.readline()):
                raise WrongAnswerError("the client ended before it was done")
            if settled is not None:
                await settled()
    finally:
        if client.returncode is None:
            client.kill()
        await client.wait()
    result = Drained(**json.loads(line))
    if not is_forgiving:
        result.check()
    return result, usage


@dataclass(frozen=True)
class Rate:
    """What wrk found: requests, all and in a second, and milliseconds."""

    count: int
    requests: float
    p50: float
    p99: float


def parse_wrk(said: str) -> Rate:
    """Read what wrk prints with --latency. Raises WrongAnswerError if requests failed, or it printed something else."""
    for failure in re.findall(r"^\s*(Socket errors: .*|Non-2xx or 3xx responses: .*)$", said, re.MULTILINE):
        if not re.fullmatch(r"Socket errors: connect 0, read 0, write 0, timeout \d+", failure):
            raise WrongAnswerError(f"wrk: {failure}")
    rate = re.search(r"^Requests/sec:\s+([\d.]+)", said, re.MULTILINE)
    shares = {
        share: float(value) * UNITS[unit]
        for share, value, unit in re.findall(r"^\s+(\d+)%\s+([\d.]+)(us|ms|s|m)\s*$", said, re.MULTILINE)
    }
    count = re.search(r"^\s+(\d+) requests in ", said, re.MULTILINE)
    if rate is None or count is None or not {"50", "99"} <= shares.keys():
        raise WrongAnswerError(f"wrk said: {said[:300]}")
    return Rate(int(count[1]), float(rate[1]), shares["50"], shares["99"])


async def wrk(place: Place, path: str, connections: int, seconds: int = 1) -> tuple[Rate, Usage]:
    """Requests as fast as they are answered, by wrk with one thread. Raises WrongAnswerError."""
    command = [program("wrk") or "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency"]
    command += ["-H", f"Accept: {MANIFEST}", f"{place.url}{path}"]
    with used(place.pid) as usage:
        one = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        said, _ = await one.communicate()
    return parse_wrk(said.decode()), usage


def middle(result: Drained) -> float:
    """Seconds that an answer took, in the middle. Raises WrongAnswerError if none was whole in time."""
    if not result.totals:
        raise WrongAnswerError(f"none of its answers was whole within {result.seconds:.1f} s")
    return statistics.median(result.totals)


@dataclass(frozen=True)
class At:
    """Where samples belong."""

    case: str
    contender: str

    def sample(self, measure: str, value: float) -> Sample:
        """One value."""
        return Sample(self.case, self.contender, measure, value)


def rates(at: At, rate: Rate, usage: Usage, place: Place) -> Iterator[Sample]:
    """What a run of wrk comes to."""
    yield at.sample("requests/s", rate.requests)
    yield at.sample("p50, ms", rate.p50)
    yield at.sample("p99, ms", rate.p99)
    yield at.sample("its CPU, us/request", usage.cpu / rate.count * 1e6)
    yield at.sample("peak memory, MiB", place.peak / MIB)


def transfers(at: At, result: Drained, usage: Usage, place: Place) -> Iterator[Sample]:
    """What transfers for a while come to, as a stream of bytes. Raises WrongAnswerError if none came."""
    if not result.received:
        raise WrongAnswerError("not a byte came in time")
    amount = result.received / GB
    yield at.sample("GB/s", amount / result.seconds)
    yield at.sample("machine CPU, s/GB", usage.machine / amount)
    yield at.sample("its CPU, s/GB", usage.cpu / amount)
    yield at.sample("client's CPU, cores", result.cpu / result.seconds)
    yield at.sample("peak memory, MiB", place.peak / MIB)


def once(at: At, result: Drained, usage: Usage, place: Place) -> Iterator[Sample]:
    """What one transfer to each of one or many clients comes to."""
    amount = result.received / GB
    yield at.sample("seconds", result.seconds)
    yield at.sample("first byte p50, ms", 1000 * statistics.median(result.firsts))
    yield at.sample("slowest first byte, ms", 1000 * max(result.firsts))
    yield at.sample("machine CPU, s/GB", usage.machine / amount)
    yield at.sample("its CPU, s/GB", usage.cpu / amount)
    yield at.sample("peak memory, MiB", place.peak / MIB)
