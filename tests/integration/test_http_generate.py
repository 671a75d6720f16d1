"""Generate routes over real HTTP with a fake engine: what is asked, what is answered, what fails and how."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from app.errors import Overloaded
from tests.fakes import SECRET, World, make_world
from tests.live import HANG_S, serving, wait_until


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, redis_server_url: str) -> World:
    return make_world(tmp_path_factory.mktemp("world"), redis_server_url, max_inputs=50)


@pytest.fixture(scope="module")
def client(world: World) -> Iterator[httpx.Client]:
    with serving(world.app) as live, httpx.Client(base_url=live.url, timeout=HANG_S) as client:
        yield client


def ask(client: httpx.Client, ref: str, **body: Any) -> httpx.Response:
    return client.post(f"/v1/tasks/{ref}/generate", json=body)


def events(text: str) -> list[Any]:
    """The data of each server-sent event; `[DONE]` as it stands."""
    data = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    return [one if one == "[DONE]" else json.loads(one) for one in data]


def test_single_input_answers_with_pinned_version_and_usage(client: httpx.Client) -> None:
    answer = ask(client, "sentiment", input="a fine film").json()
    output = answer["outputs"][0]
    assert set(answer) == {"id", "task", "outputs", "usage"}
    assert set(output) == {
        *("task", "version", "digest", "text", "label", "scores", "abstained", "agreement"),
        *("finish_reason", "usage", "members", "error"),
    }
    assert (output["task"], output["version"], len(output["digest"])) == ("sentiment", 1, 64)
    assert (output["text"], output["label"], output["finish_reason"]) == ("negative", "negative", "label")
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 0, "total_tokens": 3, "virtual_tokens": 0}


def test_scores_are_returned_only_when_asked(client: httpx.Client) -> None:
    assert ask(client, "sentiment", input="x").json()["outputs"][0]["scores"] is None
    asked = ask(client, "sentiment", input="x", scores=True).json()["outputs"][0]["scores"]
    assert asked == {"negative": 0.5, "positive": 0.5}


def test_options_reach_the_engine_over_the_versions_own(client: httpx.Client, world: World) -> None:
    ask(client, "echo", input="x", max_tokens=3, temperature=0.5, top_p=0.9, top_k=4, stop="end", seed=7, timeout_s=2)
    _, _, decoding, seed, timeout_s = world.engine.asked[-1]
    assert decoding.model_dump() == {
        **{"max_tokens": 3, "temperature": 0.5, "top_p": 0.9, "top_k": 4, "stop": ("end",)}
    }
    assert (seed, timeout_s) == (7, pytest.approx(2, abs=0.5))
    assert timeout_s < 2
    ask(client, "echo", input="x")
    assert world.engine.asked[-1][2].max_tokens == 16


def test_input_as_fields_reaches_a_task_of_two_fields(client: httpx.Client, world: World) -> None:
    assert ask(client, "nli", input={"premise": "a", "hypothesis": "b"}).status_code == 200
    assert world.engine.asked[-1][1] == {"premise": "a", "hypothesis": "b"}


def test_bare_text_for_a_task_of_two_fields_is_refused_with_their_names(client: httpx.Client) -> None:
    error = ask(client, "nli", input="a").json()["error"]
    assert error["param"] == "input"
    assert "premise, hypothesis" in error["message"]


@pytest.mark.parametrize("ref", ["sentiment", "sentiment@1", "sentiment:prod"])
def test_every_form_of_reference_answers(client: httpx.Client, ref: str) -> None:
    assert ask(client, ref, input="x").json()["outputs"][0]["version"] == 1


@pytest.mark.parametrize(
    ("ref", "status", "code"),
    [
        ("nothing", 404, "task_not_found"),
        ("sentiment@9", 404, "version_not_found"),
        ("sentiment:canary", 404, "alias_not_found"),
        ("sentiment@prod", 422, "invalid_reference"),
        ("Sentiment", 422, "invalid_name"),
    ],
)
def test_reference_that_means_nothing_is_an_error_and_never_the_bare_model(
    client: httpx.Client, world: World, ref: str, status: int, code: str
) -> None:
    asked = len(world.engine.asked)
    answer = ask(client, ref, input="x")
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert len(world.engine.asked) == asked


def test_word_after_at_sign_suggests_the_alias(client: httpx.Client) -> None:
    assert "sentiment:prod" in ask(client, "sentiment@prod", input="x").json()["error"]["message"]


@pytest.mark.parametrize(
    ("mishap", "status", "code"),
    [
        ("!overloaded", 429, "overloaded"),
        ("!deadline", 504, "deadline_exceeded"),
        ("!long", 422, "context_too_long"),
        ("!failure", 500, "engine_failure"),
        ("!cancelled", 499, "cancelled"),
        ("!bug", 500, "internal_error"),
    ],
)
def test_failing_single_input_is_the_http_error(client: httpx.Client, mishap: str, status: int, code: str) -> None:
    answer = ask(client, "echo", input=mishap)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert SECRET not in answer.text


@pytest.mark.parametrize("content", [b'{"input": "x"}', b'{"input": "x", "stream": true}', b"no json at all"])
@pytest.mark.parametrize("path", ["/v1/tasks/echo/generate", "/v1/generate", "/v1/completions"])
def test_full_queue_refuses_before_it_reads_and_answers_all_else(
    client: httpx.Client, world: World, monkeypatch: pytest.MonkeyPatch, path: str, content: bytes
) -> None:
    asked = len(world.engine.asked)
    monkeypatch.setattr(world.engine, "full", Overloaded("96 rows are waiting; 96 may", retry_after_s=7))
    before = failures(client, "overloaded")
    answer = client.post(path, content=content, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "overloaded")
    assert answer.headers["retry-after"] == "7"
    assert (len(world.engine.asked), failures(client, "overloaded")) == (asked, before + 1)
    assert client.get("/v1/tasks").status_code == 200


def failures(client: httpx.Client, code: str) -> float:
    found = re.search(
        rf'^chorus_request_failure_total{{code="{code}"}} (\S+)$', client.get("/metrics").text, re.MULTILINE
    )
    return float(found[1]) if found else 0.0


def test_overload_says_when_to_come_back(client: httpx.Client) -> None:
    assert ask(client, "echo", input="!overloaded").headers["retry-after"] == "7"


def test_failing_row_of_inputs_carries_its_error_and_its_neighbours_their_answers(client: httpx.Client) -> None:
    answer = ask(client, "echo", inputs=["one", "!failure", {"wrong": "field"}, "!deadline", "two"])
    outputs = answer.json()["outputs"]
    assert answer.status_code == 200
    assert [output["text"] for output in outputs] == ["one", None, None, None, "two"]
    assert [output["error"] and output["error"]["code"] for output in outputs] == [
        *(None, "engine_failure", "invalid_request", "deadline_exceeded", None)
    ]
    assert [output["finish_reason"] for output in outputs] == ["stop", "error", "error", "timeout", "stop"]
    assert outputs[1]["version"] == 1
    assert SECRET not in answer.text
    assert answer.json()["usage"]["completion_tokens"] == 2


def test_mixed_requests_answer_in_the_order_asked_with_errors_in_their_rows(client: httpx.Client) -> None:
    requests = [
        {"task": "sentiment", "input": "x"},
        {"task": "nothing", "input": "x"},
        {"task": "echo", "input": "hello", "max_tokens": 2},
        {"task": "echo@word", "input": "x"},
        {"task": "echo", "input": "!overloaded"},
    ]
    answer = client.post("/v1/generate", json={"requests": requests})
    outputs = answer.json()["outputs"]
    assert answer.status_code == 200
    assert [output["task"] for output in outputs] == ["sentiment", "nothing", "echo", "echo@word", "echo"]
    assert [output["error"] and output["error"]["code"] for output in outputs] == [
        *(None, "task_not_found", None, "invalid_reference", "overloaded")
    ]


def test_fan_out_gives_one_input_to_every_task(client: httpx.Client) -> None:
    answer = client.post("/v1/generate", json={"tasks": ["sentiment", "echo", "nli"], "input": "hello", "scores": True})
    first, second, third = answer.json()["outputs"]
    assert (first["label"], second["text"]) == ("negative", "hello")
    assert first["scores"] is not None
    assert third["error"]["param"] == "input"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"input": "x", "inputs": ["x"]},
        {"inputs": []},
        {"inputs": ["x"], "stream": True},
        {"input": 3},
        {"input": {}},
        {"input": {"text": 3}},
        {"input": None},
        {"input": "x", "max_tokens": True},
        {"input": "x", "max_tokens": 0},
        {"input": "x", "max_tokens": 1.5},
        {"input": "x", "temperature": "hot"},
        {"input": "x", "stop": [""]},
        {"input": "x", "seed": -1},
        {"input": "x", "scores": "yes"},
        {"input": "x", "timeout_s": 1e9},
        {"input": "x", "model": "gpt-4"},
        {"inputs": ["x"] * 51},
    ],
)
def test_malformed_envelope_is_422_for_the_whole_request(client: httpx.Client, body: dict[str, Any]) -> None:
    answer = ask(client, "echo", **body)
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "invalid_request"


@pytest.mark.parametrize(
    ("path", "field", "body"),
    [
        ("/v1/tasks/echo/generate", "inputs", {"inputs": ["x"] * 51}),
        ("/v1/generate", "requests", {"requests": [{"task": "echo", "input": "x"}] * 51}),
        ("/v1/generate", "tasks", {"tasks": ["echo"] * 51, "input": "x"}),
        ("/v1/completions", "prompt", {"model": "echo", "prompt": ["x"] * 51}),
    ],
)
def test_too_many_rows_are_refused_by_the_name_of_their_field(
    client: httpx.Client, path: str, field: str, body: dict[str, Any]
) -> None:
    answer = client.post(path, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, field)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"requests": []},
        {"tasks": [], "input": "x"},
        {"tasks": ["echo"]},
        {"requests": [{"task": "echo", "input": "x"}], "tasks": ["echo"], "input": "x"},
        {"requests": [{"task": "echo", "input": "x"}], "max_tokens": 3},
        {"requests": [{"task": "echo", "input": "x", "stream": True}]},
        {"requests": [{"input": "x"}]},
    ],
)
def test_malformed_mixed_envelope_is_422(client: httpx.Client, body: dict[str, Any]) -> None:
    assert client.post("/v1/generate", json=body).status_code == 422


def test_error_names_the_row_and_the_field(client: httpx.Client) -> None:
    rows = [{"task": "echo", "input": "x"}, {"task": "echo", "input": "x", "temperatur": 1}]
    error = client.post("/v1/generate", json={"requests": rows}).json()["error"]
    assert error["param"] == "requests.1.temperatur"
    assert "unknown field" in error["message"]


def test_stream_sends_pieces_then_reason_and_usage_then_done(client: httpx.Client) -> None:
    answer = ask(client, "echo", input="one two three", stream=True)
    *pieces, last, done = events(answer.text)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert pieces == [{"index": 0, "text": text} for text in ("one", " two", " three")]
    assert (last["finish_reason"], last["usage"]["completion_tokens"], last["version"]) == ("stop", 3, 1)
    assert done == "[DONE]"


def test_stream_of_a_label_task_is_one_event_with_the_label(client: httpx.Client) -> None:
    answer, done = events(ask(client, "sentiment", input="x", stream=True, scores=True).text)
    assert (answer["label"], answer["text"], answer["finish_reason"]) == ("negative", "negative", "label")
    assert answer["scores"] == {"negative": 0.5, "positive": 0.5}
    assert done == "[DONE]"


def test_stream_that_fails_before_its_first_byte_is_an_http_error(client: httpx.Client) -> None:
    assert ask(client, "echo", input="!overloaded", stream=True).status_code == 429
    assert ask(client, "nothing", input="x", stream=True).status_code == 404


def test_stream_that_fails_after_its_first_byte_ends_with_an_error_event(client: httpx.Client) -> None:
    answer = ask(client, "echo", input="one !break", stream=True)
    first, failed, done = events(answer.text)
    assert answer.status_code == 200
    assert (first["text"], done) == ("one", "[DONE]")
    assert (failed["finish_reason"], failed["error"]["code"]) == ("error", "engine_failure")
    assert failed["error"]["request_id"] == answer.headers["x-request-id"]
    assert SECRET not in answer.text


@pytest.mark.parametrize("body", [{"input": "!hang"}, {"inputs": ["!hang"]}])
def test_client_that_leaves_cancels_its_rows(client: httpx.Client, world: World, body: dict[str, Any]) -> None:
    before = world.engine.cancelled
    with pytest.raises(httpx.ReadTimeout):
        client.post("/v1/tasks/echo/generate", json=body, timeout=httpx.Timeout(HANG_S, read=0.2))
    wait_until(lambda: world.engine.cancelled == before + 1)


def test_client_that_leaves_a_stream_cancels_its_row(client: httpx.Client, world: World) -> None:
    before = world.engine.cancelled
    with client.stream("POST", "/v1/tasks/echo/generate", json={"input": "one !pause", "stream": True}) as answer:
        assert next(answer.iter_lines()) == 'data: {"index": 0, "text": "one"}'
    wait_until(lambda: world.engine.cancelled == before + 1)


def test_request_id_of_the_caller_comes_back_in_header_and_error(client: httpx.Client) -> None:
    answer = client.post("/v1/tasks/nothing/generate", json={"input": "x"}, headers={"x-request-id": "mine-1"})
    assert answer.headers["x-request-id"] == answer.json()["error"]["request_id"] == "mine-1"


def test_rows_of_one_request_keep_the_version_they_began_with(client: httpx.Client, world: World) -> None:
    outputs = ask(client, "echo", inputs=[f"row {n}" for n in range(20)]).json()["outputs"]
    assert {output["digest"] for output in outputs} == {world.store.get_version("echo", 1).digest}
