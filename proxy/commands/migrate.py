"""`entrepot migrate`: a cache that was there before its bucket, or is to be there after it."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import click
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from proxy.commands.images import json_option
from proxy.commands.loading import Size, config_option, console, guarded, load, refuse
from proxy.commands.warm import bars
from proxy.config import Config, ConfigError
from proxy.eviction import Bounds
from proxy.files import Tree, hop
from proxy.inbound import Inbound, means
from proxy.inventory import size
from proxy.migrating import Crossing, Kind, MigrationFailed, Tally
from proxy.outbound import Outbound
from proxy.scrubbing import Throttle
from proxy.sections.store import S3
from proxy.stores.directory import announce_change, open_tree
from proxy.stores.s3 import Bucket
from proxy.stores.s3_errors import BucketError
from proxy.stores.s3_trial import trial

EXIT_FAILED = 1
_STAYS = "what has been brought over stays: run it again"
_NAMES: Mapping[Kind, str] = {"blob": "blobs", "link": "links", "tag": "tags", "history": "histories"}

dry_option = click.option("--dry-run", "is_dry", is_flag=True, help="Only say how much there is to be done.")
rate_option = click.option(
    "--rate", type=Size(), default="0", help="Bytes a second, such as 50MB; without it, all it can."
)


class Direction(Protocol):
    """One direction."""

    async def wanted(self) -> int:
        """The bytes of the blobs that are to be brought over."""

    async def run(self) -> None:
        """Bring everything over."""


@dataclass(slots=True)
class Report:
    """What there will be to say: what was done, what ended it before its end (None: nothing), and seconds."""

    is_dry: bool
    tally: Tally = field(default_factory=Tally)
    ended_by: str | None = None
    took: float = 0.0


@click.group("migrate")
def migrate_group() -> None:
    """Bring a whole cache into its bucket, or back.

    A server with [store.s3] brings what is new into the bucket by itself. This is for what was there before, and for
    when the bucket is to be there no more. Both may be run beside a server, ended at any time, and run again: what is
    there already is passed over, and nothing is removed where it comes from.

    \b
      entrepot migrate to-bucket --dry-run     how much would move
      entrepot migrate to-bucket               from store.path into the bucket
      entrepot migrate to-disk                 from the bucket into store.path
    """


@migrate_group.command("to-bucket")
@config_option
@json_option
@dry_option
@rate_option
def to_bucket_command(path: Path | None, as_json: bool, is_dry: bool, rate: int) -> None:
    """Bring all that is in the directory into the bucket.

    Each blob is held against its digest first; what is damaged is told, and left to entrepot scrub. What a replica has
    recorded of a tag since stays. The directory keeps everything, as the tier in front. Exit status 1 if something
    could not be brought there.
    """
    _migrate(load(path), Throttle(rate), Report(is_dry), _outbound, as_json)


@migrate_group.command("to-disk")
@config_option
@json_option
@dry_option
@rate_option
def to_disk_command(path: Path | None, as_json: bool, is_dry: bool, rate: int) -> None:
    """Bring all that is in the bucket into the directory.

    Each blob is held against its digest as it comes; what is damaged is told, and left there. Nothing is dropped to
    make room: if store.max_size or the disk is too small it is said at once. The bucket keeps everything. Exit status 1
    if something could not be brought here.
    """
    _migrate(load(path), Throttle(rate), Report(is_dry), _inbound, as_json)


Open = Callable[[Config, Tree, Crossing], contextlib.AbstractAsyncContextManager[Direction]]


def _migrate(config: Config, throttle: Throttle, report: Report, way: Open, as_json: bool) -> None:
    settings = config.store.s3
    if settings is None:
        refuse(ConfigError(["store.s3: there is no bucket in the configuration: set store.s3.bucket"]))
    guarded(lambda: _told(_run(config, settings, throttle, report, way), report, as_json))
    if report.ended_by is not None or report.tally.failed:
        raise SystemExit(EXIT_FAILED)


async def _told(run: Awaitable[None], report: Report, as_json: bool) -> None:
    """Tell what was done, however it ends."""
    began = time.monotonic()
    try:
        await run
    except asyncio.CancelledError:
        report.ended_by = f"it was interrupted; {_STAYS}"
        raise
    finally:
        report.took = time.monotonic() - began
        (_say_json if as_json else _say)(report)
        if report.ended_by is not None:
            click.echo(f"entrepot: {report.ended_by}", err=True)


async def _run(config: Config, settings: S3, throttle: Throttle, report: Report, way: Open) -> None:
    try:
        with bars() as progress, contextlib.closing(await hop(open_tree, config.store.path)) as tree:
            async with Bucket(settings) as bucket:
                await _tried(bucket)
                crossing = Crossing(bucket, throttle=throttle, arrived=_bar(progress), is_dry=report.is_dry)
                report.tally = crossing.tally
                async with way(config, tree, crossing) as one:
                    wanted = await one.wanted()
                    progress.update(progress.task_ids[0], total=wanted)
                    await one.run()
    except BucketError as error:
        report.ended_by = f"store.s3: {settings.bucket}: {error.reason}"
    except MigrationFailed as error:
        has_begun = any(count.moved for count in report.tally.counts.values())
        report.ended_by = f"{error}; {_STAYS}" if has_begun else str(error)


async def _tried(bucket: Bucket) -> None:
    """Ask for one page without patience: what is wrong from the first is not to be waited for. Raises BucketError."""
    async with contextlib.aclosing(bucket.keys("blobs/")) as keys:
        async for _ in keys:
            return


def _bar(progress: Progress) -> Callable[[int], None]:
    task = progress.add_task("migrate", total=None)
    return lambda count: progress.advance(task, count)


@contextlib.asynccontextmanager
async def _outbound(_config: Config, tree: Tree, crossing: Crossing) -> AsyncIterator[Direction]:
    if not crossing.is_dry:
        await trial(crossing.bucket)
    yield Outbound(tree, crossing)


@contextlib.asynccontextmanager
async def _inbound(config: Config, tree: Tree, crossing: Crossing) -> AsyncIterator[Direction]:
    async with means(tree, Bounds(config.store.max_size, config.store.min_free)) as opened:
        try:
            yield Inbound(opened, crossing)
        finally:
            if not crossing.is_dry:
                await announce_change(tree)


def _say_json(report: Report) -> None:
    tally = report.tally
    told: dict[str, Any] = {
        "dry_run": report.is_dry,
        **{name: asdict(tally.counts[kind]) for kind, name in _NAMES.items()},
        "failures": [{"key": key, "reason": reason} for key, reason in tally.failures],
        "ended_by": report.ended_by,
        "seconds": round(report.took, 1),
    }
    click.echo(json.dumps(told, indent=2))


def _say(report: Report) -> None:
    out, tally = console(), report.tally
    if report.ended_by is not None and tally == Tally():
        return  # it has not begun
    table = Table(box=None, pad_edge=False)
    for title in ("", "TO MOVE" if report.is_dry else "MOVED", "SIZE", "THERE ALREADY", "FAILED"):
        table.add_column(title, justify="right" if title else "left")
    for kind, name in _NAMES.items():
        count = tally.counts[kind]
        table.add_row(name, f"{count.moved:,}", size(count.size), f"{count.there:,}", f"{count.failed:,}")
    out.print(table)
    for key, reason in tally.failures:
        out.print(Text(f"{key}: {reason}"), soft_wrap=True)
    if tally.failed > len(tally.failures):
        out.print(f"... and {tally.failed - len(tally.failures):,} more failed")


COMMANDS = (migrate_group,)
