"""Promises of `chorus generate`."""

import io
import json
from collections.abc import Callable
from typing import Any

import pytest

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


def test_generate_when_the_stream_breaks_off_with_an_error_fails(
    chorus: Callable[..., Ran], service: FakeService
) -> None:
    body = b'data: {"text": "He"}\n\ndata: {"error": {"code": "engine_failure", "message": "boom"}}\n\ndata: [DONE]\n\n'
    service.on(GENERATE, body, content_type="text/event-stream")
    ran = chorus("generate", "sentiment", "x", "--stream")
    assert ran.code == Exit.FAILED
    assert "boom" in ran.err
