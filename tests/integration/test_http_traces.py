"""Traces of requests on a model that really runs: what follows what, in whose trace, with which facts, and no text."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.architectures import build_backbone
from tests.live import HANG_S, serving, wait_until
from tests.prompts import WORDS
from tests.real_world import RealWorld, make_real_world
from tests.traces import GIVEN, SPAN, TRACE, Kept, Seen, named

SECRET = "zebra7"  # stands for what a user wrote


@pytest.fixture(scope="module")
def tracer() -> Kept:
    return Kept()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, redis_server_url: str, tracer: Kept) -> RealWorld:
    folder = tmp_path_factory.mktemp("traced")
    world = make_real_world(folder, redis_server_url, build_backbone("llama"), tracer, max_rows=8, max_context=160)
    world.publish("mood", "<prompt:9>Review: {text}\nSentiment:", words=WORDS)
    world.publish("tale", "<prompt:3>{text}")
    world.publish("late", "<prompt:2>{text}")
    return world


@pytest.fixture(scope="module")
def live(world: RealWorld) -> Iterator[httpx.Client]:
    with serving(world.app) as live, httpx.Client(base_url=live.url, timeout=HANG_S) as client:
        yield client


@pytest.fixture
def client(live: httpx.Client, tracer: Kept) -> httpx.Client:
    tracer.clear()
    return live


def spans_of(tracer: Kept, route: str) -> list[Seen]:
    """Once the request's own span has ended, which is after its answer."""
    wait_until(lambda: any(route in one.name for one in tracer.spans))
    return tracer.spans


def generate(client: httpx.Client, task: str, **body: Any) -> httpx.Response:
    return client.post(f"/v1/tasks/{task}/generate", json=body, headers={"traceparent": GIVEN})


def test_text_is_traced_from_the_request_to_its_turns_in_the_engine(client: httpx.Client, tracer: Kept) -> None:
    answer = generate(client, "tale", input=f"a {SECRET}", max_tokens=4, temperature=0.5, seed=3, stop=[SECRET])
    usage = answer.json()["usage"]
    spans = spans_of(tracer, "/generate")
    request, row = named(spans, "POST /v1/tasks/{ref}/generate"), named(spans, "text_completion tale")
    assert {one.trace for one in spans} == {TRACE}
    assert (request.parent, request.kind, row.parent) == (SPAN, "SERVER", request.id)
    assert answer.headers["traceresponse"] == f"00-{TRACE}-{request.id}-01"
    assert request.facts == {
        "http.request.method": "POST",
        "http.route": "/v1/tasks/{ref}/generate",
        "http.response.status_code": 200,
        "chorus.request_id": answer.headers["x-request-id"],
    }
    assert row.facts.pop("chorus.versions")[0].startswith("tale@1:")
    assert row.facts == {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "chorus",
        "gen_ai.request.model": "tale",
        "gen_ai.response.model": "tale@1",
        "gen_ai.request.max_tokens": 4,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.seed": 3,
        "gen_ai.response.finish_reasons": (answer.json()["outputs"][0]["finish_reason"],),
        "gen_ai.usage.input_tokens": usage["prompt_tokens"],
        "gen_ai.usage.output_tokens": usage["completion_tokens"],
        "chorus.usage.virtual_tokens": 3,
        "chorus.mode": "one",
    }
    queue, prefill, decode = (named(spans, name) for name in ("queue", "prefill", "decode"))
    assert queue.parent == prefill.parent == decode.parent == row.id
    moments = [row.began, queue.began, queue.ended, prefill.began, prefill.ended, decode.began, decode.ended, row.ended]
    slack = 2_000_000  # each is brought to the time of day for itself
    assert all(later >= earlier - slack for earlier, later in itertools.pairwise(moments))
    assert SECRET not in tracer.text


def test_label_is_scored_with_its_prefill_and_has_no_decode(client: httpx.Client, tracer: Kept) -> None:
    label = generate(client, "mood", input=SECRET).json()["outputs"][0]["label"]
    spans = spans_of(tracer, "/generate")
    assert named(spans, "prefill").parent == named(spans, "queue").parent == named(spans, "text_completion mood").id
    assert "decode" not in [one.name for one in spans]
    assert SECRET not in tracer.text
    assert label not in tracer.text


