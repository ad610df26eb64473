"""`entrepot ls`, `du`, `show`: what is in the cache. `rm`, `pin`, `unpin`: what is to go, and what is to stay."""

import asyncio
import contextlib
import json
import time
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from proxy import inventory, removal
from proxy.app import routes
from proxy.catalog import Catalog, Image
from proxy.commands.loading import config_option, load, refuse
from proxy.config import Config
from proxy.files import Tree, UnsafeDirectory
from proxy.inventory import Setting, age, size
from proxy.oci.digest import Digest
from proxy.oci.errors import OciError
from proxy.oci.reference import Reference, Repository, Tag
from proxy.routing import image as resolve
from proxy.stores.base import Pin
from proxy.stores.disk import DiskRepositories, announce_change, open_tree
from proxy.stores.limits import DiskLimits
from proxy.values import duration

EXIT_NOT_CACHED = 1

json_option = click.option("--json", "as_json", is_flag=True, help="For programs: sizes in bytes, times in UTC.")
images_argument = click.argument("images", nargs=-1, required=True, metavar="IMAGE...")


@click.command("ls")
@config_option
@json_option
@click.argument("patterns", nargs=-1, metavar="[PATTERN]...")
def ls_command(path: Path | None, as_json: bool, patterns: tuple[str, ...]) -> None:
    """List the images that are cached.

    PATTERN is a repository such as docker.io/library/nginx, with "*" for anything; all of them without one. SIZE is
    what is stored of an image, SHARED how much of it other images need as well. A tag is fresh while pulls of it do
    not ask upstream.
    """
    config = load(path)
    with _opened(config) as tree:
        setting, catalog = inventory.setting(config.upstream), Catalog(tree)
        images = catalog.images(lambda repository: _matches(repository, patterns))
    if as_json:
        click.echo(json.dumps([inventory.as_json(image, setting) for image in images], indent=2))
    elif not images:
        click.echo("Nothing is cached yet." if not patterns else "Nothing that is cached matches.")
    else:
        Console(highlight=False).print(_table(images, setting))


def _matches(repository: Repository, patterns: tuple[str, ...]) -> bool:
    return not patterns or any(fnmatchcase(str(repository), pattern) for pattern in patterns)


def _table(images: list[Image], setting: Setting) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("IMAGE", overflow="fold")
    for title, right in (("DIGEST", False), ("PLATFORMS", False), ("SIZE", True), ("SHARED", True)):
        table.add_column(title, justify="right" if right else "left", no_wrap=right or title == "DIGEST")
    table.add_column("LAST PULL", no_wrap=True)
    table.add_column("STATE")
    for image in images:
        pinned = ", pinned" if image.pin(setting.now) else ""
        table.add_row(
            Text(_names(image)), str(image.digest)[7:19], _platforms(image), size(image.size), size(image.shared),
            age(setting.now - image.pulled), f"{setting.state(image)}{pinned}",
        )  # fmt: skip
    return table


def _names(image: Image) -> str:
    tags = ", ".join(sorted(map(str, image.tags)))
    return f"{image.repository}:{tags}" if tags else f"{image.repository}"


def _platforms(image: Image) -> str:
    found = sorted({str(one.platform) for one in image.variants if one.platform is not None})
    return ", ".join(found) or "-"


@click.command("du")
@config_option
@json_option
def du_command(path: Path | None, as_json: bool) -> None:
    """Say where the bytes of the cache are.

    A blob counts in each repository that needs it, and once in the sum.
    """
    config = load(path)
    with _opened(config) as tree:
        usage = inventory.usage(Catalog(tree), tree)
    limit = config.store.max_size
    if as_json:
        repositories = {
            key: {"images": images, "size": stored, "shared": shared}
            for key, (images, stored, shared) in sorted(usage.repositories.items())
        }
        told = {"repositories": repositories, "others": usage.others, "total": usage.total, "max_size": limit}
        click.echo(json.dumps(told, indent=2))
        return
    table = Table(box=None, pad_edge=False)
    for title, justify in (("REPOSITORY", "left"), ("IMAGES", "right"), ("SIZE", "right"), ("SHARED", "right")):
        table.add_column(title, justify="right" if justify == "right" else "left", overflow="fold")
    for key, (images, stored, shared) in sorted(usage.repositories.items(), key=lambda item: -item[1][1]):
        table.add_row(key, str(images), size(stored), size(shared))
    console = Console(highlight=False)
    console.print(table)
    console.print()
    for what, count in usage.others.items():
        console.print(f"{size(count):>10}  {what}")
    console.print(f"{size(usage.total):>10}  in all, of {size(limit) if limit else 'as much as the disk has'}")


