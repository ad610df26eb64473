"""`entrepot bucket`: what goes from the bucket, before it does and on demand."""

import asyncio
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from proxy.clearing import Candidate, Limits, Plan, Tally, clear_all, plan
from proxy.commands.images import json_option
from proxy.commands.loading import Duration, Size, config_option, console, guarded, load, refuse
from proxy.config import ConfigError
from proxy.inventory import age, size
from proxy.oci.ratelimit import as_utc
from proxy.sections.store import S3
from proxy.stores.keys import blob_digest
from proxy.stores.s3 import Bucket
from proxy.stores.s3_errors import BucketError

EXIT_FAILED = 1
ROWS = 50  # of a table: there may be a hundred thousand


@dataclass(slots=True)
class Report:
    """What there will be to say: what was to go, what went, and what ended it before its end (None: nothing)."""

    settings: S3
    limits: Limits
    is_dry: bool
    made: Plan | None = None
    tally: Tally = field(default_factory=Tally)
    ended_by: str | None = None


@click.group("bucket")
def bucket_group() -> None:
    """Tell what goes from the bucket, or have it go now.

    A bucket keeps what it is told by store.s3.keep_unused and store.s3.max_size, or by rules of its own. One of its
    replicas sees to that once a day.

    \b
      entrepot bucket evict --dry-run                    what would go, and why
      entrepot bucket evict --dry-run --keep-unused 30d  ... by other limits
      entrepot bucket evict                              have it go
    """


@bucket_group.command("evict")
@config_option
@json_option
@click.option("--dry-run", "is_dry", is_flag=True, help="Only say what would go, and why.")
@click.option("--keep-unused", type=Duration(), help="In place of store.s3.keep_unused, such as 30d; at least 2d.")
@click.option("--max-size", type=Size(), help="In place of store.s3.max_size, such as 2TB; 0: no limit.")
def evict_command(
    path: Path | None, as_json: bool, is_dry: bool, keep_unused: float | None, max_size: int | None
) -> None:
    """Have go from the bucket what no replica has used for too long, and what is too much.

    Blobs alone go, manifests among them, and the directory of no replica is touched. What is written or used meanwhile
    stays, as far as that is known. It can be run beside servers, and be ended and run again. Exit status 1 if something
    could not be removed.
    """
    settings = load(path).store.s3
    if settings is None:
        refuse(ConfigError(["store.s3: there is no bucket in the configuration: set store.s3.bucket"]))
    report = Report(settings, _limits(settings, keep_unused, max_size), is_dry)
    guarded(lambda: _told(report, as_json))
    if report.ended_by is not None or report.tally.failed:
        raise SystemExit(EXIT_FAILED)


async def _told(report: Report, as_json: bool) -> None:
    """Do it, and tell what was done, however it ends."""
    try:
        await _run(report)
    except asyncio.CancelledError:
        report.ended_by = "it was interrupted; what has gone is gone, and it can be run again"
        raise
    finally:
        if report.ended_by is None or as_json or report.tally != Tally():
            (_say_json if as_json else _say)(report)
        if report.ended_by is not None:
            click.echo(f"entrepot: store.s3: {report.settings.bucket}: {report.ended_by}", err=True)


def _limits(settings: S3, keep_unused: float | None, max_size: int | None) -> Limits:
    least = 2 * 86400.0
    if keep_unused is not None and keep_unused < least:
        refuse("--keep-unused: must be at least 2d: replicas tell of their uses once an hour")
    limits = Limits(
        settings.keep_unused if keep_unused is None else keep_unused,
        settings.max_size if max_size is None else max_size,
    )
    if not limits:
        refuse("nothing limits the bucket: set store.s3.keep_unused or store.s3.max_size, or give one of the options")
    return limits


async def _run(report: Report) -> None:
    try:
        async with Bucket(report.settings) as bucket:
            if report.is_dry:
                report.made = await plan(bucket, report.limits)
            else:
                await clear_all(bucket, report.limits, report.tally, _always)
    except BucketError as error:
        report.ended_by = error.reason


async def _always() -> bool:
    return True


def _why(one: Candidate, now: float) -> str:
    unused = age(now - one.used)
    return f"not used for {unused}" if one.is_unused else f"there is no room, and it was used {unused} ago"


def _say_json(report: Report) -> None:
    told: dict[str, Any] = {"dry_run": report.is_dry, "limits": asdict(report.limits)}
    made, tally = report.made, report.tally
    if made is not None:
        going = [
            {
                "digest": str(blob_digest(one.key)),
                "size": one.size,
                "written": as_utc(one.modified),
                "used": as_utc(one.used),
                "why": _why(one, made.now),
            }
            for one in made.going
        ]
        told |= {
            "told": as_utc(made.told),
            "blobs": made.blobs,
            "size": made.size,
            "freed": made.freed,
            "all": made.is_all,
            "going": going,
        }
    elif not report.is_dry:
        told |= {**asdict(tally), "failures": [{"key": key, "reason": reason} for key, reason in tally.failures]}
    click.echo(json.dumps({**told, "ended_by": report.ended_by}, indent=2))


def _say(report: Report) -> None:
    made, tally = report.made, report.tally
    if made is not None:
        _say_plan(made)
    elif not report.is_dry:
        for key, reason in tally.failures:
            click.echo(f"{key}: {reason}")
        stayed = f"; {tally.stayed:,} used meanwhile stayed" if tally.stayed else ""
        failed = f"; {tally.failed:,} could not be removed" if tally.failed else ""
        click.echo(f"{_count(tally.gone)} went, and {size(tally.freed)} with them{stayed}{failed}.")


def _say_plan(made: Plan) -> None:
    out = console()
    table = Table(box=None, pad_edge=False)
    for title in ("BLOB", "SIZE", "WHY"):
        table.add_column(title, overflow="fold", justify="right" if title == "SIZE" else "left")
    for one in made.going[:ROWS]:
        table.add_row(str(blob_digest(one.key))[:19], size(one.size), Text(_why(one, made.now)))
    if made.going:
        out.print(table)
    if len(made.going) > ROWS:
        out.print(f"... and {len(made.going) - ROWS:,} more")
    least = "" if made.is_all else "at least "
    click.echo(
        f"Of {_count(made.blobs)} and {size(made.size)} in the bucket {least}{len(made.going):,} would go, and "
        f"{size(made.freed)} with them. Replicas tell of their uses since {as_utc(made.told)}."
    )


def _count(blobs: int) -> str:
    return "one blob" if blobs == 1 else f"{blobs:,} blobs"


COMMANDS = (bucket_group,)
