"""Logs are a line a record, whatever is in it; metrics have closed sets of labels."""

import asyncio
import io
import json
import logging
import time
from datetime import datetime
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from proxy import telemetry
from proxy.telemetry import Format, Lines, Logger, Metrics, Outcome, Template, make_logger, quiet, set_up_logging

HOSTILE = 'a\x1b[31m\r\n{"event": "forged"}\x00\x07\u2028\u202e"\udcff\\'


class Terminal(io.StringIO):
    """A stream that says it is one."""

    def isatty(self) -> bool:
        return True


@given(st.text(), st.text())
def test_json_is_one_line_that_tells_what_was_logged(event: str, value: str) -> None:
    stream = io.StringIO()
    make_logger("json", "info", stream).info(event, agent=value)
    (line,) = stream.getvalue().splitlines()
    assert line.isascii()
    record = json.loads(line)
    assert (record["event"], record["agent"], record["level"]) == (event, value, "info")
    assert record["timestamp"].endswith("Z")


@given(st.text())
def test_the_console_shows_no_control_character_of_a_value(value: str) -> None:
    stream = io.StringIO()
    make_logger("console", "info", stream).info("request", agent=value)
    (line,) = stream.getvalue().splitlines()
    assert line.isprintable()


@pytest.mark.parametrize(
    ("style", "stream", "is_json"),
    [
        ("auto", io.StringIO(), True),
        ("auto", Terminal(), False),
        ("json", Terminal(), True),
        ("console", io.StringIO(), False),
    ],
)
def test_auto_is_json_except_on_a_terminal(style: Format, stream: io.StringIO, is_json: bool) -> None:
    make_logger(style, "info", stream).info("said")
    assert stream.getvalue().startswith("{") == is_json


def test_colours_are_for_terminals() -> None:
    piped, terminal = io.StringIO(), Terminal()
    make_logger("console", "info", piped).info("said")
    make_logger("console", "info", terminal).info("said")
    assert "\x1b[" not in piped.getvalue()
    assert "\x1b[" in terminal.getvalue()


@pytest.mark.parametrize(("level", "heard"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_what_is_below_the_level_is_dropped(level: str, heard: int) -> None:
    stream = io.StringIO()
    log = make_logger("json", level, stream)
    for say in (log.debug, log.info, log.warning, log.error):
        say("said")
    assert len(stream.getvalue().splitlines()) == heard


@pytest.mark.parametrize("style", ["json", "console"])
def test_what_libraries_log_comes_the_same_way(style: Format) -> None:
    root, stream = logging.getLogger(), io.StringIO()
    handlers, level = root.handlers[:], root.level
    try:
        set_up_logging(style, "debug", stream)
        logging.getLogger("aiohttp.server").debug("too much")
        logging.getLogger("aiohttp.server").error("unhandled %s", HOSTILE)
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    if style == "json":
        (line,) = stream.getvalue().splitlines()
        assert json.loads(line)["event"] == f"unhandled {HOSTILE}"
    else:
        (line,) = stream.getvalue().splitlines()
        assert line.isprintable()
        assert "unhandled a" in line


@pytest.mark.parametrize("style", ["json", "console"])
def test_a_traceback_shows_no_local_variable(style: Format) -> None:
    stream = io.StringIO()
    password = "hunter" + str(2)
    try:
        [].pop(len(password))
    except IndexError:
        make_logger(style, "info", stream).exception("a defect")
    assert "IndexError" in stream.getvalue()
    assert "hunter2" not in stream.getvalue()


def test_quiet_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    quiet().error("said")
    assert capfd.readouterr() == ("", "")


def test_no_metric_has_a_label_that_a_client_could_fill() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    labels = {name for metric in vars(metrics).values() for name in getattr(metric, "_labelnames", ())}
    assert labels == {"kind", "upstream", "status", "outcome", "method", "account", "fate", "direction"}
    metrics.requests.labels("blob", "docker.io", 200, Outcome.HIT.value).inc()
    text = generate_latest(registry).decode()
    assert 'entrepot_requests_total{kind="blob",outcome="hit",status="200",upstream="docker.io"} 1.0' in text


def test_every_metric_says_what_it_is() -> None:
    registry = CollectorRegistry()
    Metrics(registry)
    families = list(registry.collect())
    assert families
    for family in families:
        assert family.name.startswith("entrepot_")
        assert family.documentation


NAMES = st.text(st.characters(codec="ascii", categories=["Ll"]), min_size=1)


@given(st.dictionaries(NAMES, st.text() | st.integers()), st.sampled_from(["json", "console"]))
async def test_a_template_writes_what_the_logger_would(fields: dict[str, object], style: Format) -> None:
    fields = {f"x_{name}": value for name, value in fields.items()}
    plain, filled = io.StringIO(), io.StringIO()
    make_logger(style, "info", plain).info("request", client="::1", seconds=0.25, **fields)
    lines = Lines(make_logger(style, "info", filled))
    template = Template(lines, "request", fields, {"client": str, "seconds": float})
    template.write("::1", "0.25")
    template.write("::1", "0.25")
    await asyncio.sleep(0)
    for line in filled.getvalue().splitlines():
        assert parsed(line, style) == parsed(plain.getvalue().strip("\n"), style)
    assert len(filled.getvalue().splitlines()) == 2


def parsed(line: str, style: Format) -> object:
    """A line without what differs from one to the next: the time."""
    if style == "console":
        return line[len("2026-11-26T04:53:26.585434Z") :]
    return {**json.loads(line), "timestamp": ""}


@pytest.mark.parametrize("log", [quiet(), make_logger("json", "warning", io.StringIO())])
def test_a_template_of_what_is_not_logged_writes_nothing(log: Logger) -> None:
    Template(Lines(log), "request", {}, {"client": str}).write("::1")


async def test_the_time_in_a_template_is_that_of_now(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    template = Template(Lines(make_logger("json", "info", stream)), "request", {}, {"client": str})
    times = [1_800_000_000.25, 1_800_000_000.999999, 1_800_000_001.0, 1_799_999_999.5]
    with monkeypatch.context() as patched:
        patched.setattr(
            telemetry, "time", SimpleNamespace(time=iter(times).__next__, gmtime=time.gmtime, strftime=time.strftime)
        )
        for _ in times:
            template.write("::1")
    await asyncio.sleep(0)
    stamps = [json.loads(line)["timestamp"] for line in stream.getvalue().splitlines()]
    assert {len(stamp) for stamp in stamps} == {len("2027-01-15T08:00:00.250000Z")}
    assert [datetime.fromisoformat(stamp).timestamp() for stamp in stamps] == pytest.approx(times, abs=2e-6)
