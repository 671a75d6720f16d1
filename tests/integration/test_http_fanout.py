"""One input for many tasks: the same answers as one by one, in the order asked, each failure in its own place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from app.api.auth.account import Account
from tests.architectures import build_backbone
from tests.fakes import World, make_world
from tests.live import HANG_S, serving, wait_until
from tests.prompts import TEMPLATES, TEXTS, WORDS
from tests.real_world import make_real_world

TOLERANCE = 1e-4
SUFFIXES = ("{text}<prompt:6>", "{text}<prompt:3>", "{text} It was<prompt:4>", "{text}\nSo:<prompt:20>")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, redis_server_url: str) -> World:
    return make_world(tmp_path_factory.mktemp("world"), redis_server_url, max_inputs=50, max_rows=4)


@pytest.fixture(scope="module")
def client(world: World) -> Iterator[httpx.Client]:
    with serving(world.app) as live, httpx.Client(base_url=live.url, timeout=HANG_S) as client:
        yield client


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, redis_server_url: str) -> Iterator[httpx.Client]:
    """Tasks `text-i` and `label-i` of every placement of a prompt, on a small Llama."""
    world = make_real_world(
        tmp_path_factory.mktemp("real"), redis_server_url, build_backbone("llama"), max_rows=8, max_context=160
    )
    for place, template in enumerate((*TEMPLATES, *SUFFIXES)):
        world.publish(f"text-{place}", template, seed=place)
        world.publish(f"label-{place}", template, words=WORDS, seed=place)
    with serving(world.app) as live, httpx.Client(base_url=live.url, timeout=HANG_S) as client:
        yield client


def fan_out(client: httpx.Client, tasks: list[str], text: Any, **options: Any) -> httpx.Response:
    return client.post("/v1/generate", json={"tasks": tasks, "input": text, **options})


def alone(client: httpx.Client, task: str, text: str, **options: Any) -> dict[str, Any]:
    output: dict[str, Any] = client.post(f"/v1/tasks/{task}/generate", json={"input": text, **options}).json()
    return dict(output["outputs"][0])


def assert_same(given: dict[str, Any], wanted: dict[str, Any]) -> None:
    scores, expected = given.pop("scores"), wanted.pop("scores")
    assert given == wanted
    assert (scores is None) == (expected is None)
    if scores is not None:
        assert scores == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize("text", [*TEXTS, ""])
def test_fan_out_over_mixed_templates_answers_as_single_requests_do(real: httpx.Client, text: str) -> None:
    tasks = [f"{kind}-{place}" for place in range(len(TEMPLATES) + len(SUFFIXES)) for kind in ("label", "text")]
    answer = fan_out(real, tasks, text, scores=True).json()
    assert [output["task"] for output in answer["outputs"]] == tasks
    for task, output in zip(tasks, answer["outputs"], strict=True):
        assert output["error"] is None
        assert_same(output, alone(real, task, text, scores=True))


def test_fan_out_of_suffix_tasks_over_a_long_text_answers_as_single_requests_do(real: httpx.Client) -> None:
    text = " ".join(TEXTS * 2)
    tasks = [f"label-{len(TEMPLATES) + place}" for place in range(len(SUFFIXES))] * 2
    outputs = fan_out(real, tasks, text, scores=True).json()["outputs"]
    for task, output in zip(tasks, outputs, strict=True):
        assert_same(output, alone(real, task, text, scores=True))


def test_fan_out_with_sampling_and_a_seed_answers_as_single_requests_do(real: httpx.Client) -> None:
    options = {"temperature": 1.0, "seed": 3, "max_tokens": 6}
    tasks = ["text-0", "text-2", "text-5"]
    for task, output in zip(tasks, fan_out(real, tasks, TEXTS[0], **options).json()["outputs"], strict=True):
        assert_same(output, alone(real, task, TEXTS[0], **options))


def test_fan_out_of_a_text_too_long_for_some_fails_for_those_alone(real: httpx.Client) -> None:
    text = "word " * 139
    outputs = fan_out(real, ["label-3", "label-8", "label-2"], text).json()["outputs"]
    codes = [output["error"] and output["error"]["code"] for output in outputs]
    assert codes == [None, "context_too_long", None]


def test_fan_out_is_one_group_of_the_engine_in_the_order_asked(client: httpx.Client, world: World) -> None:
    world.engine.groups.clear()
    outputs = fan_out(client, ["sentiment", "echo", "echo@1"], "hello there").json()["outputs"]
    assert [output["text"] for output in outputs] == ["negative", "hello there", "hello there"]
    assert world.engine.groups == [["sentiment@1", "echo@1", "echo@1"]]


def test_fan_out_larger_than_what_runs_at_once_goes_as_several_groups(client: httpx.Client, world: World) -> None:
    world.engine.groups.clear()
    outputs = fan_out(client, ["echo"] * 7 + ["sentiment"] * 3, "x").json()["outputs"]
    assert [output["task"] for output in outputs] == ["echo"] * 7 + ["sentiment"] * 3
    assert [len(group) for group in world.engine.groups] == [4, 4, 2]


def test_fan_out_failures_stand_in_their_own_places(client: httpx.Client) -> None:
    tasks = ["nothing", "sentiment", "nli", "echo@9", "echo@word", "echo:canary", "echo"]
    answer = fan_out(client, tasks, "x")
    outputs = answer.json()["outputs"]
    assert answer.status_code == 200
    assert [output["task"] for output in outputs] == [
        "nothing",
        "sentiment",
        "nli",
        "echo@9",
        "echo@word",
        "echo:canary",
        "echo",
    ]
    assert [output["error"] and output["error"]["code"] for output in outputs] == [
        *("task_not_found", None, "invalid_request", "version_not_found", "invalid_reference", "alias_not_found", None)
    ]
    assert (outputs[2]["version"], outputs[2]["error"]["param"]) == (1, "input")


@pytest.mark.parametrize(("mishap", "code"), [("!overloaded", "overloaded"), ("!bug", "internal_error")])
def test_fan_out_that_the_engine_fails_says_so_in_each_row(client: httpx.Client, mishap: str, code: str) -> None:
    answer = fan_out(client, ["echo", "sentiment"], mishap)
    assert answer.status_code == 200
    assert [output["error"]["code"] for output in answer.json()["outputs"]] == [code, code]


def test_fan_out_asks_in_place_what_a_task_cannot_do(client: httpx.Client) -> None:
    first, second = fan_out(client, ["echo", "sentiment"], "x", calibrate=True, scores=True).json()["outputs"]
    assert (first["error"]["code"], first["error"]["param"]) == ("invalid_request", "calibrate")
    assert second["scores"] == pytest.approx({"negative": 0.5, "positive": 0.5})


def test_fan_out_usage_is_the_sum_of_its_rows_and_each_row_counts_once(client: httpx.Client) -> None:
    def rows() -> float:
        wanted = 'chorus_request_success_total{finished_reason="label",task="sentiment"}'
        lines = client.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(wanted))

    before = rows()
    answer = fan_out(client, ["echo", "sentiment", "sentiment"], "one two three").json()
    assert answer["usage"] == {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12, "virtual_tokens": 0}
    assert rows() == before + 2


def test_fan_out_with_a_deadline_beyond_the_limit_is_422_for_the_whole_request(client: httpx.Client) -> None:
    answer = fan_out(client, ["echo", "sentiment"], "x", timeout_s=1e9)
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "timeout_s")


def test_client_that_leaves_cancels_every_row_of_its_fan_out(client: httpx.Client, world: World) -> None:
    before = world.engine.cancelled
    with pytest.raises(httpx.ReadTimeout):
        client.post("/v1/generate", json={"tasks": ["echo"] * 3, "input": "!hang"}, timeout=0.3)
    wait_until(lambda: world.engine.cancelled == before + 3)


@pytest.mark.parametrize(
    ("text", "options", "cost"), [("!deadline", {}, 3), ("word " * 8, {"timeout_s": 1e-6}, 11), ("!bug", {}, None)]
)
def test_rows_of_a_fan_out_that_come_too_late_cost_a_guess_each(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch, text: str, options: dict[str, float], cost: int | None
) -> None:
    spent: list[int] = []
    monkeypatch.setattr(Account, "spend", lambda _, tokens: spent.append(tokens))
    outputs = fan_out(client, ["echo", "sentiment"], text, **options).json()["outputs"]
    assert [output["error"]["code"] == "deadline_exceeded" for output in outputs] == [cost is not None] * 2
    assert spent == ([] if cost is None else [cost] * 2)
