"""Promises of `chorus generate`."""

import io
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from app.cli.client import ChorusClient
from app.cli.errors import Exit
from tests.unit.cli.conftest import FakeService, Ran

GENERATE = "POST /v1/tasks/sentiment/generate"
USAGE = {"prompt_tokens": 5, "virtual_tokens": 20, "completion_tokens": 0, "total_tokens": 25}


def output(**fields: Any) -> dict[str, Any]:
    base = {"task": "sentiment", "version": 3, "digest": "d" * 64, "text": "positive", "label": "positive"}
    return {**base, "scores": {"negative": 0.1, "positive": 0.9}, "finish_reason": "label", "usage": USAGE, **fields}


def test_generate_when_asked_prints_the_label_and_where_it_came_from(
    chorus: Callable[..., Ran], service: FakeService
) -> None:
    service.on(GENERATE, {"outputs": [output()]})
    ran = chorus("generate", "sentiment", "What a film!")
    assert ran.code == Exit.DONE
    assert ran.out == "positive\n"
    assert "sentiment@3" in ran.err
    assert "20 virtual" in ran.err
    assert service.asked[0].json == {"input": "What a film!", "scores": True}


def test_generate_with_fields_and_options_sends_them(chorus: Callable[..., Ran], service: FakeService) -> None:
    service.on("POST /v1/tasks/nli@2/generate", {"outputs": [output(task="nli")]})
    options = "--no-scores --max-tokens 4 --temperature 0.5 --seed 0 --stop . --top-k 3 --json"
    ran = chorus("generate", "nli@2", "--field", "premise=a=b", "-f", "hypothesis=c", *options.split())
    assert ran.json["outputs"][0]["task"] == "nli"
    assert service.asked[0].json == {
        "input": {"premise": "a=b", "hypothesis": "c"},
        **{"max_tokens": 4, "temperature": 0.5, "seed": 0, "stop": ["."], "top_k": 3},
    }


def test_generate_when_no_label_is_given_says_why_and_how_many_agree(
    chorus: Callable[..., Ran], service: FakeService
) -> None:
    service.on(GENERATE, {"outputs": [output(label=None, text="", abstained=True, agreement=2 / 3)]})
    ran = chorus("generate", "sentiment", "x", "--calibrate")
    assert ran.out == "\n"
    assert "no label is likely enough" in ran.err
    assert "67% of the members agree" in ran.err
    assert service.asked[0].json == {"input": "x", "scores": True, "calibrate": True}


@pytest.mark.parametrize("argv", [[], ["x", "--field", "a=b"], ["--field", "nothing"], ["--field", "=b"]])
def test_generate_when_the_input_is_unclear_exits_with_usage(chorus: Callable[..., Ran], argv: list[str]) -> None:
    assert chorus("generate", "sentiment", *argv).code == Exit.USAGE


def test_generate_when_text_holds_markup_or_escapes_shows_them_harmless(
    chorus: Callable[..., Ran], service: FakeService
) -> None:
    service.on(GENERATE, {"outputs": [output(label=None, scores=None, text="[red]x[/] \x1b[2J 日本\nnext")]})
    ran = chorus("generate", "sentiment", "x")
    assert ran.out == "[red]x[/] \\x1b[2J 日本\nnext\n"


