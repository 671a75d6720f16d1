"""Promises of `chorus explain`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.cli.errors import Exit
from tests.unit.cli.conftest import FakeService, Ran

WORDS = [
    {"token": 5, "text": " movie", "cosine": 0.91, "distance": 0.4},
    {"token": 6, "text": " film", "cosine": 0.52, "distance": 0.9},
]


def view(**fields: Any) -> dict[str, Any]:
    base = {"task": "mood", "version": 3, "digest": "ab" * 32, "template": "<prompt:1>{text}"}
    return {**base, "vectors": [], "prefix": [], **fields}


def test_explain_of_a_version_shows_each_vector_with_its_words(
    chorus: Callable[..., Ran], service: FakeService
) -> None:
    vectors = [{"slot": 0, "index": 0, "norm": 1.25, "words": WORDS}]
    service.on("GET /v1/tasks/mood/versions/3/vectors", view(vectors=vectors))
    ran = chorus("explain", "mood@3", "--words", "2")
    assert service.asked[0].path.endswith("words=2")
    assert "1.25" in ran.out
    assert "' movie' 0.91" in ran.out
    assert "' film' 0.52" in ran.out


def test_explain_of_a_task_asks_for_the_version_behind_its_alias(
    chorus: Callable[..., Ran], service: FakeService
) -> None:
    service.on("GET /v1/tasks/mood/aliases/prod", {"name": "prod", "version": 3})
    service.on("GET /v1/tasks/mood/versions/3/vectors", view(prefix=[{"index": 0, "keys": 2.5, "values": 0.5}]))
    out = chorus("explain", "mood").out
    assert "2.50" in out
    assert "mood@3" in out


def test_explain_of_an_ensemble_says_to_name_one_version(chorus: Callable[..., Ran], service: FakeService) -> None:
    service.on("GET /v1/tasks/mood/aliases/team", {"name": "team", "version": None})
    ran = chorus("explain", "mood:team")
    assert ran.code == Exit.FAILED
    assert "name one: mood@1" in ran.err


def test_explain_of_no_reference_is_a_usage_error(chorus: Callable[..., Ran], service: FakeService) -> None:
    assert chorus("explain", "mood@prod").code == Exit.USAGE


def test_explain_of_a_hand_written_version_says_so(chorus: Callable[..., Ran], service: FakeService) -> None:
    service.on("GET /v1/tasks/mood/versions/3/vectors", view())
    assert "no vectors" in chorus("explain", "mood@3").out


def test_explain_with_rows_shows_what_each_vector_is_worth_the_best_first(
    chorus: Callable[..., Ran], service: FakeService, tmp_path: Path
) -> None:
    rows = tmp_path / "dev rows.jsonl"
    rows.write_text('{"text": "fine", "label": "good"}\n')
    service.on("GET /v1/tasks/mood/versions/3/vectors", view(vectors=[{"slot": 0, "index": 0, "norm": 1, "words": []}]))
    service.on("PUT /v1/datasets/dev-rows", {"name": "dev-rows", "rows": 1})
    worth = {"part": "prompt", "slot": 0}
    found = {"metric": "accuracy", "rows": 1, "score": 0.75, "loss": 0.5}
    found["vectors"] = [worth | {"index": 0, "score": 0.75, "loss": 0.4}, worth | {"index": 1, "score": 0.5, "loss": 2}]
    service.on("POST /v1/tasks/mood/versions/3/leave-one-out", found)
    ran = chorus("explain", "mood@3", "--rows", str(rows), "--sample", "9")
    assert service.asked[-1].json == {"data": {"dataset": "dev-rows"}, "sample": 9}
    assert "accuracy 0.7500" in ran.out
    assert ran.out.index("+1.5000") < ran.out.index("-0.1000")
    assert chorus("explain", "mood@3", "--rows", str(rows), "--json").json["leave_one_out"] == found


def test_explain_with_a_sample_of_no_rows_is_a_usage_error(chorus: Callable[..., Ran], service: FakeService) -> None:
    assert chorus("explain", "mood@3", "--sample", "9").code == Exit.USAGE
