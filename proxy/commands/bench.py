"""`entrepot bench`: how long pulls take here, directly and through the cache."""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from yarl import URL

from proxy import plot
from proxy.benching import Measurement, measure
from proxy.commands.figures import Plan, document, tell, tell_plan
from proxy.commands.images import excused, server_option
from proxy.commands.loading import EXIT_CONFIG, EXIT_CTRL_C, config_option, console, guarded, load, refuse
from proxy.commands.remote import Remote
from proxy.commands.site import Site, Wanted
from proxy.commands.warm import bars
from proxy.desk import Desk
from proxy.frontdoor import FrontDoor
from proxy.oci.platform import Platform
from proxy.sources import MemoryLimits
from proxy.stores.directory import open_tree
from proxy.stores.limits import DiskLimits
from proxy.warming import here

EXIT_ENDED = 1  # by what upstream or the cache said


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for, beside the images: where the cache is, what is agreed to, and where results go."""

    through: str | None
    server: str | None
    is_dry: bool
    is_agreed: bool
    json_file: Path | None
    plot_file: Path | None


@click.command("bench")
@config_option
@server_option
@click.option("--through", metavar="URL", help="The cache, as its clients know it; without it, at server.listen.")
@click.option("--runs", type=click.IntRange(1, 1000), default=5, show_default=True, help="Pulls of each kind.")
@click.option("--cold", type=click.IntRange(0, 100), metavar="N",
              help="Cold pulls, before each of which the image is taken out of the cache. Without it: one, of what is "
              "not cached yet.")  # fmt: skip
@click.option("--direct/--no-direct", "is_direct", default=True, help="Pull from the registry itself as well.")
@click.option("--platform", metavar="OS/ARCH", help="Of an index; without it, this machine's.")
@click.option("--downloads", "at_once", type=click.IntRange(1, 64), default=3, show_default=True,
              help="Layers at a time: containerd and Docker take three.")  # fmt: skip
@click.option("--dry-run", "is_dry", is_flag=True, help="Only say what would be done, and what it would cost.")
@click.option("--yes", "is_agreed", is_flag=True, help="Begin without a question.")
@click.option("--json", "json_file", metavar="FILE", type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
              help='Every single pull, for programs; "-" for standard output.')  # fmt: skip
@click.option("--plot", "plot_file", metavar="FILE.svg", type=click.Path(dir_okay=False, path_type=Path),
              help="A drawing: a dot for each pull.")  # fmt: skip
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
def bench_command(  # noqa: PLR0913  an option is an argument
    *, path: Path | None, images: tuple[str, ...], runs: int, cold: int | None, is_direct: bool, platform: str | None,
    at_once: int, **options: Any,
) -> None:  # fmt: skip
    """Measure pulls, directly and through the cache.

    From the registry itself, through the cache for the first time, and after that: each phase of a pull as containerd
    does it, several times, in percentiles. Every byte is held against its digest, and none is kept. What it will cost
    upstream is said, and agreed to, before it starts: to know that, each image's manifests are asked for once. It stops
    where a rate limit leaves no more than rate_reserve. Exit status 1 if it ended early, or there is no such image, and
    2 if it was refused.
    """
    chosen = Options(**options)
    _check_files(chosen)
    wanted = Wanted(tuple(dict.fromkeys(images)), _platform(platform), runs, cold, is_direct, at_once)
    out = Console(stderr=True, highlight=False) if chosen.json_file == Path("-") else console()
    measurement, plans = Measurement(), list[Plan]()
    with excused(), _site(path, chosen) as site:
        guarded(lambda: _planned(site, wanted, plans))
        tell_plan(plans[0], out)
        if not chosen.is_dry:
            _agree(chosen)
            guarded(lambda: _measured(site, plans[0], measurement))
            tell(plans[0], measurement, out)
    _write(chosen, plans[0], measurement)
    _end(measurement)


def _end(measurement: Measurement) -> None:
    if measurement.ended_by is None:
        return
    name, lost = measurement.missing, ""
    if name is not None:
        lost = f"\n{name} was taken out of the cache for a cold pull: entrepot warm {name} brings it back"
    refuse(f"ended early: {measurement.ended_by}{lost}", EXIT_CTRL_C if measurement.is_interrupted else EXIT_ENDED)


def _platform(text: str | None) -> Platform:
    try:
        return here() if text is None else Platform.parse(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--platform") from None


def _check_files(options: Options) -> None:
    """Before anything is measured that could then not be written."""
    if options.plot_file is not None and options.plot_file.suffix.lower() != ".svg":
        raise click.BadParameter("SVG is what is drawn: write a name that ends in .svg", param_hint="--plot")
    for hint, file in (("--json", options.json_file), ("--plot", options.plot_file)):
        if file is None or file == Path("-"):
            continue
        if not file.parent.is_dir():
            raise click.BadParameter(f"there is no directory {file.parent}", param_hint=hint)
        if not os.access(file if file.exists() else file.parent, os.W_OK):
            raise click.BadParameter(f"{file} cannot be written", param_hint=hint)
    if options.is_dry and options.plot_file is not None:
        raise click.BadParameter("a dry run measures nothing that could be drawn", param_hint="--plot")


def _registry_url(text: str) -> str:
    try:
        url = URL(text)
        is_good = url.scheme in {"http", "https"} and bool(url.host) and url.path in {"", "/"}
    except ValueError:
        is_good = False
    if not is_good:
        raise click.BadParameter(f"{text} is no URL of a registry: write http://127.0.0.1:5000", param_hint="--through")
    return text.rstrip("/")


@contextlib.contextmanager
def _site(path: Path | None, options: Options) -> Iterator[Site]:
    """The cache that is measured. Where only its address is known, nobody tells what it holds."""
    config = load(path)
    url = FrontDoor(config.server).url if options.through is None else _registry_url(options.through)
    key = "server.listen, or name it by --through" if options.through is None else "--through"
    if options.server is not None:
        yield Site(config, url, key, MemoryLimits(), Remote(options.server))
    elif options.through is not None:
        yield Site(config, url, key, MemoryLimits(), None)
    else:
        with contextlib.closing(open_tree(config.store.path)) as tree:
            yield Site(config, url, key, DiskLimits(tree), Desk(config, tree))


async def _planned(site: Site, wanted: Wanted, plans: list[Plan]) -> None:
    plans.append(await site.plan(wanted))


def _agree(options: Options) -> None:
    """Ask whether to begin; ends the command where the answer is no, or cannot be had."""
    if options.is_agreed:
        return
    if not sys.stdin.isatty():
        refuse("--yes: it begins once that is agreed to, and there is no terminal to ask on", EXIT_CONFIG)
    if not click.confirm("Begin?", err=True):
        refuse("nothing was measured", EXIT_CONFIG)


async def _measured(site: Site, plan: Plan, measurement: Measurement) -> None:
    with bars() as progress:
        task = progress.add_task("bench", total=sum(one.image.size * len(one.steps()) for one in plan.orders))
        bench = site.bench(
            plan,
            began=lambda image, step: progress.update(task, description=f"{image.name}, {step.way}"),
            arrived=lambda count: progress.advance(task, count),
        )
        try:
            await measure(plan.orders, bench, measurement, at_once=plan.at_once)
        except asyncio.CancelledError:  # Ctrl-C: what was measured by then is told
            measurement.ended_by, measurement.is_interrupted = "it was interrupted", True


def _write(options: Options, plan: Plan, measurement: Measurement) -> None:
    texts: Sequence[tuple[str, Path | None, str]] = (
        ("--json", options.json_file, json.dumps(document(plan, measurement), indent=2) + "\n"),
        ("--plot", options.plot_file, plot.draw(measurement.runs)),
    )
    for hint, file, text in texts:
        if file == Path("-"):
            click.echo(text, nl=False)
        elif file is not None:
            try:
                file.write_text(text, encoding="utf-8")
            except OSError as error:
                refuse(f"{hint}: {file} cannot be written ({error.strerror})", EXIT_ENDED)


COMMANDS = (bench_command,)
