"""`entrepot export`, `entrepot import`: images in a file, for where there is no network."""

import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from prometheus_client import CollectorRegistry

from proxy import exporting
from proxy.app import App, build
from proxy.commands.images import EXIT_NOT_CACHED, json_option
from proxy.commands.loading import Duration, config_option, guarded, load, refuse
from proxy.commands.warm import Order, bars, bring, file_option, platform_option, wanted, wishes
from proxy.config import Config
from proxy.exporting import Earlier, Exported, ExportFailed, Exporting
from proxy.files import Tree, hop, reading, replacing
from proxy.importing import ImportFailed, Importing
from proxy.importing import named as importable
from proxy.inventory import size
from proxy.oci.errors import OciError
from proxy.oci.layout import Entry
from proxy.oci.tar import TarInvalid
from proxy.routing import image as resolve
from proxy.stores.base import Pin
from proxy.stores.directory import announce_change, open_tree
from proxy.telemetry import Metrics, quiet
from proxy.warming import Warmed, here


class Bundle(click.ParamType[Path | None]):
    """A file; None for standard input or output."""

    name = "bundle"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path | None:
        if not value:
            self.fail("is empty: name a file, or - for none", param, ctx)
        return None if value == "-" else Path(value)


@dataclass(frozen=True, slots=True)
class Shipment:
    """What is to be exported: images, what was exported before, and where to (None: standard output)."""

    order: Order
    since: Sequence[Path]
    bundle: Path | None


@click.command("export")
@config_option
@json_option
@file_option
@platform_option
@click.option("--since", multiple=True, type=click.Path(path_type=Path), metavar="OLD.tar", help="Leave out its blobs.")
@click.option("--cached", is_flag=True, help="Only what is cached: ask upstream nothing.")
@click.argument("images", nargs=-1, metavar="[IMAGE]...")
@click.argument("bundle", type=Bundle(), metavar="BUNDLE.tar")
def export_command(  # noqa: PLR0913, PLR0917  click hands over each option
    path: Path | None, as_json: bool, file: Any, asked: tuple[str, ...], since: tuple[Path, ...], cached: bool,
    images: tuple[str, ...], bundle: Path | None,
) -> None:  # fmt: skip
    """Put images into a file, for where there is no network.

    The file is an OCI image layout in a tar: entrepot import, skopeo, crane, ctr, podman load and docker load read it;
    "-" is standard output. What is not cached yet is brought in first, as entrepot warm does. With --since, which may
    be given more than once, what an earlier bundle has is left out: that one is imported first. Nothing is written
    unless everything could be had; exit status 1 then.
    """
    config = load(path)
    if bundle is not None and bundle.resolve() in {one.resolve() for one in since}:
        raise click.BadParameter(
            "the new bundle needs it, and would take its place: name another", param_hint="--since"
        )
    shipment = Shipment(Order(wishes(config, images, file), wanted(asked), None), since, bundle)
    warmed: dict[str, Warmed | str] = {}
    if not cached:
        guarded(lambda: bring(config, shipment.order, warmed))
        _check(warmed)
    told: dict[str, Any] = {}
    try:
        guarded(lambda: _export(config, shipment, warmed, told))
    except ExportFailed as error:
        refuse(error, EXIT_NOT_CACHED)
    _say(told, as_json, to_stderr=bundle is None)


def _check(warmed: dict[str, Warmed | str]) -> None:
    """End, with a word on each, if something could not be had."""
    failures = [
        f"{name}: {failure}"
        for name, one in warmed.items()
        for failure in ([one] if isinstance(one, str) else one.failures)
    ]
    if failures:
        refuse("\n".join([*failures, "nothing is exported (--cached takes what is there)"]), EXIT_NOT_CACHED)


async def _export(config: Config, shipment: Shipment, warmed: dict[str, Warmed | str], told: dict[str, Any]) -> None:
    with contextlib.closing(await hop(open_tree, config.store.path)) as tree:
        found = await hop(_gathered, tree, shipment.order, warmed)
        images = [one for _, one in found]
        earlier = await _earlier(shipment.since)
        blobs = exporting.included(images, earlier)
        told |= {
            "bundle": "-" if shipment.bundle is None else str(shipment.bundle),
            "images": [
                {
                    "image": name,
                    "digest": str(one.entry.top.digest),
                    "blobs": len(one.blobs),
                    "size": sum(one.blobs.values()),
                }
                for name, one in found
            ],
            "blobs": len(blobs),
            "size": sum(blobs.values()),
            "left_out": len({digest for one in images for digest in one.blobs} - blobs.keys()),
        }
        with bars() as progress:
            async with replacing(shipment.bundle) as stream:
                task = progress.add_task(stream.name, total=told["size"])
                await exporting.write(tree, images, earlier, stream, lambda count: progress.advance(task, count))


