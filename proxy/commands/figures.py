"""What `entrepot bench` says: its plan before it starts, and what it measured, for people and for programs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from proxy.allowances import Bill
from proxy.benching import Measurement, Order
from proxy.inventory import age, size
from proxy.oci.platform import Platform
from proxy.timings import Phase, Run, Spread, Way, ratio, span, spreads, times


@dataclass(frozen=True, slots=True)
class Plan:
    """All that will be done, and what it costs. `cache`: where the cache is; `bucket`: what is behind it, if any."""

    cache: str
    bucket: str | None
    platform: Platform
    at_once: int
    orders: Sequence[Order]
    bills: Sequence[Bill]


def tell_plan(plan: Plan, out: Console) -> None:
    """Say what will be done, before it is."""
    for order in plan.orders:
        image, steps = order.image, order.steps()
        layers = "1 layer" if len(image.layers) == 1 else f"{len(image.layers)} layers"
        _line(out, Text(image.name, style="bold").append(f"  {plan.platform}, {layers}, {size(image.size)}", "none"))
        if order.is_direct:
            _line(out, f"  direct  {_pulls(order.runs)} from {image.repository.registry}")
        _line(out, f"  cold    {_cold(order, plan.cache)}")
        if not steps[0].is_measured:
            _line(out, "  ready   1 pull through the cache, not counted, so that all of it is there")
        _line(out, f"  warm    {_pulls(order.runs)} through {plan.cache}")
    if plan.bucket is not None:
        _line(
            out, f"A bucket is behind the cache ({plan.bucket}): cold is what comes from there, where it has the image."
        )
    for bill in plan.bills:
        _line(out, _bill(bill))


def _pulls(count: int) -> str:
    return f"{count} pull" if count == 1 else f"{count} pulls"


def _cold(order: Order, cache: str) -> str:
    if not order.cold:
        return f"not measured: {order.note}"
    taken = sum(step.takes_out for step in order.steps())
    removed = f"; the image is taken out of the cache {taken} times for it" if taken > 1 else ""
    removed = "; the image is taken out of the cache for it" if taken == 1 else removed
    return f"{_pulls(order.cold)} through {cache}{removed}{f'; {order.note}' if order.note else ''}"


def _bill(bill: Bill) -> str:
    if not bill.gets and not bill.size:
        return f"{bill.registry} is asked for nothing."
    asked = f", beside {bill.asked} for this plan" if bill.asked else ""
    cost = f"{bill.registry} is asked for {bill.gets} manifests at most{asked}, and {size(bill.size)}"
    known = bill.allowed
    if known is None:
        return f"{cost}. It has said nothing of a limit."
    window = "" if known.window is None else f" in {age(known.window)}"
    kept = f", {known.kept} of which are kept for images not cached yet" if known.kept else ""
    return f"{cost}. It allows {known.remaining} more pulls of {known.limit}{window}{kept}."


def _line(out: Console, text: Text | str) -> None:
    out.print(text if isinstance(text, Text) else Text(text), soft_wrap=True)


def tell(plan: Plan, measurement: Measurement, out: Console) -> None:
    """Say what was measured, image by image."""
    for order in plan.orders:
        found = spreads(measurement.runs.get(order.image.name, []))
        if found:
            out.print()
            out.print(_table(order, found, measurement.runs[order.image.name]))
            for sentence in _sentences(order, found):
                _line(out, sentence)


def _table(order: Order, found: Mapping[Way, Mapping[Phase, Spread]], runs: Sequence[Run]) -> Table:
    counts = {way: sum(run.way is way for run in runs) for way in found}
    table = Table(box=None, pad_edge=False, title=Text(order.image.name, style="bold"), title_justify="left")
    table.add_column("PHASE")
    for way, count in counts.items():
        head = f"{way.upper()} ({count})"
        for title in (head,) if count == 1 else (f"{head} P50", "P95", "P99"):
            table.add_column(title, justify="right", no_wrap=True)
    if {Way.DIRECT, Way.WARM} <= found.keys():
        table.add_column("WARM/DIRECT", justify="right", no_wrap=True)
    for phase in Phase:
        cells = [span(value) for way in found for value in _cells(found[way].get(phase), counts[way])]
        factor = ratio(found, phase, Way.WARM)
        table.add_row(phase.value, *cells, *([] if factor is None else [times(factor)]))
    totals = [value for way in found for value in _cells(found[way].get(Phase.TOTAL), counts[way])]
    table.add_row("MB/s", *(f"{order.image.size / 1e6 / value:,.1f}" for value in totals))
    return table


def _cells(spread: Spread | None, count: int) -> list[float]:
    """One pull has no percentiles."""
    found = (math.nan,) * 3 if spread is None else (spread.p50, spread.p95, spread.p99)
    return list(found[:1] if count == 1 else found)


def _sentences(order: Order, found: Mapping[Way, Mapping[Phase, Spread]]) -> list[str]:
    """What it comes to."""
    said = []
    for way, words in ((Way.WARM, "From the cache it takes"), (Way.COLD, "The first pull through the cache takes")):
        factor = ratio(found, Phase.TOTAL, way)
        if factor is not None:
            one, direct = found[way][Phase.TOTAL].p50, found[Way.DIRECT][Phase.TOTAL].p50
            said.append(f"{words} {times(factor)} times as long as directly: {span(one)} in place of {span(direct)}.")
    return said


def document(plan: Plan, measurement: Measurement) -> dict[str, Any]:
    """All of it for programs: bytes, seconds, and every single pull."""
    return {
        "cache": plan.cache,
        "bucket": plan.bucket,
        "platform": str(plan.platform),
        "downloads": plan.at_once,
        "upstreams": [asdict(bill) for bill in plan.bills],
        "images": [_image(order, measurement.runs.get(order.image.name, [])) for order in plan.orders],
        "ended_by": measurement.ended_by,
        "missing": measurement.missing,
    }


def _image(order: Order, runs: Sequence[Run]) -> dict[str, Any]:
    image, found = order.image, spreads(runs)
    return {
        "image": image.name,
        "repository": str(image.repository),
        "digest": str(image.digest),
        "manifests": [str(one.digest) for one in image.manifests],
        "layers": len(image.layers),
        "size": image.size,
        "planned": [
            {
                "way": one.way,
                "measured": one.is_measured,
                "takes_out": one.takes_out,
                "gets": one.gets,
                "size": one.size,
            }
            for one in order.steps()
        ],
        "note": order.note or None,
        "runs": [{"way": run.way, "seconds": dict(run.seconds)} for run in runs],
        "spread": {way: {phase: asdict(one) for phase, one in phases.items()} for way, phases in found.items()},
        "warm_to_direct": ratio(found, Phase.TOTAL, Way.WARM),
    }
