"""What every command has: the configuration, and one line for what is wrong with it."""

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, NoReturn

import click
import uvloop

from proxy import config
from proxy.config import Config, ConfigError
from proxy.files import UnsafeDirectory

EXIT_CONFIG = 2

config_option = click.option(
    "--config", "path", type=click.Path(path_type=Path, dir_okay=False), envvar="ENTREPOT_CONFIG",
    show_envvar=True,
    help="The configuration, in TOML. Without one: 127.0.0.1:5000, the public registries, a cache in your home.",
)  # fmt: skip


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


def guarded(start: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run on uvloop; what an operator can mend is said in a line, not in a traceback."""
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(start())
    except (ConfigError, UnsafeDirectory) as error:
        refuse(error)
    except OSError as error:
        refuse(ConfigError([f"store.path: {error.filename or ''} cannot be used ({error.strerror})"]))
    except KeyboardInterrupt:
        sys.exit(130)
