"""`entrepot warm`: images brought in before anybody asks for them."""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from proxy.app import App, build
from proxy.commands.images import EXIT_NOT_CACHED, json_option
from proxy.commands.loading import Duration, config_option, guarded, load, refuse
from proxy.config import Config
from proxy.inventory import size
from proxy.oci.errors import OciError
from proxy.oci.imagelist import Wish, parse
from proxy.oci.platform import Platform
from proxy.oci.reference import Reference, Repository
from proxy.stores.base import Pin
from proxy.telemetry import Metrics, quiet
from proxy.warming import Parts, Report, Warmed, Warming, platforms
from proxy.wishes import Wanted, put_tags, resolved

IMAGES_AT_ONCE = 4

file_option = click.option(
    "-f", "--file", "file", type=click.File(encoding="utf-8"), help="Images, one a line; # for comments."
)
platform_option = click.option(
    "--platform", "asked", multiple=True, metavar="OS/ARCH", help='Of an index; "all" for all of them.'
)


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be warmed, and for how long it is to stay (seconds; None: as any other)."""

    wanted: Wanted
    platforms: Sequence[Platform]
    keep: float | None


@click.command("warm")
@config_option
@json_option
@file_option
@platform_option
@click.option("--keep", type=Duration(), help="Pin the images for so long, such as 30d.")
@click.argument("images", nargs=-1, metavar="[IMAGE]...")
def warm_command(
    path: Path | None, as_json: bool, file: Any, asked: tuple[str, ...], keep: float | None, images: tuple[str, ...]
) -> None:
    """Bring images in before anybody asks for them.

    Of an index, the platform of this machine, or those that are named. What is there already is not fetched again, and
    what was broken off goes on where it was, so that it can simply be run again; beside a running server too. Exit
    status 1 if something could not be had.
    """
    config = load(path)
    order = Order(wishes(config, images, file), wanted(asked), keep)
    results: dict[str, Warmed | str] = {}
    guarded(lambda: bring(config, order, results))
    told = [_told(name, one) for name, one in results.items()]
    if as_json:
        click.echo(json.dumps(told, indent=2))
    else:
        for one in told:
            failures = "".join(f"\n  {failure}" for failure in one["failures"])
            click.echo(f"{one['image']}: {one['blobs']} blobs, {size(one['size'])}{failures}")
    if any(one["failures"] for one in told):
        raise SystemExit(EXIT_NOT_CACHED)


def wishes(config: Config, images: Sequence[str], file: Any) -> Wanted:
    """What is named, and what a file lists; ends with a word on what means nothing."""
    try:
        listed = [] if file is None else parse(file.read())
    except UnicodeDecodeError:
        raise click.BadParameter("is no text", param_hint="--file") from None
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--file") from None
    if not images and not listed:
        raise click.UsageError("Name images, or a file of them with -f.")
    try:
        return resolved(config.routes, [*map(Wish, images), *listed])
    except OciError as error:
        refuse(error.message)


def wanted(texts: Sequence[str]) -> list[Platform]:
    """The platforms that are named: this machine's by default, and an empty list for all."""
    try:
        return platforms(texts)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--platform") from None


def bars() -> Progress:
    """Progress bars of bytes on standard error, where that is a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(stderr=True)
    return Progress(*columns, console=console, disable=not console.is_terminal)


async def bring(config: Config, order: Order, results: dict[str, Warmed | str]) -> None:
    """Bring images in, and say of each what became of it."""
    with bars() as progress:
        async with build(config, quiet(), Metrics(CollectorRegistry())) as app:
            turns = asyncio.Semaphore(IMAGES_AT_ONCE)
            warming = Warming(app.manifests, app.blobs, order.platforms)

            async def one(name: str, repository: Repository, reference: Reference) -> None:
                async with turns:
                    report = _report(progress, progress.add_task(name, total=None))
                    results[name] = await _one(app, warming, order, (repository, reference), report)

            async def exactly(repository: Repository, parts: Parts) -> None:
                async with turns:
                    name = f"{repository}, as recorded"
                    report = _report(progress, progress.add_task(name, total=None))
                    results[name] = await _exactly(app, warming, order, (repository, parts), report)

            results.update(dict.fromkeys([name for name, *_ in order.wanted.images], ""))  # in the order of their names
            async with asyncio.TaskGroup() as group:
                for image in order.wanted.images:
                    group.create_task(one(*image))
                for parts in order.wanted.parts.items():
                    group.create_task(exactly(*parts))


async def _one(
    app: App, warming: Warming, order: Order, image: tuple[Repository, Reference], report: Report
) -> Warmed | str:
    try:
        if order.keep is not None:  # first, so that nothing of it goes while the rest comes
            await app.repositories.put_pin(*image, Pin(time.time(), time.time() + order.keep))
        return await warming.bring(*image, report)
    except OciError as error:
        return error.message
    except OSError as error:
        return f"the cache's disk fails ({error.strerror})"


async def _exactly(
    app: App, warming: Warming, order: Order, wanted: tuple[Repository, Parts], report: Report
) -> Warmed | str:
    repository, parts = wanted
    try:
        for digest in parts.manifests if order.keep is not None else ():
            await app.repositories.put_pin(repository, digest, Pin(time.time(), time.time() + (order.keep or 0.0)))
        warmed = await warming.exactly(repository, parts, report)
        await put_tags(app.repositories, repository, parts)
    except OSError as error:
        return f"the cache's disk fails ({error.strerror})"
    return warmed


def _report(progress: Progress, task: TaskID) -> Report:
    return Report(
        found=lambda count: progress.update(task, total=count),
        arrived=lambda count: progress.advance(task, count),
    )


def _told(name: str, result: Warmed | str) -> dict[str, Any]:
    if isinstance(result, str):
        return {"image": name, "digest": None, "blobs": 0, "size": 0, "failures": [result]}
    return {
        "image": name,
        "digest": None if result.digest is None else str(result.digest),
        "blobs": len(result.blobs),
        "size": sum(result.blobs.values()),
        "failures": result.failures,
    }


COMMANDS = (warm_command,)