@click.command("show")
@config_option
@json_option
@click.argument("name", metavar="IMAGE")
def show_command(path: Path | None, as_json: bool, name: str) -> None:
    """Tell everything that is known of an image.

    Why it is fresh or stale, which platforms are whole, where it comes from and as whom, and what the next pull would
    cost. IMAGE is what a client would ask for: nginx:1.27, ghcr.io/acme/app@sha256:...
    """
    config = load(path)
    setting = inventory.setting(config.upstream)
    with _opened(config) as tree:
        image = _found(Catalog(tree), *_parsed(config, name), name)
        limits = asyncio.run(DiskLimits(tree).all())
    if as_json:
        click.echo(json.dumps(inventory.as_json(image, setting), indent=2))
        return
    console = Console(highlight=False)
    console.print(Text(_names(image), style="bold"), soft_wrap=True)
    for what, text in inventory.told(image, setting, limits):
        console.print(Text(f"  {what:<11} {text}"), soft_wrap=True)


@click.command("rm")
@config_option
@json_option
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@images_argument
def rm_command(path: Path | None, as_json: bool, dry_run: bool, images: tuple[str, ...]) -> None:
    """Take images out of the cache.

    With a tag, that tag goes, and the image with its last one. By digest, the image goes with all its tags. Blobs that
    other images need stay. A running server serves what it had for up to five seconds; the next pull asks upstream.
    """
    config = load(path)
    told = []
    with _opened(config) as tree:
        for name in images:
            repository, reference = _parsed(config, name)
            catalog = Catalog(tree)  # anew each time: what the one before needed alone may be this one's now
            image = _found(catalog, repository, reference, name)
            gone = removal.plan(catalog, image, reference if isinstance(reference, Tag) else None)
            freed = gone.size if dry_run else removal.carry_out(tree, gone)
            told.append(
                {"image": name, "tags": [str(tag) for tag in gone.tags], "freed": freed, "whole": bool(gone.links)}
            )
        if not dry_run:
            asyncio.run(announce_change(tree))
    if as_json:
        click.echo(json.dumps(told, indent=2))
        return
    verb = "would free" if dry_run else "freed"
    for one in told:
        rest = "" if one["whole"] else "; it stays under its other tags"
        click.echo(f"{one['image']}: {verb} {size(int(str(one['freed'])))}{rest}")


@click.command("pin")
@config_option
@click.option("--for", "span", metavar="DURATION", help="How long, such as 30d or 12h; without it, until unpinned.")
@images_argument
def pin_command(path: Path | None, span: str | None, images: tuple[str, ...]) -> None:
    """Keep images in the cache, however long nobody pulls them.

    A tag is pinned with whatever it stands for, now and later; by digest, just that. What is not cached yet may be
    pinned as well.
    """
    now = time.time()
    _pin(path, images, Pin(now, None if span is None else now + _seconds(span)))


@click.command("unpin")
@config_option
@images_argument
def unpin_command(path: Path | None, images: tuple[str, ...]) -> None:
    """Let images go again that were pinned."""
    _pin(path, images, None)


def _pin(path: Path | None, images: tuple[str, ...], pin: Pin | None) -> None:
    config = load(path)
    parsed = [(name, *_parsed(config, name)) for name in images]  # all of them first: none is pinned if one is wrong
    with _opened(config) as tree:
        repositories = DiskRepositories(tree)
        for name, repository, reference in parsed:
            if pin is None:
                asyncio.run(repositories.drop_pin(repository, reference))
            else:
                asyncio.run(repositories.put_pin(repository, reference, pin))
            until = "" if pin is None or pin.until is None else f" for {age(pin.until - pin.since)}"
            click.echo(f"{name}: {'unpinned' if pin is None else 'pinned'}{until}")


def _seconds(span: str) -> float:
    try:
        return duration(span)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--for") from None


def _parsed(config: Config, name: str) -> tuple[Repository, Reference]:
    try:
        return resolve(routes(config), name)
    except OciError as error:
        refuse(f"{name}: {error.message}")


def _found(catalog: Catalog, repository: Repository, reference: Tag | Digest, name: str) -> Image:
    image = catalog.find(repository, reference)
    if image is None:
        refuse(f"{name}: nothing of it is cached (see entrepot ls {repository})", EXIT_NOT_CACHED)
    return image


@contextlib.contextmanager
def _opened(config: Config) -> Iterator[Tree]:
    """The store, as a server would open it."""
    try:
        tree = open_tree(config.store.path)
    except UnsafeDirectory as error:
        refuse(error)
    except OSError as error:
        refuse(f"store.path: {error.filename or config.store.path} cannot be used ({error.strerror})")
    with contextlib.closing(tree):
        yield tree


COMMANDS = (ls_command, du_command, show_command, rm_command, pin_command, unpin_command)
