"""Promises of `chorus tasks`, `versions` and `alias`."""

from collections.abc import Callable
from typing import Any

from app.cli.errors import Exit
from tests.unit.cli.conftest import FakeService, Ran

CARD = [
    {"metric": "accuracy", "score": 0.874, "n": 872, "interval": [0.85, 0.89], "baselines": {"majority": 0.509}},
]


def task(name: str, **fields: Any) -> dict[str, Any]:
    base = {"name": name, "fields": ["text"], "labels": ["bad", "good"], "aliases": {"prod": 2}, "description": ""}
    return {**base, **fields}


def version(number: int, **fields: Any) -> dict[str, Any]:
    base = {"task": "sentiment", "version": number, "digest": "ab" * 32, "state": "published", "aliases": ["prod"]}
    method = {"method": {"type": "prompt_tuning"}, "num_virtual_tokens": 20}
    return {**base, **method, "card": CARD, "created_at": 1_700_000_000.0, **fields}


def test_tasks_shows_each_with_its_score(chorus: Callable[..., Ran], service: FakeService) -> None:
    free = task("story", labels=None, fields=["title", "mood"], aliases={})
    service.on("GET /v1/tasks", {"data": [task("sentiment"), free], "has_more": False})
    service.on("GET /v1/tasks/sentiment/versions/2", version(2))
    lines = chorus("tasks").out.splitlines()
    assert lines[0].split() == ["TASK", "READS", "ANSWERS", "PROD", "SCORE"]
    assert "accuracy 0.874 ±0.020 (n 872)" in lines[1]
    assert "title, mood" in lines[2]
    assert "free text" in lines[2]
    assert lines[2].endswith("–")


def test_tasks_that_abstain_say_under_which_probability(chorus: Callable[..., Ran], service: FakeService) -> None:
    service.on("GET /v1/tasks", {"data": [task("careful", aliases={}, abstain_below=0.6)], "has_more": False})
    assert "bad, good; none under 0.6" in chorus("tasks").out


def test_tasks_when_there_are_several_pages_reads_all(chorus: Callable[..., Ran], service: FakeService) -> None:
    service.on("GET /v1/tasks", {"data": [task("a", aliases={})], "has_more": True})
    service.on("GET /v1/tasks", {"data": [task("b", aliases={})], "has_more": False})
    assert [one["name"] for one in chorus("tasks", "--json").json] == ["a", "b"]
    assert "after=a" in service.asked[1].path


def test_tasks_when_there_is_none_says_how_to_make_one(chorus: Callable[..., Ran], service: FakeService) -> None:
    service.on("GET /v1/tasks", {"data": [], "has_more": False})
    assert "chorus train" in chorus("tasks").out


def test_versions_shows_the_newest_first(chorus: Callable[..., Ran], service: FakeService) -> None:
    older = version(1, aliases=[], card=[], state="retired")
    service.on("GET /v1/tasks/sentiment/versions", {"data": [older, version(2)], "has_more": False})
    lines = chorus("versions", "sentiment").out.splitlines()
    assert lines[1].split()[:3] == ["2", "prod", "published"]
    assert "majority 0.509" in lines[1]
    assert lines[2].split()[:3] == ["1", "–", "retired"]


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
    service.on("GET /v1/tasks/sentiment", task("sentiment"))
    service.on("GET /v1/tasks/sentiment/aliases/prod", {"name": "prod", "version": 2, "revision": 7, "updated_at": 0})
    assert chorus("alias", "sentiment").out.splitlines()[1].split()[:3] == ["prod", "2", "7"]
    assert chorus("alias", "sentiment", "prod", "--json").json["revision"] == 7
