"""The command line of the benchmarks."""

import asyncio
import resource
import sys
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress

from benchmarks import plots, tables
from benchmarks.bench import Bench
from benchmarks.cases import CASES
from benchmarks.run import run

WORK = Path(".work")  # not where others keep what is temporary: that may be in memory
OUT = WORK / "bench"
OUT_OF_SOME = WORK / "bench-some"  # not where the results of a whole run are, which took a quarter of an hour


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--case",
    "texts",
    metavar="TEXT",
    multiple=True,
    help="Only cases whose name has this in it; may be given several times.",
)
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(min=1), help="How often each is measured.")
@click.option(
    "--full",
    "is_full",
    is_flag=True,
    help="Also what takes long: 1 GiB for many clients and over TLS, other caches over a WAN.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help=f"Where results.json and the plots go, whatever is there.  [default: {OUT}; with --case {OUT_OF_SOME}]",
)
@click.option("--list", "is_listed", is_flag=True, help="Say which cases there are, and end.")
def main(texts: tuple[str, ...], repeats: int, is_full: bool, out: Path | None, *, is_listed: bool) -> None:
    """Measure Entrepot beside nginx, docker-registry and Varnish, in one run.

    Everything that a case needs is started on this machine and ended with it, in processes of their own; who is not
    installed is said once and left out (Debian: nginx, docker-registry, varnish, wrk, containerd). Within a case the
    contenders take turns, so that a slow minute is not one's alone; what is printed are medians, in brackets the least
    and the most, and the ratio to one of them. Compare ratios of one run, never seconds of two.

    Files go below .work/, up to 8 GiB at a time. Nothing else should run meanwhile. It takes about a quarter of an
    hour; Ctrl-C keeps what has been measured by then. Status 1: a case failed.

    docs/benchmarks.md says what each case is, and how to read it.
    """
    console = Console(width=None if sys.stdout.isatty() else 200)
    chosen = [case for case in CASES if not texts or any(text in case.name for text in texts)]
    if is_listed:
        for case in chosen:
            console.print(f"[bold]{case.name}[/bold]: {case.about}", highlight=False)
        return
    if not chosen:
        raise click.BadParameter("no case has that in its name; --list says which there are", param_hint="--case")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a thousand clients need as many, on either side
    out = out or (OUT_OF_SOME if texts else OUT)
    out.mkdir(parents=True, exist_ok=True)
    WORK.mkdir(exist_ok=True)
    with Progress(console=console, transient=True) as progress:
        bench = Bench(WORK.resolve(), repeats, is_full, lambda line: progress.console.print(line, highlight=False))
        done = asyncio.run(run(bench, chosen, progress))
    for table in tables.terminal(done):
        console.print(table)
    done.write(out / "results.json")
    try:
        drawn = plots.draw(done, out)
    except ImportError:
        console.print("matplotlib is not installed (make bench installs it): there are no plots")
        drawn = []
    console.print(f"kept in {out / 'results.json'}, and {len(drawn)} plots beside it", highlight=False)
    sys.exit(1 if bench.failed else 0)


if __name__ == "__main__":
    main()
