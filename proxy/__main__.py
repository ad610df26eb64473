"""The command line: serve, check, demo."""

import socket
import sys
from pathlib import Path

import click
from rich.console import Console

from proxy import __version__, check, demo, trial
from proxy.commands import bench, bucket, bundles, images, lifecycle, migrate, record, scrub, tags, warm
from proxy.commands.loading import EXIT_CONFIG, config_option, guarded, load
from proxy.config import Config
from proxy.serving import Signals, bind, serve
from proxy.supervisor import Supervisor, watch_parent
from proxy.telemetry import set_up_logging

EXIT_TRIAL = 1


@click.group(name="entrepot", context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="entrepot")
def main() -> None:
    """Entrepot: a pull-through cache for container images.

    Docker, containerd, podman, BuildKit and Kubernetes pull through it; it streams from the registry while it writes a
    cache, and keeps serving when the registry does not.

    \b
      entrepot serve                       serve on 127.0.0.1:5000
      entrepot check --config proxy.toml   say what a configuration would do
      entrepot demo                        see it work, without internet
      entrepot ls                          list what is cached
    """


@main.command("serve")
@config_option
@click.option("--worker-socket", type=int, hidden=True, help="For the supervisor's use.")
def serve_command(path: Path | None, worker_socket: int | None) -> None:
    """Serve clients, until SIGTERM or Ctrl-C.

    What is being sent is finished first, up to server.drain_timeout. A second signal stops at once.
    """
    settings = load(path)
    guarded(lambda: _serve(settings, path, worker_socket))


@main.command("check")
@config_option
@click.option("--offline", is_flag=True, help="Ask no upstream whether it takes our credentials.")
def check_command(path: Path | None, offline: bool) -> None:
    """Say what a configuration would do.

    It is read as serve would read it, environment and passwords included, and told upstream by upstream; nothing is
    started or created. Each upstream that has an account, a proxy or certificates of its own is asked whether they are
    right, and a bucket is written to and read from. Exit status 2 if serve would refuse the configuration, 1 if an
    upstream or the bucket does not take it.
    """
    settings, console = load(path), Console(highlight=False)
    if not check.report(settings, console):
        sys.exit(EXIT_CONFIG)
    if not offline:
        guarded(lambda: _try(settings, console))


async def _try(settings: Config, console: Console) -> None:
    found = [*await trial.bucket_problems(settings.store.s3), *await trial.problems(settings.upstream)]
    if not check.tell(found, console):
        sys.exit(EXIT_TRIAL)


@main.command("demo")
@click.option("--clients", default=32, show_default=True, type=click.IntRange(1, 1000), help="Clients at once.")
@click.option("--layers", default=4, show_default=True, type=click.IntRange(1, 100), help="Layers of an image.")
@click.option("--size", default=16, show_default=True, type=click.IntRange(1, 1024), help="MiB of a layer.")
def demo_command(clients: int, layers: int, size: int) -> None:
    """See it work, without internet.

    Starts a small registry with a generated image, and a cache in front of it, on free ports of 127.0.0.1; pulls the
    image cold, warm, by many clients at once and with the registry stopped; prints what that took. Nothing is kept.
    """
    console = Console()
    guarded(lambda: demo.run(demo.Plan(clients, layers, size * 1024 * 1024), console))


async def _serve(settings: Config, path: Path | None, worker_socket: int | None) -> None:
    log = set_up_logging(settings.log.format, settings.log.level)
    signals = Signals()
    if worker_socket is not None:
        watch_parent(signals)
        await serve(settings, log, socket.socket(fileno=worker_socket), None, signals)
        return
    sock = bind(settings.server.listen, "server.listen")
    admin = bind(settings.admin.listen, "admin.listen")
    if settings.server.workers == 1:
        await serve(settings, log, sock, admin, signals)
        return
    command = [sys.executable, "-m", "proxy", "serve", *(["--config", str(path)] if path else [])]
    await Supervisor(settings, log, sock, command).run(admin, signals)


COMMANDS = (
    *images.COMMANDS, *tags.COMMANDS, *warm.COMMANDS, *bundles.COMMANDS, *record.COMMANDS, *lifecycle.COMMANDS,
    *scrub.COMMANDS, *migrate.COMMANDS, *bench.COMMANDS, *bucket.COMMANDS,
)  # fmt: skip
for command in COMMANDS:
    main.add_command(command)

if __name__ == "__main__":
    main(prog_name="entrepot")
