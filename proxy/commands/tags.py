"""`entrepot moves`, `freeze`, `unfreeze`: what tags have stood for, and what they are to stand for."""

import json
from pathlib import Path

import click
from rich.table import Table

from proxy.commands.images import asked, images_argument, json_option, say, server_option
from proxy.commands.loading import Moment, Since, config_option, console


@click.command("moves")
@config_option
@server_option
@json_option
@click.option("--since", type=Since(), help="A date, a time, or a span such as 7d; everything without it.")
@click.argument("patterns", nargs=-1, metavar="[PATTERN]...")
def moves_command(
    path: Path | None, server: str | None, as_json: bool, since: float | None, patterns: tuple[str, ...]
) -> None:
    """Tell which tags have moved, and when.

    PATTERN is a repository such as docker.io/library/nginx, with "*" for anything. What is told is what the cache has
    seen: a tag that moves twice between two pulls has moved once.
    """
    found = asked(path, server, lambda desk: desk.moves(patterns, since or 0.0))
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    if not found:
        click.echo("No tag has moved.")
        return
    table = Table(box=None, pad_edge=False)
    for title in ("WHEN", "IMAGE", "FROM", "TO"):
        table.add_column(title, overflow="fold", no_wrap=title != "IMAGE")
    for one in found:
        table.add_row(one["at"], one["image"], "new" if one["from"] is None else one["from"][7:19], one["to"][7:19])
    console().print(table)


@click.command("freeze")
@config_option
@server_option
@json_option
@click.option("--as-of", "when", type=Moment(), help="What the tags stood for then, such as 2026-11-01.")
@images_argument
def freeze_command(
    path: Path | None, server: str | None, as_json: bool, when: float | None, images: tuple[str, ...]
) -> None:
    """Have tags stay what they are, until unfrozen.

    Every client gets that, whatever upstream says, and upstream is not asked. A running server notices within five
    seconds.
    """
    frozen = asked(path, server, lambda desk: desk.freeze(images, when))
    say(frozen, lambda one: f"frozen at {one['frozen']}", as_json)


@click.command("unfreeze")
@config_option
@server_option
@json_option
@images_argument
def unfreeze_command(path: Path | None, server: str | None, as_json: bool, images: tuple[str, ...]) -> None:
    """Have tags follow upstream again."""
    say(asked(path, server, lambda desk: desk.unfreeze(images)), lambda _: "follows upstream", as_json)


COMMANDS = (moves_command, freeze_command, unfreeze_command)
