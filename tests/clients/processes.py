"""Processes of the tests' own: started in groups, waited for by condition, and always stopped."""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

WORK = Path(__file__).parents[2] / ".work"
TRIES = 3  # of a build that needs the network

# The control group that all containers of this run are put below.
CGROUP = f"entrepot-tests-{os.getpid()}"

# A namespace of mounts and one of processes, with a /run and a /var/lib of its own, in memory: whatever an engine
# mounts, forks off or writes there is gone the moment the first process ends, even when that one is killed. The first
# process is a shell, because podman as the first would not reap what its container leaves behind.
ISOLATED = (
    "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
    "sh", "-c", 'mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /var/lib && "$@"; exit $?', "sh",
)  # fmt: skip

# A daemon does not outlive the tests, even when these are killed.
NOT_ORPHANED = ("setpriv", "--pdeathsig", "KILL")


def what_is_missing(*, as_root: bool) -> str | None:
    """Why the clients cannot run on this machine, in a sentence."""
    if as_root and os.geteuid() != 0:
        return "container engines take root"
    installer = Path(__file__).parents[2] / ".ci" / "install-clients"
    check = subprocess.run([installer, "--check"], capture_output=True, text=True, check=False)
    return check.stderr.strip() if check.returncode else None


def run(command: Sequence[str], env: Mapping[str, str] | None = None, timeout: float = 90) -> str:
    """Run a command to its end and return what it printed. Raises AssertionError with all of that when it fails."""
    done = subprocess.run(
        command,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    said = f"{' '.join(command)}\nexit status {done.returncode}\n{done.stdout}{done.stderr}"
    assert done.returncode == 0, said
    return done.stdout


def built(package: str, version: str) -> Path:
    """A command that is a Go package, built unless that was done before; a module proxy may be away for a moment.

    Raises AssertionError.
    """
    command = WORK / "bin" / version / package.rpartition("/")[2]
    failures = 0
    while not command.exists():
        show(f"building {package}@{version}")
        try:
            run(["go", "install", f"{package}@{version}"], {"GOBIN": str(command.parent), "GOFLAGS": ""}, timeout=1200)
        except AssertionError:
            failures += 1
            if failures == TRIES:
                raise
    return command


def wait_until(condition: Callable[[], bool], what: str, timeout: float = 30) -> None:
    """Poll until the condition holds. Raises AssertionError when it does not in time."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout:.0f} s: {what}"
        time.sleep(0.02)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listens on.

    It is not one of those that the system gives to outgoing connections: such a one could take the port of a registry
    while that is stopped.
    """
    given = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = 10_000 + secrets.randbelow(given - 10_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def accepts(port: int) -> bool:
    """Whether something listens on this port of 127.0.0.1."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


class Daemon:
    """A server that runs in the background, in a process group of its own, and writes to a log file."""

    def __init__(self, command: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> None:
        self._name = log.stem
        self._log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [*NOT_ORPHANED, *command],
                env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def wait_until(self, ready: Callable[[], bool], timeout: float = 30) -> None:
        """Wait until it serves. Raises AssertionError with the end of its log when it ends, or does not come up."""

        def ready_or_gone() -> bool:
            return self._process.poll() is not None or ready()

        try:
            wait_until(ready_or_gone, f"{self._name} serves", timeout)
            assert self._process.poll() is None, f"{self._name} ended with status {self._process.returncode}"
        except AssertionError as error:
            raise AssertionError(f"{error}\n{tail(self._log)}") from None

    def stop(self, timeout: float = 20) -> int:
        """End it and all it started, politely. Returns its exit status."""
        self._signal(signal.SIGTERM)
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            show(f"{self._name} did not stop within {timeout:.0f} s of SIGTERM and was killed")
            return -signal.SIGKILL
        finally:
            self.kill()

    def kill(self) -> None:
        """End it and all it started, at once."""
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


def remove_cgroups() -> None:
    """Remove the control groups that the engines made and left."""
    root = Path("/sys/fs/cgroup")

    def removed() -> bool:
        tops = [*root.glob(CGROUP), *root.glob(f"*/{CGROUP}")]
        for top in tops:
            # One whose processes were killed a moment ago is busy until they are gone.
            with contextlib.suppress(OSError):
                for directory in sorted((path for path in top.rglob("*") if path.is_dir()), reverse=True):
                    directory.rmdir()
                top.rmdir()
        return not tops

    wait_until(removed, f"the control groups {CGROUP} are gone")


def show(text: str) -> None:
    """Say something that pytest shows with a failure."""
    print(text)  # noqa: T201


def tail(log: Path, lines: int = 40) -> str:
    """The end of a log, to be shown with a failure."""
    text = log.read_text(errors="replace").splitlines()[-lines:] if log.exists() else []
    return "\n".join([f"--- the end of {log.name}", *text])
