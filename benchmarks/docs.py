"""Put a run into the documentation: tables between two markers, drawings beside them."""

from collections.abc import Iterator
from pathlib import Path

import click

from benchmarks import plots, tables
from benchmarks.results import Group, Results

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("run", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--into",
    default=Path("docs/benchmarks.md"),
    show_default=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A page with the two markers.",
)
def main(run: Path, into: Path) -> None:
    """Write what RUN (a results.json) came to into a page, and its drawings into a folder of the page's name."""
    results, pictures = Results.read(run), into.with_suffix("")
    pictures.mkdir(exist_ok=True)
    drawn = {path.name for path in plots.draw(results, pictures, ("svg",))}
    text = "\n".join(section(results, pictures.name, drawn))
    into.write_text(replaced(into.read_text(), text))


def replaced(page: str, text: str) -> str:
    """The page with something else between its markers. Raises ValueError without them."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


def section(results: Results, folder: str, drawn: set[str]) -> Iterator[str]:
    """The lines of a run. `drawn`: the names of the pictures that there are, in the folder."""
    machine = "; ".join(f"{name}: {value}" for name, value in results.machine.items())
    yield f"The run of {results.when}, commit {results.commit}; each figure is the median of {results.repeats}."
    yield ""
    yield f"- Machine: {machine} (of 1, 5 and 15 minutes, before it began)."
    yield f"- Versions: {', '.join(f'{name} {value}' for name, value in results.versions.items())}."
    yield ""
    yield "### What was to be reached"
    yield ""
    yield from tables.markdown(*_split(tables.reach(results.verdicts)))
    for group in results.groups:
        picture = f"{plots.file_name(group)}.svg"
        yield from _of(group, results, f"{folder}/{picture}" if picture in drawn else None)


def _of(group: Group, results: Results, picture: str | None) -> Iterator[str]:
    if group.cases or group.failed:
        name = group.name[0].upper() + group.name[1:]
        yield from ("", f"### {name}", "", f"{group.about} Held against {group.reference}.", "")
    if group.failed:
        yield from (f"Failed: {', '.join(group.failed)}.", "")
    if group.cases:
        yield from tables.markdown(*_split(tables.grid(results.report, group)))
    if picture is not None:
        yield from ("", f"![{group.name}: {group.chief}]({picture})")


def _split(rows: Iterator[tables.Row]) -> tuple[tables.Row, Iterator[tables.Row]]:
    return next(rows), rows


if __name__ == "__main__":
    main()
