"""`entrepot ls`, `du`, `show`: what is cached. `rm`, `pin`, `unpin`, `refresh`: what goes, stays, and is asked anew."""

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

import click
from prometheus_client import CollectorRegistry
from rich.table import Table
from rich.text import Text

from proxy.app import build
from proxy.commands.loading import Duration, config_option, console, load, refuse
from proxy.commands.remote import Remote, Unanswered
from proxy.config import Config
from proxy.desk import Answer, Desk
from proxy.files import UnsafeDirectory
from proxy.frontdoor import Closed, Told
from proxy.inventory import age, age_of, size
from proxy.oci.errors import OciError
from proxy.oci.reference import Reference, Repository
from proxy.stores.directory import open_tree
from proxy.telemetry import Metrics, quiet

EXIT_NOT_CACHED = 1

T = TypeVar("T")
Where = Desk | Remote

json_option = click.option("--json", "as_json", is_flag=True, help="For programs: sizes in bytes, times in UTC.")
server_option = click.option(
    "--server", metavar="URL",
    help="Ask a running server, at its admin.listen, and not the directory. Its token is taken from ENTREPOT_TOKEN.",
)  # fmt: skip
images_argument = click.argument("images", nargs=-1, required=True, metavar="IMAGE...")


@click.command("ls")
@config_option
@server_option
@json_option
@click.argument("patterns", nargs=-1, metavar="[PATTERN]...")
def ls_command(path: Path | None, server: str | None, as_json: bool, patterns: tuple[str, ...]) -> None:
    """List the images that are cached.

    PATTERN is a repository such as docker.io/library/nginx, with "*" for anything; all of them without one. SIZE is
    what is stored of an image, SHARED how much of it other images need as well. A tag is fresh while pulls of it do
    not ask upstream.
    """
    images = asked(path, server, lambda desk: desk.images(patterns))
    if as_json:
        click.echo(json.dumps(images, indent=2))
    elif not images:
        click.echo("Nothing is cached yet." if not patterns else "Nothing that is cached matches.")
    else:
        console().print(_table(images))


def _table(images: Sequence[Answer]) -> Table:
    table = _titles(("IMAGE", "DIGEST", "PLATFORMS"), ("SIZE", "SHARED"))
    table.add_column("LAST PULL", no_wrap=True)
    table.add_column("STATE", overflow="fold")
    for image in images:
        platforms = sorted({str(one["platform"]) for one in image["platforms"] if one["platform"] is not None})
        pinned = ", pinned" if image["pinned"] and not image["pinned"]["deleted"] else ""
        table.add_row(
            Text(image["image"]), image["digest"][7:19], ", ".join(platforms) or "-", size(image["size"]),
            size(image["shared"]), age_of(image["pulled"]), f"{image['state']}{pinned}",
        )  # fmt: skip
    return table


