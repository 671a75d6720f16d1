"""The table from error to status: complete for both trees, and quiet about what is inside."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from app.api import faults, server
from app.api.errors import STATUS, detail_of, error_response, from_pydantic, headers_of, status_of
from app.errors import (
    CapabilityMissing,
    ChorusError,
    ContextTooLong,
    Draining,
    EngineFailure,
    IdempotencyConflict,
    JobEnded,
    Overloaded,
    TracingUnavailable,
    UnsupportedBackbone,
)
from prompt_store import (
    CorruptBlob,
    InvalidBlobsUrl,
    RevisionMismatch,
    StoreError,
    StoreUnavailable,
    TaskNotFound,
    VersionInUse,
)

DOCS = Path(__file__).resolve().parents[3] / "docs" / "errors.md"


def tree(kind: type[Exception]) -> Iterator[type[Exception]]:
    yield kind
    for child in kind.__subclasses__():
        if child.__module__.startswith(("app.errors", "app.api", "prompt_store.")):
            yield from tree(child)


AT_THE_START = {InvalidBlobsUrl, UnsupportedBackbone, TracingUnavailable, faults.UnsafeExposure, server.AddressTaken}
KINDS = [kind for root in (ChorusError, StoreError) for kind in tree(root)]


def make(kind: type[Exception]) -> Exception:
    return kind("message", current=3) if issubclass(kind, RevisionMismatch) else kind("message")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_has_a_status_a_code_and_a_line_in_the_docs(kind: type[Exception]) -> None:
    error = make(kind)
    status, detail = status_of(error), detail_of(error, "req_1")
    assert 400 <= status < 600
    assert re.fullmatch(r"[a-z_]+", detail.code)
    rows = [line for line in DOCS.read_text().splitlines() if line.startswith(f"| `{detail.code}`")]
    assert len(rows) == 1, f"docs/errors.md has {len(rows)} lines for {detail.code}"
    assert rows[0].split("|")[2].strip() == ("start" if kind in AT_THE_START else str(status))


def test_docs_name_no_code_that_does_not_exist() -> None:
    named = set(re.findall(r"^\| `([a-z_]+)`", DOCS.read_text(), re.M))
    assert named == {kind.code for kind in KINDS}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ContextTooLong("x"), 422),
        (CapabilityMissing("x"), 422),
        (TaskNotFound("x"), 404),
        (JobEnded("x"), 409),
        (IdempotencyConflict("x"), 409),
        (VersionInUse("x"), 409),
        (Overloaded("x"), 429),
        (Draining("x"), 503),
        (StoreUnavailable("x"), 503),
        (EngineFailure("x"), 500),
        (ValueError("x"), 500),
    ],
)
def test_status_is_looked_up_along_the_bases(error: Exception, status: int) -> None:
    assert status_of(error) == status


def test_every_line_of_the_table_is_a_known_error() -> None:
    assert set(STATUS) <= set(KINDS)


@pytest.mark.parametrize(
    "error", [KeyError("/srv/x"), EngineFailure("/srv/x"), StoreUnavailable("/srv/x"), CorruptBlob("/srv/x")]
)
def test_what_went_wrong_inside_is_not_told(error: Exception) -> None:
    assert "/srv" not in detail_of(error, None).message


def test_conflicts_say_that_a_retry_will_not_help() -> None:
    assert headers_of(JobEnded("x"))["x-should-retry"] == "false"
    assert headers_of(RevisionMismatch("x", current=4))["etag"] == '"4"'


@pytest.mark.parametrize(("seconds", "header"), [(0.2, "1"), (7.4, "7"), (None, "1")])
def test_waiting_is_asked_for_in_whole_seconds(seconds: float | None, header: str) -> None:
    assert headers_of(Overloaded("x", retry_after_s=seconds))["retry-after"] == header


def test_error_about_text_does_not_fail_on_that_text() -> None:
    body = json.loads(bytes(error_response(ChorusErrorWithText("\ud800" * 5000, param="\ud800"), "r").body))
    assert len(body["error"]["message"]) <= 1000


class ChorusErrorWithText(CapabilityMissing):
    """Only here."""


class Inner(BaseModel, extra="forbid"):
    number: int


class Outer(BaseModel, extra="forbid"):
    rows: list[Inner]


def test_validation_error_names_the_field_and_repeats_no_input() -> None:
    with pytest.raises(ValidationError) as failed:
        Outer.model_validate({"rows": [{"number": 1}, {"number": "secret"}], "evil name": 1})
    error = from_pydantic(failed.value)
    assert error.param == "rows.1.number"
    assert "secret" not in error.message
    assert "1 more" in error.message
