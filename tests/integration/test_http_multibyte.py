"""Streams over HTTP of characters that several tokens make up: valid UTF-8 in every event, no piece of a character."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import torch

from app.backbone import Backbone
from tests.architectures import own_copy
from tests.live import HANG_S, serving
from tests.real_world import make_real_world

STORY = " naïve 日本語のレビュー 🙂👩‍👩‍👧🏽 Zażółć 한국어 𝔘 end"


@dataclass
class Script:
    """What the model is made to write, whoever asks: its tokens by their place behind the row."""

    ids: list[int]
    written: int = 0

    def take_over(self, runner: Any) -> None:
        prefill, decode = runner.prefill, runner.decode

        def begin(start: int, items: Any) -> Any:
            done = prefill(start, items)
            self.written = 0
            done.logits[:] = self.next(done.logits)
            return done

        def go_on(tokens: torch.Tensor, lengths: torch.Tensor, longest: int) -> torch.Tensor:
            return self.next(decode(tokens, lengths, longest))

        runner.prefill, runner.decode = begin, go_on

    def next(self, logits: torch.Tensor) -> torch.Tensor:
        assert logits.shape[0] == 1
        told = torch.zeros_like(logits)
        told[:, self.ids[self.written]] = 50.0
        self.written += 1
        return told


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return own_copy("llama")


@pytest.fixture(scope="module")
def client(
    tmp_path_factory: pytest.TempPathFactory, redis_server_url: str, backbone: Backbone
) -> Iterator[tuple[httpx.Client, Any]]:
    world = make_real_world(tmp_path_factory.mktemp("world"), redis_server_url, backbone, max_rows=2, max_context=160)
    world.publish("writer", "<prompt:4>{text}")
    with serving(world.app) as live, httpx.Client(base_url=live.url, timeout=HANG_S) as client:
        yield client, world.app.state.services.engine._engine.runner


@pytest.fixture(scope="module")
def scripted(client: tuple[httpx.Client, Any], backbone: Backbone) -> tuple[httpx.Client, list[int]]:
    ids = backbone.tokenizer.encode_text(STORY)
    assert sum("\ufffd" in backbone.tokenizer.decode([one]) for one in ids) > 20  # parts of characters
    assert backbone.tokenizer.decode(ids) == STORY
    Script([*ids, backbone.tokenizer.eos_ids[0]]).take_over(client[1])
    return client[0], ids


def ask(client: httpx.Client, **options: Any) -> dict[str, Any]:
    answer = client.post("/v1/tasks/writer/generate", json={"input": "日本語 🙂", **options})
    assert answer.status_code == 200
    return dict(answer.json()["outputs"][0])


def stream(client: httpx.Client, **options: Any) -> tuple[list[str], dict[str, Any]]:
    """Texts of all events, each decoded strictly by itself, and the last event."""
    body = {"input": "日本語 🙂", "stream": True, **options}
    with client.stream("POST", "/v1/tasks/writer/generate", json=body) as answer:
        assert answer.status_code == 200
        raw = b"".join(answer.iter_raw())
    parts = [part for part in raw.split(b"\n\n") if part]
    assert parts.pop() == b"data: [DONE]"
    events = [json.loads(part.removeprefix(b"data: ").decode("utf-8", "strict")) for part in parts]
    texts = [event["text"] for event in events]
    for text in texts:
        text.encode("utf-8", "strict")  # no half of a surrogate pair either
    return texts, events[-1]


def test_streamed_story_comes_character_by_character_as_it_comes_whole(
    scripted: tuple[httpx.Client, list[int]],
) -> None:
    client, ids = scripted
    whole = ask(client, max_tokens=100)
    texts, last = stream(client, max_tokens=100)
    assert whole["text"] == STORY.removeprefix(" ")
    assert "".join(texts) == whole["text"]
    assert not any("\ufffd" in text for text in texts)
    assert len(texts) > 20  # and not all at the end
    assert (last["finish_reason"], last["usage"]["completion_tokens"]) == ("stop", len(ids))


def test_story_cut_within_a_character_streams_as_it_comes_whole(scripted: tuple[httpx.Client, list[int]]) -> None:
    client, ids = scripted
    cut = 0
    for most in range(1, len(ids), 3):
        whole = ask(client, max_tokens=most)
        texts, last = stream(client, max_tokens=most)
        assert "".join(texts) == whole["text"]
        assert last["finish_reason"] == whole["finish_reason"] == "length"
        assert not any("\ufffd" in text for text in texts[:-1])
        cut += not STORY.startswith(" " + whole["text"])
    assert cut > 5


def test_stop_string_of_several_bytes_is_never_streamed_in_part(scripted: tuple[httpx.Client, list[int]]) -> None:
    client, _ = scripted
    for stop in ("👩‍👩‍👧", "レビュ", "한국"):
        texts, last = stream(client, max_tokens=100, stop=[stop])
        assert "".join(texts) == STORY.split(stop)[0].removeprefix(" ")
        assert last["finish_reason"] == "stop"
