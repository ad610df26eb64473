"""The table of errors and the body they are answered with."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.oci.errors import OciError, Problem

ANY_TEXT = st.text(st.characters(exclude_categories=()))


@pytest.mark.parametrize(
    ("name", "code", "status"),
    [
        ("NAME_INVALID", "NAME_INVALID", 400),
        ("NAME_UNKNOWN", "NAME_UNKNOWN", 404),
        ("TAG_INVALID", "NAME_INVALID", 400),
        ("DIGEST_INVALID", "DIGEST_INVALID", 400),
        ("MANIFEST_UNKNOWN", "MANIFEST_UNKNOWN", 404),
        ("BLOB_UNKNOWN", "BLOB_UNKNOWN", 404),
        ("NOT_FOUND", "NAME_UNKNOWN", 404),
        ("UNSUPPORTED", "UNSUPPORTED", 405),
        ("BAD_REQUEST", "UNSUPPORTED", 400),
        ("DENIED", "DENIED", 403),
        ("TOO_MANY_REQUESTS", "TOOMANYREQUESTS", 429),
        ("UPSTREAM_INVALID", "UNAVAILABLE", 502),
        ("UPSTREAM_UNREACHABLE", "UNAVAILABLE", 502),
        ("UPSTREAM_ERROR", "UNAVAILABLE", 502),
        ("UPSTREAM_TIMEOUT", "UNAVAILABLE", 504),
        ("UPSTREAM_PAUSED", "UNAVAILABLE", 503),
        ("OVERLOADED", "UNAVAILABLE", 503),
    ],
)
def test_a_problem_is_one_row_of_the_table(name: str, code: str, status: int) -> None:
    problem = Problem[name]
    assert (problem.name, problem.code, problem.status) == (name, code, status)


def test_problems_with_the_same_answer_stay_different_problems() -> None:
    assert len(Problem) == len(Problem.__members__) == 19


@pytest.mark.parametrize("problem", Problem)
def test_no_problem_is_answered_with_500_which_stops_clients_from_trying_elsewhere(problem: Problem) -> None:
    assert problem.status != 500


def test_an_outage_is_exactly_what_stale_content_may_stand_in_for() -> None:
    assert {problem.name for problem in Problem if problem.is_outage} == {
        "TOO_MANY_REQUESTS",
        "CREDENTIALS_REFUSED",
        "CREDENTIALS_MISSING",
        "UPSTREAM_INVALID",
        "UPSTREAM_UNREACHABLE",
        "UPSTREAM_ERROR",
        "UPSTREAM_TIMEOUT",
        "UPSTREAM_PAUSED",
    }


def test_an_error_carries_what_it_was_made_of() -> None:
    error = OciError(Problem.TOO_MANY_REQUESTS, "slow down", detail="hub", retry_after=7.5)
    assert (error.problem, error.message, error.detail, error.retry_after) == (
        Problem.TOO_MANY_REQUESTS,
        "slow down",
        "hub",
        7.5,
    )
    assert str(error) == "slow down"


def test_a_body_is_compact_and_leaves_out_a_missing_detail() -> None:
    assert OciError(Problem.BLOB_UNKNOWN, "no such blob").body() == (
        b'{"errors":[{"code":"BLOB_UNKNOWN","message":"no such blob"}]}'
    )


def test_an_empty_detail_is_a_detail() -> None:
    assert b'"detail":""' in OciError(Problem.BLOB_UNKNOWN, "no such blob", detail="").body()


@given(ANY_TEXT, st.none() | ANY_TEXT)
def test_a_body_is_valid_json_in_utf8_whatever_the_texts_hold(message: str, detail: str | None) -> None:
    body = OciError(Problem.NAME_INVALID, message, detail=detail).body()
    [error] = json.loads(body.decode("utf-8"))["errors"]
    assert error["code"] == "NAME_INVALID"
    assert error["message"] == message.encode("utf-8", "replace").decode()
    assert error.get("detail") == (None if detail is None else detail.encode("utf-8", "replace").decode())


def test_a_lone_surrogate_does_not_reach_the_client_even_escaped() -> None:
    assert b"\\ud" not in OciError(Problem.NAME_INVALID, "a\udcffb", detail="\ud800").body()