def test_stream_is_traced_as_an_answer_is(client: httpx.Client, tracer: Kept) -> None:
    answer = generate(client, "tale", input=f"a {SECRET}", max_tokens=4, temperature=0.5, seed=3, stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    spans = spans_of(tracer, "/generate")
    row = named(spans, "text_completion tale")
    assert named(spans, "decode").parent == row.id
    assert row.facts["gen_ai.usage.output_tokens"] <= 4


def test_rows_of_one_input_for_many_tasks_are_told_apart(client: httpx.Client, tracer: Kept) -> None:
    body = {"tasks": ["mood", "tale"], "input": f"a {SECRET}", "max_tokens": 2}
    answer = client.post("/v1/generate", json=body, headers={"traceparent": GIVEN})
    assert answer.status_code == 200, answer.text
    spans = spans_of(tracer, "POST /v1/generate")
    request = named(spans, "POST /v1/generate")
    rows = [named(spans, f"text_completion {task}") for task in ("mood", "tale")]
    assert {one.parent for one in rows} == {request.id}
    assert {one.parent for one in spans if one.name == "queue"} == {one.id for one in rows}
    assert [one.name for one in spans].count("registry lookup") == 2
    assert SECRET not in tracer.text


def test_stream_that_is_left_ends_its_request(client: httpx.Client, tracer: Kept) -> None:
    body = {"input": "a", "max_tokens": 120, "temperature": 1.0, "stream": True}
    with client.stream("POST", "/v1/tasks/tale/generate", json=body) as answer:
        next(answer.iter_lines())
    request = named(spans_of(tracer, "/generate"), "POST /v1/tasks/{ref}/generate")
    assert request.facts["http.response.status_code"] in (200, 499)


def test_version_is_looked_up_in_each_request_and_loaded_in_the_first(client: httpx.Client, tracer: Kept) -> None:
    generate(client, "late", input="x")
    spans = spans_of(tracer, "/generate")
    lookup = named(spans, "registry lookup")
    assert lookup.parent == named(spans, "POST /v1/tasks/{ref}/generate").id
    assert (lookup.facts["chorus.task"], lookup.facts["chorus.versions"]) == ("late", ("late@1",))
    loads = [one for one in spans if one.name == "load prompt"]
    assert all(one.parent == lookup.id and one.facts["chorus.version"] == "late@1" for one in loads)
    tracer.clear()
    generate(client, "late", input="x")
    assert "load prompt" not in [one.name for one in spans_of(tracer, "/generate")]


def test_unknown_name_is_told_by_its_code_alone(client: httpx.Client, tracer: Kept) -> None:
    assert generate(client, SECRET, input="x").status_code == 404
    spans = spans_of(tracer, "/generate")
    assert named(spans, "registry lookup").facts == {"error.type": "task_not_found"}
    request = named(spans, "POST /v1/tasks/{ref}/generate")
    assert (request.facts["http.response.status_code"], request.failed) == (404, False)
    assert SECRET not in tracer.text


def test_row_that_fails_says_how(client: httpx.Client, tracer: Kept) -> None:
    answer = generate(client, "tale", input=f"{SECRET} " * 400)
    assert answer.status_code == 422
    row = named(spans_of(tracer, "/generate"), "text_completion tale")
    assert (row.failed, row.facts["error.type"]) == (True, answer.json()["error"]["code"])
    assert SECRET not in tracer.text


def test_unmatched_path_and_query_are_never_told(client: httpx.Client, tracer: Kept) -> None:
    client.get(f"/{SECRET}?q={SECRET}", headers={"x-request-id": "r1", "user-agent": SECRET})
    (request,) = spans_of(tracer, "(unmatched)")
    assert request.name == "GET (unmatched)"
    assert SECRET not in tracer.text


@pytest.mark.parametrize("given", [["junk"], [GIVEN, GIVEN], [f"00-{'0' * 32}-{SPAN}-01"]], ids=["junk", "two", "zero"])
def test_trace_named_invalidly_is_neither_continued_nor_given_back(
    client: httpx.Client, tracer: Kept, given: list[str]
) -> None:
    answer = client.get("/v1/tasks", headers=[("traceparent", one) for one in given])
    (request,) = spans_of(tracer, "/v1/tasks")
    assert (request.parent, request.trace == TRACE) == ("", False)
    assert answer.headers["traceresponse"].split("-")[1:3] == [request.trace, request.id]


def test_probes_and_metrics_are_not_traced(client: httpx.Client, tracer: Kept) -> None:
    for path in ("/livez", "/readyz", "/health", "/metrics"):
        answer = client.get(path, headers={"traceparent": GIVEN})
        assert "traceresponse" not in answer.headers
    time.sleep(0.05)
    assert tracer.spans == []