def _gathered(tree: Tree, order: Order, warmed: dict[str, Warmed | str]) -> list[tuple[str, Exported]]:
    exporting, found, failures = Exporting(tree, order.platforms, here()), list[tuple[str, Exported]](), []
    for name, repository, reference in order.wanted.images:
        known = warmed.get(name)
        digest = known.digest if isinstance(known, Warmed) else exporting.meant(repository, reference)
        try:
            if digest is None:
                raise ExportFailed("nothing of it is cached")  # noqa: TRY301
            found.append((name, exporting.image(repository, reference, digest)))
        except ExportFailed as error:
            failures.append(f"{name}: {error}")
    for repository, parts in order.wanted.parts.items():
        try:
            found += [(one.entry.name or "", one) for one in exporting.exactly(repository, parts)]
        except ExportFailed as error:
            failures.append(f"{repository}: {error}")
    if failures:
        refuse("\n".join([*failures, "nothing is exported"]), EXIT_NOT_CACHED)
    return found


async def _earlier(paths: Sequence[Path]) -> Earlier:
    found = set()
    for path in paths:
        async with reading(path) as stream:
            try:
                found |= await exporting.contents(stream)
            except (TarInvalid, OciError) as error:
                refuse(f"--since {path}: {error}")
    return Earlier([ascii(path.name)[1:-1] for path in paths], found)


def _say(told: dict[str, Any], as_json: bool, to_stderr: bool) -> None:
    if as_json:
        click.echo(json.dumps(told, indent=2), err=to_stderr)
        return
    for one in told["images"]:
        click.echo(f"{one['image']}: {_sized(one)}", err=to_stderr)
    left = f"; {told['left_out']} blobs left out" if told["left_out"] else ""
    click.echo(f"{told['bundle']}: {_sized(told)}{left}", err=to_stderr)


def _sized(told: dict[str, Any]) -> str:
    return f"{told['blobs']} blobs, {size(told['size'])}"


@click.command("import")
@config_option
@json_option
@click.option("--as", "names", multiple=True, metavar="IMAGE", help="What an image is called that has no full name.")
@click.option("--keep", type=Duration(), help="Pin the images for so long, such as 30d.")
@click.argument("bundle", type=Bundle(), metavar="BUNDLE.tar")
def import_command(
    path: Path | None, as_json: bool, names: tuple[str, ...], keep: float | None, bundle: Path | None
) -> None:
    """Take images out of a file, into the cache.

    Beside a running server too. The file is one that entrepot export made, or any OCI image layout in a tar, by skopeo
    or docker buildx; "-" is standard input. Every blob is held against its digest, and an image is there once all that
    it needs is. Other tools often write no full name: --as docker.io/library/app:1 says it, once for each such image,
    in their order. Exit status 1 if an image could not be imported.
    """
    config = load(path)
    told: dict[str, Any] = {"images": []}
    try:
        guarded(lambda: _import(config, bundle, names, keep, told))
    except ImportFailed as error:
        refuse(f"{bundle or 'standard input'}: {error}", EXIT_NOT_CACHED)
    if as_json:
        click.echo(json.dumps(told, indent=2))
    else:
        for one in told["images"]:
            click.echo(f"{one['image']}: {one['failure'] or _sized(one)}")
        click.echo(f"{told['bundle']}: {size(told['new'])} that the cache did not have")
    if any(one["failure"] for one in told["images"]):
        raise SystemExit(EXIT_NOT_CACHED)


async def _import(
    config: Config, bundle: Path | None, names: Sequence[str], keep: float | None, told: dict[str, Any]
) -> None:
    async with build(config, quiet(), Metrics(CollectorRegistry())) as app, reading(bundle) as stream:
        importing = Importing(app.means, app.repositories)
        with bars() as progress:
            task = progress.add_task(stream.name, total=stream.size)
            layout = await importing.read(stream, lambda done: progress.update(task, completed=done))
        told |= {"bundle": stream.name, "new": importing.new}
        try:
            for image in importable(layout, names):
                told["images"].append(await _imported(config, app, importing, image, keep))
        finally:
            await announce_change(app.means.tree)


async def _imported(
    config: Config, app: App, importing: Importing, image: tuple[str, Entry], keep: float | None
) -> dict[str, Any]:
    name, entry = image
    told = {"image": _printable(name), "digest": str(entry.top.digest)}
    try:
        repository, reference = resolve(config.routes, name)
        found = await importing.image(repository, reference, entry)
        if keep is not None:
            await app.repositories.put_pin(repository, reference, Pin(time.time(), time.time() + keep))
    except (OciError, ImportFailed) as error:
        return {**told, "blobs": 0, "size": 0, "failure": _printable(str(error))}
    return {**told, "blobs": len(found.blobs), "size": sum(found.blobs.values()), "failure": None}


def _printable(text: str) -> str:
    """What a bundle says must not drive the terminal."""
    return text if text.isprintable() else ascii(text)[1:-1]


COMMANDS = (export_command, import_command)
