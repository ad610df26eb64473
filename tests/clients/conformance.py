"""`make conformance`: the read-only part of the OCI conformance suite, against the proxy in front of docker-registry.

For comparison the suite is run against docker-registry itself as well, which fails where it does not follow the
specification: the proxy has to do better than what is behind it.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import click

from .entrepot import Entrepot
from .images import Image, everything
from .processes import WORK, built, what_is_missing
from .registries import Registry

# The only version that the module proxy has of the suite since it was rewritten for read-only registries.
MODULE = "github.com/opencontainers/distribution-spec/conformance"
VERSION = "v0.0.0-20260831232431-97274622c111"
TAGS = ["edge", "latest", "v1", "v1.0", "v1.0.1"]

# What a registry that cannot be pushed to has to be excused from.
READ_ONLY = {
    "OCI_TLS": "disabled",
    "OCI_API_PUSH": "false",
    "OCI_API_BLOBS_DELETE": "false",
    "OCI_API_BLOBS_MOUNT_ANONYMOUS": "false",
    "OCI_API_MANIFESTS_DELETE": "false",
    "OCI_API_TAGS_DELETE": "false",
    # In read-only mode the suite misses this header even where it is sent.
    "OCI_API_MANIFESTS_DIGEST_HEADER": "false",
}
COUNT = re.compile(r"^  (\w+)\.+: +(\d+)$", re.MULTILINE)


@dataclass(frozen=True)
class Counts:
    """How many of the suite's tests ended how; what is disabled was not asked for."""

    passed: int
    failed: int
    skipped: int

    @classmethod
    def of(cls, printed: str) -> "Counts":
        """Read the summary at the end of the suite's report."""
        _, _, summary = printed.partition("OCI Conformance Result:")
        summary, _, _ = summary.partition("API conformance:")
        counts = Counter({status: int(count) for status, count in COUNT.findall(summary)})
        expected = counts["Pass"] + counts["Skip"] + counts["Disabled"]
        return cls(counts["Pass"], counts["Total"] - expected, counts["Skip"])

    def __str__(self) -> str:
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"


def main() -> int:
    """Run the suite twice, and say how it went; anything but a clean run of the proxy is a failure."""
    reason = what_is_missing(as_root=False) or (
        None if shutil.which("go") else "there is no Go to build the suite with"
    )
    if reason is not None:
        click.echo(f"the conformance suite cannot run: {reason}", err=True)
        return 1
    suite = built(MODULE, VERSION)
    image = everything()["index"]
    with tempfile.TemporaryDirectory(prefix="entrepot-conformance-") as name:
        directory = Path(name)
        registry = Registry(image.registry, directory)
        try:
            registry.start()
            registry.push(image, TAGS)
            itself = verdict(suite, image, f"127.0.0.1:{registry.port}", directory / "docker-registry")
            proxy = Entrepot(directory, {image.registry: registry.url})
            with proxy.running():
                counts = verdict(suite, image, proxy.address, WORK / "conformance")
        finally:
            registry.stop()
    return report(counts, itself)


def verdict(suite: Path, image: Image, address: str, results: Path) -> Counts:
    """Run the suite against one registry, and count how its tests ended. What it printed is kept."""
    results.mkdir(parents=True, exist_ok=True)
    settings = {
        "OCI_REGISTRY": address,
        "OCI_REPO1": image.repository,
        "OCI_REPO2": image.repository,
        "OCI_RESULTS_DIR": str(results),
        "OCI_RO_DATA_TAGS": " ".join(TAGS),
        "OCI_RO_DATA_MANIFESTS": _words([image.digest, *(manifest.content.digest for manifest in image.manifests)]),
        "OCI_RO_DATA_BLOBS": _words(image.blobs),
        "OCI_RO_DATA_REFERRERS": image.digest,
    }
    # Its exit status says nothing: in read-only mode it panics after its report, and when it cannot start it exits 0.
    done = subprocess.run(
        [suite], env={**os.environ, **READ_ONLY, **settings}, capture_output=True, text=True, timeout=120, check=False
    )
    (results / "report.txt").write_text(done.stdout)
    (results / "errors.txt").write_text(done.stderr)
    return Counts.of(done.stdout)


def report(counts: Counts, itself: Counts) -> int:
    """Print what came out; the last line is for those who count tests."""
    kept = WORK / "conformance"
    if counts.failed:
        click.echo((kept / "report.txt").read_text())
    click.echo(f"all that the suite printed is in {kept}; docker-registry itself: {itself}")
    if not counts.passed:
        click.echo(f"the suite ran nothing: see {kept / 'errors.txt'}", err=True)
    click.echo(f"conformance: {counts}")
    return 0 if counts.passed and not counts.failed else 1


def _words(digests: Iterable[str]) -> str:
    """A list as the suite takes it: one blank too many, and it runs nothing."""
    return " ".join(sorted(digests))


if __name__ == "__main__":
    sys.exit(main())
