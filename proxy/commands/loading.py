"""What every command has: the configuration, one line for what is wrong with it, and where its tables go."""

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, NoReturn

import click
import uvloop
from rich.console import Console

from proxy import config
from proxy.config import Config, ConfigError
from proxy.files import UnsafeDirectory, Unusable
from proxy.values import duration, moment, size

EXIT_CONFIG = 2
EXIT_CTRL_C = 130
WIDE = 10_000  # columns: more than a line of any table has

config_option = click.option(
    "--config", "path", type=click.Path(path_type=Path, dir_okay=False), envvar="ENTREPOT_CONFIG",
    show_envvar=True,
    help="The configuration, in TOML. Without one: 127.0.0.1:5000, the public registries, a cache in your home.",
)  # fmt: skip


class Duration(click.ParamType[float]):
    """Seconds, as people write them: 30d, 1h30m."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return duration(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Size(click.ParamType[int]):
    """Bytes, as people write them: 500MB, "2 GiB"."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return size(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Moment(click.ParamType[float]):
    """Unix seconds, as people write them: 2026-11-01, 2026-11-01T12:00:00Z."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return moment(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Since(click.ParamType[float]):
    """Unix seconds of a time, or of how long ago it was: 2026-11-01, 7d."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        with contextlib.suppress(ValueError):
            return max(0.0, time.time() - duration(value))
        try:
            return moment(value)
        except ValueError:
            self.fail(f'{value!r} is neither a time nor a span: write "2026-11-01" or "7d"', param, ctx)


def load(path: Path | None) -> Config:
    """Read the configuration, or say what is wrong and end with status 2."""
    try:
        return config.load(path, os.environ)
    except ConfigError as error:
        refuse(error)


def refuse(error: Exception | str, code: int = EXIT_CONFIG) -> NoReturn:
    """Say what is wrong, a line for each thing, and end."""
    for line in str(error).splitlines():
        click.echo(f"entrepot: {line}", err=True)
    sys.exit(code)


def console() -> Console:
    """Standard output for tables: as wide as the terminal; in a pipe a line stays a line, for grep and its like."""
    is_narrow = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(highlight=False, width=None if is_narrow else WIDE)


def guarded(start: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run on uvloop; what an operator can mend is said in a line, not in a traceback."""
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            try:
                runner.run(start())
            except KeyboardInterrupt:
                os._exit(EXIT_CTRL_C)  # all is put away; close() would wait for a thread that waits for a pipe
    except (ConfigError, UnsafeDirectory, Unusable) as error:
        refuse(error)
    except OSError as error:
        refuse(ConfigError([f"store.path: {error.filename or ''} cannot be used ({error.strerror})"]))
