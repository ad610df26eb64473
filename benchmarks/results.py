"""A run, as it is kept: where and when it was, what was measured, and which goals were reached."""

import datetime
import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.bench import Case
from benchmarks.reach import GOALS, Verdict, judge
from benchmarks.report import Report, Sample
from benchmarks.servers import program

VERSIONS = {
    "nginx": ["-v"],
    "docker-registry": ["--version"],
    "varnishd": ["-V"],
    "wrk": ["-v"],
    "containerd": ["--version"],
}


@dataclass(frozen=True)
class Group:
    """Cases of a kind: what is drawn of them, whom the others are held against, and who failed and is not in them."""

    name: str
    about: str
    chief: str
    reference: str
    cases: tuple[str, ...]
    failed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Results:
    """Everything of a run."""

    when: str
    commit: str
    repeats: int
    machine: Mapping[str, str]
    versions: Mapping[str, str]
    groups: tuple[Group, ...]
    samples: tuple[Sample, ...]

    @property
    def report(self) -> Report:
        """What the samples come to."""
        return Report(self.samples, {case: group.reference for group in self.groups for case in group.cases})

    @property
    def verdicts(self) -> list[Verdict]:
        """What became of the goals."""
        return judge(self.report, GOALS)

    def write(self, path: Path) -> None:
        """Keep it, as JSON."""
        reach = [{**asdict(verdict.goal), "reached": verdict.value, "met": verdict.is_met} for verdict in self.verdicts]
        path.write_text(json.dumps({**asdict(self), "reach": reach}, indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> "Results":
        """What was kept; the goals are judged anew."""
        kept: dict[str, Any] = json.loads(path.read_text())
        del kept["reach"]
        groups = tuple(_group(one) for one in kept.pop("groups"))
        samples = tuple(Sample(**sample) for sample in kept.pop("samples"))
        return cls(**kept, groups=groups, samples=samples)


def _group(kept: dict[str, Any]) -> Group:
    return Group(**{**kept, "cases": tuple(kept["cases"]), "failed": tuple(kept.get("failed", ()))})


def group(case: Case, samples: Sequence[Sample], failed: Sequence[str]) -> Group:
    """What is kept of a case beside its samples."""
    cases = tuple(dict.fromkeys(one.case for one in samples))
    return Group(case.name, case.about, case.chief, case.reference, cases, tuple(failed))


def here(folder: Path) -> dict[str, str]:
    """The machine, and how busy it is before anything begins."""
    processor = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = re.search(r"^MemTotal:\s*(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return {
        "processor": platform.machine() if processor is None else processor[1],
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": "unknown" if memory is None else f"{int(memory[1]) / 1024**2:.0f} GiB",
        "kernel": re.split(r"[^\d.]", platform.release())[0],  # what follows may name who built it
        "file system": said(["stat", "--file-system", "--format=%T", str(folder)]) or "unknown",
        "load average": " ".join(f"{load:.2f}" for load in os.getloadavg()),
    }


def versions() -> dict[str, str]:
    """Of everyone who takes part."""
    ours = {name: version(name) for name in ("entrepot", "aiohttp", "uvloop")}
    found = {"Python": platform.python_version(), **ours}
    for name, arguments in VERSIONS.items():
        if (path := program(name)) is not None:
            first = said([path, *arguments]).partition("\n")[0]
            number = re.search(r"\d+\.\d+[^\s,)]*", first)
            found[name] = first if number is None else number[0]
    return found


def commit() -> str:
    """What was run, and whether something was changed since; "unknown" outside of a clone."""
    name = said(["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"])
    return name if re.fullmatch(r"[0-9a-f]{12}(-dirty)?", name) else "unknown"


def now() -> str:
    """The time, in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def said(command: Sequence[str]) -> str:
    """What a program says to either output, whatever its status (wrk's is 1); empty if it is not there."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  ours, or on PATH
    except OSError:
        return ""
    return (done.stdout + done.stderr).strip()
