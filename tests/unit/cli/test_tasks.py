"""Promises of `chorus tasks` and `versions`."""

from collections.abc import Callable
from typing import Any

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


def test_tasks_when_prod_points_to_several_says_how(chorus: Callable[..., Ran], service: FakeService) -> None:
    halves = [{"version": 2, "weight": 0.9}, {"version": 3, "weight": 0.1}]
    split = task("sentiment", aliases={"prod": {"split": halves}})
    jury = task("topic", aliases={"prod": {"ensemble": {"members": [1, 2, 3], "mode": "vote"}}})
    service.on("GET /v1/tasks", {"data": [split, jury], "has_more": False})
    lines = chorus("tasks").out.splitlines()
    assert "split 2=0.9 3=0.1" in lines[1]
    assert "vote of 1, 2, 3" in lines[2]
    assert len(service.asked) == 1  # no version whose score would speak for all of them
