"""What a server's process notes of what clients ask for: bounded, and nothing while nobody wants to know."""

import asyncio
import contextlib

import pytest

from proxy import recorder
from proxy.files import Tree, hop
from proxy.oci.digest import Digest
from proxy.oci.imagelist import Wish
from proxy.oci.reference import Repository, Tag
from proxy.recorder import Recorder
from proxy.recording import NotRecorded, Recording, sweep
from proxy.telemetry import quiet

APP, ONE, TWO = Repository("docker.io", "library/app"), Digest.of(b"one"), Digest.of(b"two")


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "LOOK", 0.01)


@contextlib.asynccontextmanager
async def working(one: Recorder):  # type: ignore[no-untyped-def]
    """A process that records when it is wanted."""
    task = asyncio.create_task(one.run())
    try:
        yield one
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def begun(tree: Tree, count: int = 1) -> None:
    """Wait until there are so many processes that may record."""

    def workers() -> int:
        return sum("worker-" in entry.key and not tree.is_free(entry.key) for entry in tree.scan("recordings"))

    async with asyncio.timeout(10):
        while await hop(workers) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_two_processes_and_two_recordings_get_each_what_is_theirs(tree: Tree) -> None:
    async with working(Recorder(tree, quiet())) as one, working(Recorder(tree, quiet())) as two:
        await begun(tree, 2)
        everything, some = Recording(tree, []), Recording(tree, ["192.0.2.1"])
        async with everything.going(), some.going():
            assert (one.is_on, two.is_on) == (True, True)
            one.note("192.0.2.1", "manifest", APP, Tag("v1"), ONE)
            one.note("192.0.2.1", "manifest", APP, ONE, ONE)
            two.note("192.0.2.2", "blob", APP, TWO, TWO)
            two.note("192.0.2.2", "blob", APP, TWO, TWO)
            tagged = Wish(f"docker.io/library/app:v1@{ONE}", "manifest")
            assert await some.result() == {tagged}
            assert await everything.result() == {tagged, Wish(f"docker.io/library/app@{TWO}", "blob")}
            assert (one.is_on, two.is_on) == (False, False)
        left = [entry.key for entry in await hop(tree.scan, "recordings")]
        assert all("worker-" in key for key in left)


async def test_what_is_noted_is_bounded_and_that_is_said(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "MOST", 3)
    async with working(Recorder(tree, quiet())) as one:
        await begun(tree)
        recording = Recording(tree, [])
        async with recording.going():
            for number in range(10):
                one.note(None, "blob", APP, ONE, Digest.of(b"%d" % number))
            assert len(await recording.result()) == 3
        assert recording.is_full


async def test_what_is_asked_for_again_and_again_is_noted_once(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "MOST", 3)
    async with working(Recorder(tree, quiet())) as one:
        await begun(tree)
        recording = Recording(tree, [])
        async with recording.going():
            for _ in range(10):
                one.note(None, "blob", APP, ONE, ONE)
            assert len(one._sessions[recording._name].noted) == 1
            assert len(await recording.result()) == 1
        assert not recording.is_full


async def test_what_a_killed_recorder_left_is_swept_and_nobody_records_for_it(tree: Tree) -> None:
    async with working(Recorder(tree, quiet())) as one:
        await begun(tree)
        with contextlib.suppress(NotRecorded):
            async with Recording(tree, []).going():
                raise NotRecorded
        async with asyncio.timeout(10):
            while one.is_on:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        await hop(sweep, tree)
        left = [entry.key for entry in await hop(tree.scan, "recordings")]
        assert [key.startswith("recordings/worker-") for key in left] == [True]


async def test_without_a_process_there_is_no_recording(tree: Tree) -> None:
    with pytest.raises(NotRecorded, match="no server is running"):
        async with Recording(tree, []).going():
            pass
