"""`entrepot lifecycle`: what goes by lifecycle policies, before it does and on demand."""

import json
from itertools import groupby
from pathlib import Path

import click
from rich.table import Table
from rich.text import Text

from proxy.commands.images import asked, json_option, server_option
from proxy.commands.loading import config_option, console, refuse
from proxy.config import policy_text
from proxy.desk import Answer
from proxy.inventory import size

NOTHING = "Nothing is to go."

patterns_argument = click.argument("patterns", nargs=-1, metavar="[PATTERN]...")


@click.group("lifecycle")
def lifecycle_group() -> None:
    """Tell what goes by lifecycle policies, or have it go now.

    A policy is JSON as Amazon ECR knows it, configured for some repositories by [[lifecycle]]; a server applies it each
    hour. Images may expire by their last pull, by age, or by number, and pinned and frozen ones stay.

    \b
      entrepot lifecycle preview                    what would go now, and why
      entrepot lifecycle preview --policy FILE      what would go by another one
      entrepot lifecycle apply                      have it go
    """


@lifecycle_group.command("preview")
@config_option
@server_option
@json_option
@click.option(
    "--policy", "file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Try this policy, and not those that are configured.",
)  # fmt: skip
@patterns_argument
def preview_command(
    path: Path | None, server: str | None, as_json: bool, file: Path | None, patterns: tuple[str, ...]
) -> None:
    """Say what would go now, by which rule, and why.

    PATTERN is a repository such as docker.io/library/nginx, with "*" for anything; all of them without one. An image
    that a rule takes, but that is pinned, frozen or the like, is listed with what keeps it.
    """
    policy = None if file is None else _text(file)
    told = asked(path, server, lambda desk: desk.preview(patterns, policy))
    if as_json:
        click.echo(json.dumps(told, indent=2))
        return
    if not told["policies"]:
        click.echo("No lifecycle policy is configured: write [[lifecycle]], or try one with --policy.")
        return
    _print(told)
    going = [one for one in told["images"] if one["kept"] is None]
    kept = len(told["images"]) - len(going)
    stays = f"; {kept} {'stays' if kept == 1 else 'stay'} all the same" if kept else ""
    click.echo(
        f"{_count(len(going))} would go, and {size(told['freed'])} with them{stays}." if told["images"] else NOTHING
    )


@lifecycle_group.command("apply")
@config_option
@server_option
@json_option
@patterns_argument
def apply_command(path: Path | None, server: str | None, as_json: bool, patterns: tuple[str, ...]) -> None:
    """Have go now what the policies say, and tell what went.

    PATTERN is a repository such as docker.io/library/nginx, with "*" for anything; all of them without one. An image
    that is pulled meanwhile stays. A running server notices within five seconds.
    """
    told = asked(path, server, lambda desk: desk.apply(patterns))
    if as_json:
        click.echo(json.dumps(told, indent=2))
        return
    _print(told)
    click.echo(
        f"{_count(len(told['images']))} went, and {size(told['freed'])} with them." if told["images"] else NOTHING
    )


def _text(file: Path) -> str:
    """The policy of a file, which is known to be one."""
    try:
        return policy_text(file)
    except ValueError as error:
        refuse(f"--policy: {error}")


def _count(images: int) -> str:
    return "One image" if images == 1 else f"{images:,} images"


def _print(told: Answer) -> None:
    """A table for each rule of each policy; in it, the oldest image first."""
    out = console()
    order = {policy["name"]: place for place, policy in enumerate(told["policies"])}
    by_rule = sorted(told["images"], key=lambda one: (order[one["policy"]], one["rule"]))
    for (policy, rule), taken in groupby(by_rule, key=lambda one: (one["policy"], one["rule"])):
        some = list(taken)
        description = f": {some[0]['description']}" if some[0]["description"] else ""
        out.print(Text(f"{policy}, rule {rule}{description}", style="bold"), soft_wrap=True)
        table = Table(box=None, pad_edge=False)
        table.add_column("  IMAGE", overflow="fold")
        table.add_column("DIGEST", no_wrap=True)
        table.add_column("FREED", justify="right", no_wrap=True)
        table.add_column("WHY", overflow="fold")
        for one in some:
            why = f"kept: {one['kept']}" if one["kept"] else one["why"]
            tags = [f"{one['repository']}:{one['tags'][0]}", *one["tags"][1:]] if one["tags"] else [one["repository"]]
            table.add_row(Text(f"  {', '.join(tags)}"), one["digest"][7:19], size(one["freed"]), why)
        out.print(table)
        out.print()


COMMANDS = (lifecycle_group,)