def test_generate_when_lines_come_in_answers_each_in_order(
    chorus: Callable[..., Ran], service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo\n"))
    error = {"code": "context_too_long", "message": "too long"}
    service.on(GENERATE, {"outputs": [output(), output(error=error, label=None, text=None)]})
    ran = chorus("generate", "sentiment", "-")
    assert ran.out.splitlines() == ["positive", "ERROR context_too_long: too long"]
    assert ran.code == Exit.FAILED
    assert service.asked[0].json["inputs"] == ["one", "two"]


def test_generate_when_streamed_shows_the_text_as_it_comes(chorus: Callable[..., Ran], service: FakeService) -> None:
    events = [
        {"index": 0, "text": "Hel"},
        {"index": 0, "text": "lo", "finish_reason": "stop", "task": "s", "version": 1},
    ]
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
    service.on(GENERATE, body.encode(), content_type="text/event-stream")
    ran = chorus("generate", "sentiment", "x", "--stream")
    assert ran.out == "Hello\n"
    assert service.asked[0].json["stream"] is True


def test_generate_when_a_streamed_text_holds_unicode_line_breaks_keeps_them(
    chorus: Callable[..., Ran], service: FakeService
) -> None:
    text = "a\u2028b\u2029c\x85d"
    event = json.dumps({"index": 0, "text": text, "finish_reason": "stop"}, ensure_ascii=False)
    service.on(GENERATE, f"data: {event}\n\ndata: [DONE]\n\n".encode(), content_type="text/event-stream")
    (line,) = [
        json.loads(line) for line in chorus("generate", "sentiment", "x", "--stream", "--json").out.split("\n") if line
    ]
    assert line["text"] == text


@pytest.mark.parametrize(("timeout_s", "least"), [(None, 600), (300.0, 330), (900.0, 930)])
def test_generate_when_the_first_token_takes_its_time_waits_as_long_as_the_deadline(
    timeout_s: float | None, least: float
) -> None:
    waits = []

    def answer(request: httpx.Request) -> httpx.Response:
        waits.append(request.extensions["timeout"]["read"])
        return httpx.Response(200, json={}) if b'"stream"' not in request.content else httpx.Response(200)

    body = {} if timeout_s is None else {"timeout_s": timeout_s}
    with ChorusClient("http://127.0.0.1:1", transport=httpx.MockTransport(answer)) as client:
        client.generate("t", body)
        assert list(client.stream("t", body)) == []
    assert len(waits) == 2
    assert min(waits) >= least


def test_generate_when_a_text_cannot_be_sent_exits_with_usage(chorus: Callable[..., Ran]) -> None:
    for how in ((), ("--stream",)):
        ran = chorus("generate", "sentiment", "\udcff", *how)
        assert ran.code == Exit.USAGE
        assert "UTF-8" in ran.err
        assert "unexpected" not in ran.err


def test_generate_when_the_lines_are_not_utf8_exits_with_usage(
    chorus: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8"))
    ran = chorus("generate", "sentiment", "-")
    assert ran.code == Exit.USAGE
    assert "UTF-8" in ran.err


def test_generate_when_a_line_fails_as_json_prints_one_line_each_and_no_more(
    chorus: Callable[..., Ran], service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo\n"))
    error = {"code": "context_too_long", "message": "too long"}
    service.on(GENERATE, {"outputs": [output(), output(error=error, label=None, text=None)]})
    ran = chorus("generate", "sentiment", "-", "--json")
    assert ran.code == Exit.FAILED
    assert [line.get("error") for line in ran.lines] == [None, error]


def test_generate_when_the_stream_breaks_off_as_json_prints_the_error_as_a_line(
    chorus: Callable[..., Ran], service: FakeService
) -> None:
    body = b'data: {"text": "He"}\n\ndata: {"error": {"code": "engine_failure", "message": "boom"}}\n\ndata: [DONE]\n\n'
    service.on(GENERATE, body, content_type="text/event-stream")
    ran = chorus("generate", "sentiment", "x", "--stream", "--json")
    assert ran.code == Exit.FAILED
    assert [set(line) for line in ran.lines] == [{"text"}, {"error"}]


def test_generate_when_the_stream_breaks_off_with_an_error_fails(
    chorus: Callable[..., Ran], service: FakeService
) -> None:
    body = b'data: {"text": "He"}\n\ndata: {"error": {"code": "engine_failure", "message": "boom"}}\n\ndata: [DONE]\n\n'
    service.on(GENERATE, body, content_type="text/event-stream")
    ran = chorus("generate", "sentiment", "x", "--stream")
    assert ran.code == Exit.FAILED
    assert "boom" in ran.err
