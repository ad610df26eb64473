"""A measurement: which pulls it takes, what they cost upstream before it begins, and doing no more than that."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

from proxy.oci.errors import OciError
from proxy.oci.reference import Reference, Tag
from proxy.pulling import Arrived, Image, Source, pull
from proxy.timings import Run, Way

Shown = Mapping[str, Any]  # what the desk tells of a cached image


@dataclass(frozen=True, slots=True)
class Step:
    """One pull. `gets` and `size`: the manifests and the bytes that it has upstream asked for, at most."""

    way: Way
    gets: int
    size: int
    is_measured: bool = True
    takes_out: bool = False  # the image is taken out of the cache first


@dataclass(frozen=True, slots=True)
class Order:
    """How an image is to be measured. `is_cached`: something of it is in the cache; `is_whole`: all of it."""

    image: Image
    runs: int
    is_direct: bool
    cold: int
    is_cached: bool
    is_whole: bool
    note: str = ""  # why there are no cold pulls, or what cold means here

    def steps(self) -> Sequence[Step]:
        """The pulls, in their order; direct and warm ones in turns, so that a slow hour is not one's alone."""
        image, whole = self.image, (0, 0) if self.is_whole else (len(self.image.manifests), self.image.size)
        cold = [
            Step(Way.COLD, len(image.manifests), image.size, takes_out=self.is_cached or number > 0)
            for number in range(self.cold)
        ]
        direct = [Step(Way.DIRECT, image.gets, image.size)] if self.is_direct else []
        warm = Step(Way.WARM, int(image.is_headless), 0)  # the cache may ask for the tag again, by HEAD where it can
        return [*(cold or [Step(Way.WARM, *whole, is_measured=False)]), *([*direct, warm] * self.runs)]


@dataclass(slots=True)
class Measurement:
    """What was measured of each image, by its name, and what ended it before its end (None: nothing).

    `missing`: an image that was taken out of the cache, and is not back.
    """

    runs: dict[str, list[Run]] = field(default_factory=dict)
    ended_by: str | None = None
    is_interrupted: bool = False
    missing: str | None = None


@dataclass(frozen=True, slots=True)
class Bench:
    """What a measurement is made with.

    `admit`: raises OciError if upstream does not allow so many manifests any more. `take_out`: takes an image out of
    the cache, all of which has come if so it is said, and returns once the server knows. `began`, `arrived`: told of
    each step, and of its bytes.
    """

    direct: Callable[[Image], AbstractAsyncContextManager[Source]]
    cache: Callable[[], AbstractAsyncContextManager[Source]]
    admit: Callable[[Image, int], Awaitable[None]]
    take_out: Callable[[Image, bool], Awaitable[None]]
    began: Callable[[Image, Step], None]
    arrived: Arrived


async def measure(orders: Sequence[Order], bench: Bench, measurement: Measurement, *, at_once: int) -> None:
    """Make the pulls; the first that fails ends it, and is told in `measurement` beside what there is by then."""
    for order in orders:
        runs = measurement.runs.setdefault(order.image.name, [])
        for step in order.steps():
            try:
                run = await _step(order.image, step, bench, measurement, at_once)
            except OciError as error:
                wait = "" if error.retry_after is None else f" (asks us to wait {error.retry_after:.0f} s)"
                measurement.ended_by = f"{order.image.name}, {step.way}: {error.message}{wait}"
                return
            if step.is_measured:
                runs.append(run)


async def _step(image: Image, step: Step, bench: Bench, measurement: Measurement, at_once: int) -> Run:
    await bench.admit(image, step.gets)
    if step.takes_out:
        await _take_out(image, bench, measurement)
    bench.began(image, step)
    async with bench.direct(image) if step.way is Way.DIRECT else bench.cache() as source:
        run = await pull(source, image, step.way, at_once=at_once, arrived=bench.arrived)
    measurement.missing = None
    return run


async def _take_out(image: Image, bench: Bench, measurement: Measurement) -> None:
    measurement.missing = image.name  # first: it may be interrupted at any time
    try:
        await bench.take_out(image, bool(measurement.runs[image.name]))
    except OciError:
        measurement.missing = None
        raise


def objection(shown: Shown, reference: Reference) -> str | None:
    """Why a cached image is not to be taken out for the sake of a measurement; None if nothing is against it."""
    if shown["pinned"] is not None:
        return "it is pinned" if not shown["pinned"]["deleted"] else "upstream has deleted it"
    if any(one["state"] == "frozen" for one in shown["tags"]):
        return "its tag is frozen"
    if isinstance(reference, Tag) and len(shown["tags"]) > 1:
        others = ", ".join(one["tag"] for one in shown["tags"] if one["tag"] != str(reference))
        return f"it stays under its other tags ({others}): name it by digest"
    return None


def is_whole(shown: Shown | None, image: Image) -> bool:
    """Whether the cache has all that a pull of an image asks for."""
    if shown is None or shown["digest"] != str(image.digest):
        return False
    wanted = str(image.manifests[-1].digest)
    return any(one["digest"] == wanted and not one["missing"] for one in shown["platforms"])
