"""Promises of `chorus alias`: showing where a name points, and moving it to a version, a split or an ensemble."""

from collections.abc import Callable
from typing import Any

import pytest

from app.cli.errors import Exit
from tests.unit.cli.conftest import FakeService, Ran

PLACE = "/v1/tasks/sentiment/aliases/prod"


def prod(revision: int, **target: Any) -> dict[str, Any]:
    nothing = {"version": None, "split": None, "ensemble": None}
    return {"task": "sentiment", "name": "prod", **nothing, **target, "revision": revision, "updated_at": 0}


SPLIT = {"split": [{"version": 3, "weight": 0.9}, {"version": 4, "weight": 0.1}]}
ENSEMBLE = {"ensemble": {"members": [1, 2, 3], "mode": "vote"}}


def test_alias_when_moved_compares_with_the_revision_just_read(
    chorus: Callable[..., Ran], service: FakeService
) -> None:
    place = "/v1/tasks/sentiment/aliases/prod"
    service.on(f"GET {place}", {"name": "prod", "version": 2, "revision": 7, "updated_at": 0})
    service.on(f"PUT {place}", {"name": "prod", "version": 1, "revision": 8, "updated_at": 0})
    ran = chorus("alias", "sentiment", "prod", "1")
    assert ran.out == "sentiment:prod is now version 1 (was 2)\n"
    assert service.asked[-1].headers["if-match"] == '"7"'
    assert service.asked[-1].json == {"version": 1}


def test_alias_when_new_must_still_be_new(chorus: Callable[..., Ran], service: FakeService) -> None:
    place = "/v1/tasks/sentiment/aliases/canary"
    service.refuse(f"GET {place}", 404, "alias_not_found")
    service.on(f"PUT {place}", {"name": "canary", "version": 1, "revision": 1, "updated_at": 0})
    assert chorus("alias", "sentiment", "canary", "1").code == Exit.DONE
    assert service.asked[-1].headers["if-none-match"] == "*"


def test_alias_when_someone_else_moved_it_is_refused(chorus: Callable[..., Ran], service: FakeService) -> None:
    place = "/v1/tasks/sentiment/aliases/prod"
    service.on(f"GET {place}", {"name": "prod", "version": 2, "revision": 9, "updated_at": 0})
    service.refuse(f"PUT {place}", 409, "revision_mismatch", "moved meanwhile")
    ran = chorus("alias", "sentiment", "prod", "1", "--expect", "7")
    assert ran.code == Exit.REFUSED
    assert service.asked[-1].headers["if-match"] == '"7"'
    assert "look again" in ran.err


def test_alias_without_a_version_shows_where_they_point(chorus: Callable[..., Ran], service: FakeService) -> None:
    service.on("GET /v1/tasks/sentiment", {"aliases": {"prod": 2}})
    service.on("GET /v1/tasks/sentiment/aliases/prod", {"name": "prod", "version": 2, "revision": 7, "updated_at": 0})
    assert chorus("alias", "sentiment").out.splitlines()[1].split()[:3] == ["prod", "2", "7"]
    assert chorus("alias", "sentiment", "prod", "--json").json["revision"] == 7


def test_alias_moved_to_a_split_sends_every_share(chorus: Callable[..., Ran], service: FakeService) -> None:
    service.on(f"GET {PLACE}", prod(7, version=2))
    service.on(f"PUT {PLACE}", prod(8, **SPLIT))
    ran = chorus("alias", "sentiment", "prod", "--split", "3=9", "--split", "4=1")
    assert ran.out == "sentiment:prod is now split 3=0.9 4=0.1 (was 2)\n"
    assert service.asked[-1].json == {"split": [{"version": 3, "weight": 9}, {"version": 4, "weight": 1}]}
    assert service.asked[-1].headers["if-match"] == '"7"'


@pytest.mark.parametrize(("words", "mode"), [((), "mean"), (("--mode", "vote"), "vote")])
def test_alias_moved_to_an_ensemble_sends_members_and_mode(
    chorus: Callable[..., Ran], service: FakeService, words: tuple[str, ...], mode: str
) -> None:
    service.on(f"GET {PLACE}", prod(7, **SPLIT))
    service.on(f"PUT {PLACE}", prod(8, ensemble={"members": [1, 2, 3], "mode": mode}))
    ran = chorus("alias", "sentiment", "prod", "--ensemble", "1, 2,3", *words)
    assert ran.out == f"sentiment:prod is now {mode} of 1, 2, 3 (was split 3=0.9 4=0.1)\n"
    assert service.asked[-1].json == {"ensemble": {"members": [1, 2, 3], "mode": mode}}


def test_alias_shown_says_where_every_kind_points(chorus: Callable[..., Ran], service: FakeService) -> None:
    service.on("GET /v1/tasks/sentiment", {"aliases": {"prod": SPLIT, "jury": ENSEMBLE, "old": 2}})
    service.on(f"GET {PLACE}", prod(7, **SPLIT))
    service.on("GET /v1/tasks/sentiment/aliases/jury", {**prod(1, **ENSEMBLE), "name": "jury"})
    service.on("GET /v1/tasks/sentiment/aliases/old", {**prod(2, version=2), "name": "old"})
    lines = chorus("alias", "sentiment").out.splitlines()
    assert lines[0].split() == ["ALIAS", "POINTS", "TO", "REVISION", "MOVED"]
    assert [line.split("  ")[0] for line in lines[1:]] == ["jury", "old", "prod"]
    assert "vote of 1, 2, 3" in lines[1]
    assert "split 3=0.9 4=0.1" in lines[3]


@pytest.mark.parametrize(
    "words",
    [
        ("prod", "1", "--split", "2=1", "--split", "3=1"),
        ("prod", "--split", "2=1", "--ensemble", "1,2"),
        ("prod", "--split", "2"),
        ("prod", "--split", "2=much"),
        ("prod", "--split", "2=nan"),
        ("prod", "--split", "two=1"),
        ("prod", "--ensemble", "1,,2"),
        ("prod", "--ensemble", "1,two"),
        ("prod", "--ensemble", "1,0"),
        ("prod", "1", "--mode", "vote"),
        ("prod", "--ensemble", "1,2", "--mode", "median"),
        ("--ensemble", "1,2"),
    ],
)
def test_alias_when_the_target_makes_no_sense_asks_nobody(
    chorus: Callable[..., Ran], service: FakeService, words: tuple[str, ...]
) -> None:
    assert chorus("alias", "sentiment", *words).code == Exit.USAGE
    assert service.asked == []
