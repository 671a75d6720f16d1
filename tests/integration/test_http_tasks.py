"""Tasks, versions and aliases over HTTP: definitions, pages, compare-and-set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from prompt_store import StoreUnavailable
from tests.fakes import FakeBackbone, World, make_world, publish
from tests.live import HANG_S, serving, wait_until


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, redis_server_url: str) -> World:
    return make_world(tmp_path_factory.mktemp("world"), redis_server_url)


@pytest.fixture(scope="module")
def client(world: World) -> Iterator[httpx.Client]:
    with serving(world.app) as live, httpx.Client(base_url=live.url, timeout=HANG_S) as client:
        yield client


@pytest.fixture
def task(world: World, client: httpx.Client, request: pytest.FixtureRequest) -> str:
    """A task of its own for each test, with versions 1 and 2; `prod` points to 2."""
    name = f"task-{abs(hash(request.node.name))}"[:40]
    publish(world.store, FakeBackbone(), name, "{text}")
    publish(world.store, FakeBackbone(), name, "Again: {text}")
    assert client.put(f"/v1/tasks/{name}/aliases/touch", json={"version": 1}).status_code == 200  # makes it seen
    return name


def away(*_: object, **__: object) -> None:
    raise StoreUnavailable("the server is away")


def code(answer: httpx.Response) -> Any:
    return answer.json()["error"]["code"]


def test_put_creates_a_task_then_changes_it(client: httpx.Client) -> None:
    body = {"fields": ["question"], "labels": ["who", "when"], "description": "asks", "decoding": {"max_tokens": 4}}
    created = client.put("/v1/tasks/new-task", json=body)
    changed = client.put("/v1/tasks/new-task", json={**body, "description": "asks on"})
    assert (created.status_code, changed.status_code) == (201, 200)
    assert changed.json()["description"] == "asks on"
    assert created.json()["id"] == changed.json()["id"]
    assert client.get("/v1/tasks/new-task").json() == changed.json()
    assert changed.json()["decoding"]["max_tokens"] == 4


def test_put_again_of_the_same_definition_is_200(client: httpx.Client) -> None:
    first, again = (client.put("/v1/tasks/put-twice", json={"fields": ["text"]}) for _ in range(2))
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()


def test_put_when_the_store_is_away_right_after_it_answers_what_was_put(
    world: World, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        for read in ("snapshot", "delta", "events", "epoch"):
            patch.setattr(world.store, read, away)
        answer = client.put("/v1/tasks/unseen", json={"fields": ["text"]})
        assert (answer.status_code, answer.json()["aliases"]) == (201, {})
        assert client.get("/v1/tasks/unseen").status_code == 404
    wait_until(lambda: client.get("/v1/tasks/unseen").status_code == 200)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"fields": []},
        {"fields": ["a b"]},
        {"fields": ["text"], "labels": ["one"]},
        {"fields": ["text"], "labels": [""]},
        {"fields": ["text"], "metric": "beauty"},
        {"fields": ["text"], "id": "mine"},
        {"fields": "text"},
        {"fields": ["text"], "labels": ["a", "b"], "abstain_below": 1.5},
        {"fields": ["text"], "abstain_below": 0.5},
    ],
)
def test_put_refuses_a_malformed_definition(client: httpx.Client, body: dict[str, Any]) -> None:
    assert client.put("/v1/tasks/malformed", json=body).status_code == 422
    assert client.get("/v1/tasks/malformed").status_code == 404


def test_put_of_abstain_below_is_shown_and_only_for_tasks_with_labels(client: httpx.Client) -> None:
    body = {"fields": ["text"], "labels": ["a", "b"], "abstain_below": 0.6}
    assert client.put("/v1/tasks/careful", json=body).json()["abstain_below"] == 0.6
    assert client.get("/v1/tasks/careful").json()["abstain_below"] == 0.6
    error = client.put("/v1/tasks/careless", json={"fields": ["text"], "abstain_below": 0.6}).json()["error"]
    assert (error["code"], error["param"]) == ("invalid_request", "abstain_below")
    assert "labels" in error["message"]


def test_list_of_tasks_pages_by_name(client: httpx.Client) -> None:
    first = client.get("/v1/tasks", params={"limit": 2}).json()
    rest = client.get("/v1/tasks", params={"after": first["data"][-1]["name"], "limit": 1000}).json()
    names = [task["name"] for task in first["data"] + rest["data"]]
    assert (first["has_more"], rest["has_more"]) == (True, False)
    assert names == sorted(names)
    assert {"echo", "nli", "sentiment"} <= set(names)


def test_deleted_task_is_gone_with_its_versions(client: httpx.Client, task: str) -> None:
    assert client.delete(f"/v1/tasks/{task}").status_code == 204
    assert code(client.get(f"/v1/tasks/{task}")) == "task_not_found"
    assert code(client.post(f"/v1/tasks/{task}/generate", json={"input": "x"})) == "task_not_found"
    assert code(client.delete(f"/v1/tasks/{task}")) == "task_not_found"


def test_versions_are_listed_with_their_aliases_and_without_golden_inputs(client: httpx.Client, task: str) -> None:
    page = client.get(f"/v1/tasks/{task}/versions").json()
    assert [(one["version"], one["aliases"]) for one in page["data"]] == [(1, ["touch"]), (2, ["prod"])]
    assert page["data"][0]["template"] == "{text}"
    assert "golden" not in page["data"][0]
    assert client.get(f"/v1/tasks/{task}/versions", params={"after": 1}).json()["data"] == page["data"][1:]
    assert client.get(f"/v1/tasks/{task}/versions/2").json() == page["data"][1]


def test_retired_version_answers_no_more_but_keeps_its_record(client: httpx.Client, task: str) -> None:
    client.delete(f"/v1/tasks/{task}/aliases/touch")
    assert client.delete(f"/v1/tasks/{task}/versions/1").json()["state"] == "retired"
    assert client.get(f"/v1/tasks/{task}/versions/1").json()["state"] == "retired"
    assert code(client.post(f"/v1/tasks/{task}@1/generate", json={"input": "x"})) == "version_not_found"


def test_version_in_use_is_not_retired(client: httpx.Client, task: str) -> None:
    refused = client.delete(f"/v1/tasks/{task}/versions/2")
    assert (refused.status_code, code(refused)) == (409, "version_in_use")
    assert refused.headers["x-should-retry"] == "false"


def test_moved_alias_answers_at_once(client: httpx.Client, task: str) -> None:
    def version() -> Any:
        return client.post(f"/v1/tasks/{task}/generate", json={"input": "x"}).json()["outputs"][0]["version"]

    assert version() == 2
    client.put(f"/v1/tasks/{task}/aliases/prod", json={"version": 1})
    assert version() == 1


def test_alias_moves_by_compare_and_set(client: httpx.Client, task: str) -> None:
    url = f"/v1/tasks/{task}/aliases/prod"
    seen = client.get(url)
    moved = client.put(url, json={"version": 1}, headers={"if-match": seen.headers["etag"]})
    late = client.put(url, json={"version": 2}, headers={"if-match": seen.headers["etag"]})
    assert moved.status_code == 200
    assert moved.json()["revision"] == seen.json()["revision"] + 1
    assert (late.status_code, code(late), late.headers["x-should-retry"]) == (409, "revision_mismatch", "false")
    assert late.headers["etag"] == moved.headers["etag"]
    assert client.get(url).json() == moved.json()


def test_if_none_match_star_only_creates(client: httpx.Client, task: str) -> None:
    url = f"/v1/tasks/{task}/aliases/canary"
    first = client.put(url, json={"version": 1}, headers={"if-none-match": "*"})
    second = client.put(url, json={"version": 2}, headers={"if-none-match": "*"})
    assert (first.status_code, second.status_code) == (200, 409)


def test_alias_is_deleted_only_at_the_revision_asked(client: httpx.Client, task: str) -> None:
    url = f"/v1/tasks/{task}/aliases/touch"
    assert client.delete(url, headers={"if-match": '"77"'}).status_code == 409
    assert client.delete(url, headers={"if-match": client.get(url).headers["etag"]}).status_code == 204
    assert code(client.get(url)) == "alias_not_found"


@pytest.mark.parametrize(
    "headers",
    [
        {"if-match": "3"},
        {"if-match": 'W/"3"'},
        {"if-match": '"1", "2"'},
        {"if-match": '"0"'},
        {"if-match": "*"},
        {"if-none-match": '"3"'},
        {"if-match": '"1"', "if-none-match": "*"},
    ],
)
def test_precondition_that_cannot_be_met_exactly_is_422(
    client: httpx.Client, task: str, headers: dict[str, str]
) -> None:
    refused = client.put(f"/v1/tasks/{task}/aliases/prod", json={"version": 1}, headers=headers)
    assert refused.status_code == 422


@pytest.mark.parametrize(
    ("body", "status", "expected"),
    [
        ({"version": 99}, 404, "version_not_found"),
        ({"version": 0}, 422, "invalid_request"),
        ({"version": "1"}, 422, "invalid_request"),
        ({}, 422, "invalid_request"),
    ],
)
def test_alias_target_is_one_existing_version(
    client: httpx.Client, task: str, body: dict[str, Any], status: int, expected: str
) -> None:
    refused = client.put(f"/v1/tasks/{task}/aliases/prod", json=body)
    assert (refused.status_code, code(refused)) == (status, expected)


def test_models_are_the_aliases_with_version_and_backbone(client: httpx.Client, task: str) -> None:
    models = {model["id"]: model for model in client.get("/v1/models").json()["data"]}
    assert models[task]["root"] == f"{task}@2"
    assert models[f"{task}:touch"]["root"] == f"{task}@1"
    assert models[task]["parent"] == "fake-1m"
    assert client.get(f"/v1/models/{task}@1").json()["root"] == f"{task}@1"
    assert client.get("/v1/models/nothing").status_code == 404
