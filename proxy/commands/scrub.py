"""`entrepot scrub`: all that is stored is read again in search of damage, now."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

from proxy.app import build
from proxy.commands.images import json_option
from proxy.commands.loading import Size, config_option, console, guarded, load, refuse
from proxy.config import Config
from proxy.healing import Finding
from proxy.inventory import age, size
from proxy.scrubbing import Busy, Order, Tally, Throttle
from proxy.telemetry import Metrics, quiet

EXIT_DAMAGED = 1
MOST_TOLD = 10_000  # findings that are told one by one; the rest is counted


@dataclass(slots=True)
class Report:
    """What there will be to say of a pass."""

    findings: list[Finding] = field(default_factory=list)
    tally: Tally | None = None

    def found(self, finding: Finding) -> None:
        """One finding more."""
        if len(self.findings) < MOST_TOLD:
            self.findings.append(finding)


@click.command("scrub")
@config_option
@json_option
@click.option("--rate", type=Size(), default="0", help="Bytes to read a second, such as 50MB; without it, all it can.")
@click.option("--no-heal", is_flag=True, help="Fetch nothing again: the next pull of it will.")
def scrub_command(path: Path | None, as_json: bool, rate: int, no_heal: bool) -> None:
    """Read all that is stored and see whether it is still right.

    What is damaged, or does not belong into the cache, is moved into quarantine/ in its directory, where it stays for a
    week; what upstream still has is fetched again. It can be run beside a server, whose own scrub waits meanwhile, and
    without one. There is no --server: a pass may take hours, so it is run where the directory is, and a server tells
    how its own gets on at /api/scrub. Exit status 1 if something is damaged or missing still.
    """
    config, report = load(path), Report()
    guarded(lambda: _scrub(config, Throttle(rate), report, fetch=not no_heal))
    if report.tally is None:
        refuse("another entrepot scrub is at it: wait until it is done")
    if as_json:
        click.echo(json.dumps(_told(report.tally, report.findings), indent=2))
    else:
        _print(report.tally, report.findings)
    sys.exit(0 if report.tally.is_well else EXIT_DAMAGED)


async def _scrub(config: Config, throttle: Throttle, report: Report, *, fetch: bool) -> None:
    columns = (TextColumn("scrub"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    terminal = Console(stderr=True)
    with Progress(*columns, console=terminal, disable=not terminal.is_terminal, transient=True) as progress:
        async with build(config, quiet(), Metrics(CollectorRegistry())) as app:
            task = progress.add_task("scrub", total=await app.means.space.refresh() or None)
            order = Order(throttle, fetch, report.found, lambda count: progress.advance(task, count))
            try:
                report.tally = await app.scrubber.now(order)
            except Busy:
                return


def _told(tally: Tally, findings: Sequence[Finding]) -> dict[str, Any]:
    """A pass for programs; sizes in bytes, times in UTC."""
    told = [
        {
            "kind": one.kind,
            "key": one.damage.key,
            "digest": None if one.damage.digest is None else str(one.damage.digest),
            "size": one.damage.size,
            "quarantine": one.damage.moved,
            "fate": one.fate,
            "reason": one.reason or None,
            "repositories": [str(repository) for repository in one.repositories],
        }
        for one in findings
    ]
    return {**tally.told(), "well": tally.is_well, "found": told}


def _print(tally: Tally, findings: Sequence[Finding]) -> None:
    out, total = console(), sum(tally.findings.values())
    if findings:
        table = Table(box=None, pad_edge=False)
        for title in ("FOUND", "WHAT", "SIZE", "BECAME"):
            table.add_column(title, overflow="fold", justify="right" if title == "SIZE" else "left")
        for one in findings:
            became = f"{one.fate}: {one.reason}" if one.reason else str(one.fate)
            table.add_row(one.kind, Text(_name(one)), size(one.damage.size), Text(_printable(became)))
        out.print(table)
        out.print()
    if total > len(findings):
        out.print(f"... and {total - len(findings):,} more")
    seconds = 0.0 if tally.ended is None else max(0.0, tally.ended - tally.began)
    span = age(seconds) if seconds >= 60 else f"{seconds:.1f} s"
    fates = "".join(f", {count} {fate}" for fate, count in sorted(tally.fates.items()))
    out.print(
        f"{tally.blobs:,} blobs and {tally.records:,} records, {size(tally.size)} read in {span}: "
        + (f"{total:,} found{fates}" if total else "all is well"),
        soft_wrap=True,
    )


def _name(finding: Finding) -> str:
    digest = finding.damage.digest
    return _printable(finding.damage.key) if digest is None else f"{digest.algorithm}:{digest.encoded[:12]}"


def _printable(text: str) -> str:
    """A file's name must not drive the terminal."""
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


COMMANDS = (scrub_command,)