def _titles(left: Sequence[str], right: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in left:
        table.add_column(title, overflow="fold", no_wrap=title == "DIGEST")
    for title in right:
        table.add_column(title, justify="right", no_wrap=True)
    return table


@click.command("du")
@config_option
@server_option
@json_option
def du_command(path: Path | None, server: str | None, as_json: bool) -> None:
    """Say where the bytes of the cache are.

    A blob counts in each repository that needs it, and once in the sum.
    """
    usage = asked(path, server, lambda desk: desk.usage())
    if as_json:
        click.echo(json.dumps(usage, indent=2))
        return
    table = _titles(("REPOSITORY",), ("IMAGES", "SIZE", "SHARED"))
    for one in sorted(usage["repositories"], key=lambda one: -int(one["size"])):
        table.add_row(one["repository"], str(one["images"]), size(one["size"]), size(one["shared"]))
    out, limit = console(), usage["max_size"]
    out.print(table)
    out.print()
    out.print(f"{size(usage['images']):>10}  images")
    out.print(f"{size(usage['unneeded']):>10}  blobs that no cached manifest names")
    out.print(f"{size(usage['downloads']):>10}  downloads")
    out.print(f"{size(usage['total']):>10}  in all, of {size(limit) if limit else 'as much as the disk has'}")
    if usage["quarantine"]:
        out.print(f"{size(usage['quarantine']):>10}  besides, in quarantine: what was damaged, for a week")


@click.command("show")
@config_option
@server_option
@json_option
@click.argument("name", metavar="IMAGE")
def show_command(path: Path | None, server: str | None, as_json: bool, name: str) -> None:
    """Tell all that is known of an image.

    Why it is fresh or stale, which platforms are whole, where it comes from and as whom, and what the next pull would
    cost. IMAGE is what a client would ask for: nginx:1.27, ghcr.io/acme/app@sha256:...
    """
    image = asked(path, server, lambda desk: desk.show(name))
    told = image.pop("told")
    if as_json:
        click.echo(json.dumps(image, indent=2))
        return
    out = console()
    out.print(Text(image["image"], style="bold"), soft_wrap=True)
    for what, text in told:
        out.print(Text(f"  {what:<11} {text}"), soft_wrap=True)


@click.command("rm")
@config_option
@server_option
@json_option
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@images_argument
def rm_command(path: Path | None, server: str | None, as_json: bool, dry_run: bool, images: tuple[str, ...]) -> None:
    """Take images out of the cache.

    With a tag, that tag goes, and the image with its last one. By digest, the image goes with all its tags. Blobs that
    other images need stay. A running server serves what it had for up to five seconds; the next pull asks upstream.
    """
    gone = asked(path, server, lambda desk: desk.remove(images, dry_run=dry_run))
    verb = "would free" if dry_run else "freed"

    def sentence(one: Answer) -> str:
        return f"{verb} {size(one['freed'])}{'' if one['whole'] else '; it stays under its other tags'}"

    say(gone, sentence, as_json)


@click.command("pin")
@config_option
@server_option
@json_option
@click.option("--for", "seconds", type=Duration(), help="How long, such as 30d or 12h; without it, until unpinned.")
@images_argument
def pin_command(
    path: Path | None, server: str | None, as_json: bool, seconds: float | None, images: tuple[str, ...]
) -> None:
    """Keep images, however long nobody pulls them.

    A tag is pinned with whatever it stands for, now and later; by digest, just that. What is not cached yet may be
    pinned as well.
    """
    pinned = asked(path, server, lambda desk: desk.pin(images, seconds))
    say(pinned, lambda _: f"pinned{'' if seconds is None else f' for {age(seconds)}'}", as_json)


@click.command("unpin")
@config_option
@server_option
@json_option
@images_argument
def unpin_command(path: Path | None, server: str | None, as_json: bool, images: tuple[str, ...]) -> None:
    """Let images go again that were pinned."""
    say(asked(path, server, lambda desk: desk.unpin(images)), lambda _: "unpinned", as_json)


@click.command("refresh")
@config_option
@server_option
@json_option
@images_argument
def refresh_command(path: Path | None, server: str | None, as_json: bool, images: tuple[str, ...]) -> None:
    """Ask upstream now what tags stand for, however fresh they are.

    By way of the server, if it runs, so that its clients get what is new at once; it asks by HEAD, which costs no pull
    unless the tag has moved. Exit status 1 if upstream did not answer, or has no such tag.
    """
    config = load(path)
    answers = asked(path, server, lambda desk: _refreshed(config, desk, images))
    say(answers, _moved, as_json)
    if any(one["error"] or one["warning"] for one in answers):
        raise SystemExit(EXIT_NOT_CACHED)


def _moved(one: Answer) -> str:
    if one["error"]:
        return str(one["error"])
    if one["warning"]:
        return f"not asked: {one['warning'].partition(chr(34))[2].rstrip(chr(34))}"
    if one.get("held") and one["before"] == one["digest"]:
        return f"not asked, for it is frozen or sealed: {one['digest']}"
    if one["before"] == one["digest"]:
        return f"unchanged, {one['digest']}"
    return f"cached, {one['digest']}" if one["before"] is None else f"moved from {one['before']} to {one['digest']}"


def _refreshed(config: Config, desk: Where, images: Sequence[str]) -> list[Answer]:
    if isinstance(desk, Remote):
        return desk.refresh(images)
    try:
        return asyncio.run(desk.refresh(images))
    except Closed:
        return asyncio.run(_without_server(config, desk, images))


async def _without_server(config: Config, desk: Desk, images: Sequence[str]) -> list[Answer]:
    async with build(config, quiet(), Metrics(CollectorRegistry())) as app:

        async def ask(repository: Repository, reference: Reference) -> Told:
            try:
                served = await app.manifests.get(repository, reference, anew=True)
            except OciError as error:
                return Told(error=error.message)
            return Told(str(served.manifest.digest), served.warning and f'299 - "{served.warning}"')

        return await desk.refresh(images, ask)


def say(answers: Sequence[Answer], sentence: Callable[[Answer], str], as_json: bool) -> None:
    """A line for each image, or all of it for programs."""
    if as_json:
        click.echo(json.dumps(answers, indent=2))
        return
    for one in answers:
        click.echo(f"{one['image']}: {sentence(one)}")


def asked(path: Path | None, server: str | None, question: Callable[[Where], T]) -> T:
    """The answer of a server, or of the directory; what is wrong is said in a line."""
    with excused(), _opened(path, server) as desk:
        return question(desk)


@contextlib.contextmanager
def excused() -> Iterator[None]:
    """What cannot be answered is said in a line, and ends the command."""
    try:
        yield
    except OciError as error:
        refuse(error, EXIT_NOT_CACHED if error.problem.status == HTTPStatus.NOT_FOUND else 2)  # as over HTTP
    except (Unanswered, UnsafeDirectory) as error:
        refuse(error)
    except OSError as error:
        refuse(f"store.path: {error.filename or ''} cannot be used ({error.strerror})")


@contextlib.contextmanager
def _opened(path: Path | None, server: str | None) -> Iterator[Where]:
    if server is not None:
        yield Remote(server)
        return
    config = load(path)
    with contextlib.closing(open_tree(config.store.path)) as tree:
        yield Desk(config, tree)


COMMANDS: tuple[Any, ...] = (
    ls_command, du_command, show_command, rm_command, pin_command, unpin_command, refresh_command,
)  # fmt: skip
