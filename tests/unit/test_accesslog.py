"""What a request leaves behind: a line and its counts, the first time and each time after that."""

import asyncio
import io
import json

import pytest
from aiohttp.test_utils import make_mocked_request
from prometheus_client import CollectorRegistry

from proxy import accesslog
from proxy.accesslog import AccessLog, Record
from proxy.telemetry import Metrics, Outcome, make_logger


def written(times: int, *records: Record) -> tuple[list[dict[str, object]], Metrics]:
    """The lines that so many requests for each of these left, and what was counted."""
    stream, metrics = io.StringIO(), Metrics(CollectorRegistry())

    async def write() -> None:
        log = AccessLog(metrics, make_logger("json", "info", stream))
        for _ in range(times):
            for record in records:
                log.write(make_mocked_request("GET", "/v2/", headers={"User-Agent": 'an "agent"\n'}), record, 0.25)
        await asyncio.sleep(0)

    asyncio.run(write())
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    return [{key: value for key, value in line.items() if key != "timestamp"} for line in lines], metrics


def hit(sent: int = 7, outcome: Outcome = Outcome.HIT, error: str | None = None) -> Record:
    return Record("blob", "docker.io", "library/busybox", "sha256:0", outcome, error, 200, sent)


def test_a_line_says_the_same_the_first_time_and_after_that() -> None:
    lines, _ = written(4, hit(error="it broke off"))
    assert len(lines) == 4
    assert all(line == lines[0] for line in lines)
    assert (lines[0]["bytes"], lines[0]["error"], lines[0]["seconds"]) == (7, "it broke off", 0.25)


def test_requests_that_differ_in_anything_have_lines_of_their_own() -> None:
    lines, _ = written(3, hit(7), hit(8), hit(7, Outcome.FILL), hit(7, error="no"))
    assert sorted(json.dumps(line) for line in lines[:4]) == sorted({json.dumps(line) for line in lines})


def test_each_request_is_counted_once_however_often_it_comes() -> None:
    _, metrics = written(5, hit(7), hit(3, Outcome.LENT))
    value = metrics.registry.get_sample_value
    asked = {"kind": "blob", "upstream": "docker.io", "status": "200"}
    assert value("entrepot_requests_total", {**asked, "outcome": "hit"}) == 5
    assert value("entrepot_requests_total", {**asked, "outcome": "lent"}) == 5
    assert value("entrepot_request_seconds_count", {"kind": "blob"}) == 10
    assert value("entrepot_client_bytes_total", {"upstream": "docker.io"}) == 35
    assert value("entrepot_lent_bytes_total", {"direction": "out"}) == 15


def test_no_more_lines_are_remembered_than_it_is_meant_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accesslog, "REMEMBERED", 2)
    lines, _ = written(2, *(hit(size) for size in range(5)))
    assert [line["bytes"] for line in lines] == [*range(5), *range(5)]
