"""Aliases over HTTP that point to several versions: what is accepted, how it is shown, what it keeps from happening."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.fakes import FakeBackbone, World, make_world, publish
from tests.live import HANG_S, serving

SPLIT = {"split": [{"version": 2, "weight": 9}, {"version": 1, "weight": 1}]}
ENSEMBLE = {"ensemble": {"members": [1, 2], "mode": "vote"}}
SEVERAL = pytest.mark.parametrize("target", [SPLIT, ENSEMBLE], ids=["split", "ensemble"])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, redis_server_url: str) -> World:
    return make_world(tmp_path_factory.mktemp("world"), redis_server_url, max_rows=4)


@pytest.fixture(scope="module")
def client(world: World) -> Iterator[httpx.Client]:
    with serving(world.app) as live, httpx.Client(base_url=live.url, timeout=HANG_S) as client:
        yield client


@pytest.fixture
def task(world: World, request: pytest.FixtureRequest) -> str:
    """A task of its own for each test. 1, 2: labels; 3: other labels; 4: free text; 5: another backbone; 6: retired;
    7: two fields."""
    name = f"task-{abs(hash(request.node.name))}"[:40]
    publish(world.store, FakeBackbone(), name, "{text}", labels=("yes", "no"))
    publish(world.store, FakeBackbone(), name, "Again: {text}", labels=("no", "yes"), alias=None)
    publish(world.store, FakeBackbone(), name, "{text}?", labels=("yes", "maybe"), alias=None)
    publish(world.store, FakeBackbone(), name, "{text}!", alias=None)
    publish(
        world.store,
        FakeBackbone(name="other-7b", fingerprint="e" * 64),
        name,
        "{text}",
        labels=("yes", "no"),
        alias=None,
    )
    publish(world.store, FakeBackbone(), name, "{text}.", labels=("yes", "no"), alias=None)
    world.store.retire_version(name, 6)
    publish(world.store, FakeBackbone(), name, "{text} {more}", labels=("yes", "no"), alias=None)
    return name


def put(client: httpx.Client, task: str, body: Any, alias: str = "canary", **headers: str) -> httpx.Response:
    return client.put(f"/v1/tasks/{task}/aliases/{alias}", json=body, headers=headers)


def refusal(answer: httpx.Response) -> tuple[int, str, str]:
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["param"]


def test_split_is_shown_with_weights_that_sum_to_one(client: httpx.Client, task: str) -> None:
    shown = put(client, task, SPLIT).json()
    assert shown["split"] == [{"version": 2, "weight": 0.9}, {"version": 1, "weight": 0.1}]
    assert (shown["version"], shown["ensemble"], shown["revision"]) == (None, None, 1)
    assert client.get(f"/v1/tasks/{task}/aliases/canary").json() == shown


def test_ensemble_is_shown_as_it_was_put(client: httpx.Client, task: str) -> None:
    shown = put(client, task, ENSEMBLE).json()
    assert shown["ensemble"] == ENSEMBLE["ensemble"]
    assert (shown["version"], shown["split"]) == (None, None)
    assert put(client, task, {"ensemble": {"members": [2, 1], "mode": "mean"}}).json()["ensemble"]["mode"] == "mean"


@SEVERAL
def test_alias_as_it_is_shown_may_be_put_again(client: httpx.Client, task: str, target: dict[str, Any]) -> None:
    shown = put(client, task, target).json()
    again = {name: shown[name] for name in ("version", "split", "ensemble")}
    assert put(client, task, again).json() == {**shown, "revision": 2, "updated_at": pytest.approx(0, abs=1e12)}


@SEVERAL
def test_alias_moves_between_kinds_by_compare_and_set(client: httpx.Client, task: str, target: dict[str, Any]) -> None:
    first = put(client, task, {"version": 1}, **{"if-none-match": "*"})
    moved = put(client, task, target, **{"if-match": first.headers["etag"]})
    late = put(client, task, {"version": 2}, **{"if-match": first.headers["etag"]})
    assert (moved.status_code, moved.headers["etag"]) == (200, '"2"')
    assert (late.status_code, late.json()["error"]["code"]) == (409, "revision_mismatch")
    assert late.headers["etag"] == '"2"'
    back = put(client, task, {"version": 1}, **{"if-match": '"2"'}).json()
    assert (back["version"], back["split"], back["ensemble"]) == (1, None, None)


def test_task_and_versions_and_models_say_what_mentions_what(client: httpx.Client, task: str) -> None:
    put(client, task, SPLIT)
    put(client, task, ENSEMBLE, alias="jury")
    aliases = client.get(f"/v1/tasks/{task}").json()["aliases"]
    halves = [{"version": 2, "weight": 0.9}, {"version": 1, "weight": 0.1}]
    assert aliases == {"prod": 1, "canary": {"split": halves}, "jury": ENSEMBLE}
    versions = client.get(f"/v1/tasks/{task}/versions").json()["data"]
    assert [one["aliases"] for one in versions[:3]] == [["canary", "jury", "prod"], ["canary", "jury"], []]
    models = {model["id"]: model["root"] for model in client.get("/v1/models").json()["data"]}
    assert models[f"{task}:canary"] == f"{task}@2,1"
    assert client.get(f"/v1/models/{task}:jury").json()["root"] == f"{task}@1,2"


@SEVERAL
def test_version_that_is_one_of_several_is_not_retired(client: httpx.Client, task: str, target: dict[str, Any]) -> None:
    put(client, task, target)
    refused = client.delete(f"/v1/tasks/{task}/versions/2")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "version_in_use")
    put(client, task, {"version": 1})
    assert client.delete(f"/v1/tasks/{task}/versions/2").json()["state"] == "retired"


def split(*shares: tuple[Any, Any]) -> dict[str, Any]:
    return {"split": [{"version": version, "weight": weight} for version, weight in shares]}


def ensemble(*members: int, **fields: Any) -> dict[str, Any]:
    return {"ensemble": {"members": list(members), "mode": "vote", **fields}}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "version"),
        ({"version": 1, **SPLIT}, "split"),
        ({**SPLIT, **ENSEMBLE}, "ensemble"),
        (split((1, 1)), "split"),
        (split(*[(number, 1) for number in range(1, 18)]), "split"),
        (split((1, 1), (1, 1)), "split.1.version"),
        (split((1, 1), (2, 0)), "split.1.weight"),
        (split((1, -1), (2, 1)), "split.0.weight"),
        (split((1, 1e300), (2, 1)), "split.0.weight"),
        (split((1, 1), (2, "1")), "split.1.weight"),
        (split((1, 1), (2, True)), "split.1.weight"),
        (split((0, 1), (2, 1)), "split.0.version"),
        ({"split": {"1": 0.5, "2": 0.5}}, "split"),
        (ensemble(1), "ensemble.members"),
        (ensemble(*range(1, 18)), "ensemble.members"),
        (ensemble(1, 2, 1), "ensemble.members.2"),
        (ensemble(1, 0), "ensemble.members.1"),
        (ensemble(1, 2, mode="median"), "ensemble.mode"),
        (ensemble(1, 2, by="vote"), "ensemble.by"),
        ({"ensemble": {"members": [1, 2]}}, "ensemble.mode"),
    ],
)
def test_malformed_target_is_refused_by_its_place(
    client: httpx.Client, task: str, body: dict[str, Any], param: str
) -> None:
    assert refusal(put(client, task, body)) == (422, "invalid_request", param)
    assert client.get(f"/v1/tasks/{task}/aliases/canary").status_code == 404


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({"version": 99}, 404, "version_not_found", "version"),
        (split((1, 1), (99, 1)), 404, "version_not_found", "split.1.version"),
        (ensemble(99, 1), 404, "version_not_found", "ensemble.members.0"),
        ({"version": 6}, 409, "conflict", "version"),
        (split((6, 1), (1, 1)), 409, "conflict", "split.0.version"),
        (ensemble(1, 6), 409, "conflict", "ensemble.members.1"),
        ({"version": 5}, 422, "capability_missing", "version"),
        (split((1, 1), (5, 1)), 422, "capability_missing", "split.1.version"),
        (ensemble(5, 1), 422, "capability_missing", "ensemble.members.0"),
        (ensemble(1, 2, 3), 422, "capability_missing", "ensemble.members.2"),
        (ensemble(4, 1), 422, "capability_missing", "ensemble.members.1"),
        (ensemble(1, 7), 422, "capability_missing", "ensemble.members.1"),
        (split((7, 1), (1, 1)), 422, "capability_missing", "split.1.version"),
        (ensemble(1, 2, 3, 4, 5), 422, "capability_missing", "ensemble.members"),
    ],
)
def test_target_that_could_not_answer_is_refused_when_it_is_put(
    client: httpx.Client, task: str, body: dict[str, Any], status: int, code: str, param: str
) -> None:
    assert refusal(put(client, task, body)) == (status, code, param)
    assert client.get(f"/v1/tasks/{task}/aliases/canary").status_code == 404


def test_split_may_join_versions_that_answer_differently(client: httpx.Client, task: str) -> None:
    assert put(client, task, split((1, 1), (4, 1))).status_code == 200


@SEVERAL
def test_member_in_quarantine_fails_the_row_by_name_and_nothing_stands_in_for_it(
    client: httpx.Client, world: World, task: str, target: dict[str, Any]
) -> None:
    put(client, task, target)
    world.store.set_state(task, 2, "quarantined")
    put(client, task, {"version": 1}, alias="touch")  # by now the service knows
    refused = client.post(f"/v1/tasks/{task}:canary/generate", json={"input": "x"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "version_unavailable")
    assert f"{task}@2" in refused.json()["error"]["message"]
