"""What the cases of the benchmarks compute, and what they make."""

import json
import os
import socket
import threading
from pathlib import Path

import pytest

from benchmarks import stock, usage
from benchmarks.cases.capped import _rate, _steady
from benchmarks.cases.image import LAYERS
from benchmarks.trickle import take
from proxy.stores.keys import blob_digest, parse_key
from proxy.stores.records import parse_link, parse_record, parse_tag


def test_a_transfer_is_as_fast_as_it_is_once_it_has_got_up_to_its_speed() -> None:
    slow_then_fast = [(float(second), second * 100_000) for second in range(10)]
    slow_then_fast += [(10 + second / 10, 1_000_000 + second * 200_000) for second in range(100)]
    assert _rate(slow_then_fast) == pytest.approx(20.8 / 19.9, rel=1e-6)
    assert _steady(slow_then_fast) == pytest.approx(2.0, rel=0.02)


def test_the_image_has_as_many_layers_as_its_name_says() -> None:
    assert len(LAYERS) == 61


def test_a_stocked_cache_is_one_that_the_store_can_read(tmp_path: Path) -> None:
    stock.fill(tmp_path / "cache", 45)
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    keys = {str(path.relative_to(tmp_path / "cache")): path for path in files}
    blobs = {str(blob_digest(key)) for key in keys if key.startswith("blobs/")}
    records = {key: parse_key(key) for key in keys if key.startswith("repositories/")}
    linked = {str(record.name) for record in records.values() if record is not None and record.kind == "link"}
    assert (len(blobs), linked, None in records.values()) == (45, blobs, False)
    for key, record in records.items():
        body = parse_record(keys[key].read_bytes())
        assert record is not None
        assert body is not None
        assert (parse_link(body) if record.kind == "link" else parse_tag(body)) is not None


def test_a_slow_reader_is_told_apart_from_one_that_gets_nothing_any_more() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert take(ours, bytearray(4), 4)
        theirs.sendall(b"12345")
        assert [take(ours, bytearray(4), 4) for _ in range(3)] == [True, True, True]
        theirs.close()
        assert not take(ours, bytearray(4), 4)


def test_threads_and_shared_memory_of_a_process_are_counted() -> None:
    pid, stop = os.getpid(), threading.Event()
    before = usage.threads(pid)
    thread = threading.Thread(target=stop.wait)
    thread.start()
    assert usage.threads(pid) == before + 1
    stop.set()
    thread.join()
    assert 0 < usage.proportional(pid) <= usage.peak(pid)


def test_a_link_is_a_record_of_a_size(tmp_path: Path) -> None:
    stock.links(tmp_path, 1)
    [path] = tmp_path.rglob("_links/sha256/*")
    assert json.loads(path.read_text())["size"] == stock.BLOB
