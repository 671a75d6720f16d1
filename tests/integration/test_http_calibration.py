"""Label probabilities over HTTP, worked out by hand: after contextual calibration, and too low for an answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.fakes import FakeBackbone, World, make_world, publish
from tests.live import HANG_S, serving


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, redis_server_url: str) -> World:
    """The label tasks `mood`, and `careful`, which abstains under 0.6; two versions of each."""
    world = make_world(tmp_path_factory.mktemp("world"), redis_server_url)
    for number in (1, 2):
        for task in ("mood", "careful"):
            publish(world.store, FakeBackbone(), task, f"v{number}: {{text}}", labels=("bad", "good"))
    return world


@pytest.fixture(scope="module")
def client(world: World) -> Iterator[httpx.Client]:
    with serving(world.app) as live, httpx.Client(base_url=live.url, timeout=HANG_S) as client:
        body = {"fields": ["text"], "labels": ["bad", "good"], "abstain_below": 0.6}
        assert client.put("/v1/tasks/careful", json=body).status_code == 200
        yield client


@pytest.fixture(autouse=True)
def fresh(world: World) -> None:
    world.engine.views.clear()
    world.engine.groups.clear()


def ensemble(client: httpx.Client, ref: str, mode: str, *members: int) -> None:
    task, _, alias = ref.partition(":")
    target = {"ensemble": {"members": list(members), "mode": mode}}
    assert client.put(f"/v1/tasks/{task}/aliases/{alias}", json=target).status_code == 200


def ask(client: httpx.Client, ref: str, **options: Any) -> dict[str, Any]:
    answer = client.post(f"/v1/tasks/{ref}/generate", json={"input": "x", **options})
    assert answer.status_code == 200, answer.text
    return dict(answer.json()["outputs"][0])


def views(world: World, task: str, *good: float) -> None:
    """What versions 1, 2, … think of `good`."""
    for number, share in enumerate(good, start=1):
        world.engine.views[f"{task}@{number}"] = [1 - share, share]


def test_calibrated_scores_are_divided_by_those_of_inputs_without_content(client: httpx.Client, world: World) -> None:
    for text, good in (("N/A", 0.9), ("", 0.6), ("[MASK]", 0.6)):  # mean: 0.7 and 0.3
        world.engine.views["mood@2", text] = [1 - good, good]
    world.engine.views["mood@2"] = [0.4, 0.6]
    plain = ask(client, "mood@2", scores=True)
    assert (plain["label"], plain["scores"]) == ("good", pytest.approx({"bad": 0.4, "good": 0.6}))
    output = ask(client, "mood@2", scores=True, calibrate=True)
    bad, good = 0.4 / 0.3, 0.6 / 0.7
    assert output["label"] == output["text"] == "bad"
    assert output["scores"] == pytest.approx({"bad": bad / (bad + good), "good": good / (bad + good)})
    assert output["usage"] == plain["usage"]


def test_calibration_of_many_rows_asks_the_engine_once(client: httpx.Client, world: World) -> None:
    publish(world.store, FakeBackbone(), "once", "{text}", labels=("bad", "good"))
    assert client.put("/v1/tasks/once/aliases/now", json={"version": 1}).status_code == 200
    body = {"inputs": ["x", "y", "z"], "calibrate": True}
    for _ in range(2):
        assert client.post("/v1/tasks/once:now/generate", json=body).status_code == 200
    assert world.engine.groups == [["once@1"] * 3]
    asked = [given["text"] for name, given, *_ in world.engine.asked if name == "once@1"]
    assert sorted(asked) == sorted(["x", "y", "z"] * 2 + ["N/A", "", "[MASK]"])


def test_calibrated_mean_is_of_the_members_calibrated_scores(client: httpx.Client, world: World) -> None:
    publish(world.store, FakeBackbone(), "pair", "a {text}", labels=("bad", "good"))
    publish(world.store, FakeBackbone(), "pair", "b {text}", labels=("bad", "good"))
    ensemble(client, "pair:mean", "mean", 1, 2)
    for text in ("N/A", "", "[MASK]"):  # asked about nothing, version 1 prefers good and version 2 nothing
        world.engine.views["pair@1", text] = [0.2, 0.8]
        world.engine.views["pair@2", text] = [0.5, 0.5]
    views(world, "pair", 0.8, 0.9)  # calibrated: 0.5 and 0.9
    output = ask(client, "pair:mean", scores=True, calibrate=True, members=True)
    assert output["scores"] == pytest.approx({"bad": 0.3, "good": 0.7})
    assert [member["scores"]["good"] for member in output["members"]] == pytest.approx([0.5, 0.9])


def test_calibrate_of_free_text_is_a_typed_422(client: httpx.Client) -> None:
    answer = client.post("/v1/tasks/echo/generate", json={"input": "x", "calibrate": True})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (422, "invalid_request", "calibrate")


def counted(client: httpx.Client, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def test_label_under_the_threshold_is_not_given_and_counted(client: httpx.Client, world: World) -> None:
    world.engine.views["careful@1"] = [0.45, 0.55]
    name = 'chorus_request_abstained_total{task="careful"}'
    before = counted(client, name)
    output = ask(client, "careful@1", scores=True)
    assert (output["label"], output["text"], output["abstained"], output["finish_reason"]) == (None, "", True, "label")
    assert output["scores"] == pytest.approx({"bad": 0.45, "good": 0.55})
    assert counted(client, name) == before + 1


def test_label_over_the_threshold_is_given(client: httpx.Client, world: World) -> None:
    world.engine.views["careful@1"] = [0.39, 0.61]
    output = ask(client, "careful@1")
    assert (output["label"], output["text"], output["abstained"]) == ("good", "good", False)


def test_threshold_holds_for_the_common_answer_of_an_ensemble(client: httpx.Client, world: World) -> None:
    ensemble(client, "careful:mean", "mean", 1, 2)
    views(world, "careful", 0.9, 0.2)  # the mean is 0.55
    output = ask(client, "careful:mean", members=True)
    assert (output["label"], output["abstained"], output["agreement"]) == (None, True, 0.5)
    assert [member["label"] for member in output["members"]] == ["good", "bad"]


def test_completion_of_a_label_not_given_is_empty(client: httpx.Client) -> None:
    answer = client.post("/v1/completions", json={"model": "careful@1", "prompt": "x"}).json()
    assert [(choice["text"], choice["finish_reason"]) for choice in answer["choices"]] == [("", "stop")]
