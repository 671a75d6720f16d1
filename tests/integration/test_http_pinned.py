"""A request is pinned to its version when it is admitted, and says so, in whatever order versions are published."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.architectures import build_backbone
from tests.live import HANG_S, serving, wait_until
from tests.real_world import RealWorld, make_real_world

OPTIONS = {"input": "a warm and funny story", "max_tokens": 60}
_numbers = itertools.count()


@pytest.fixture(scope="module")
def pinned(tmp_path_factory: pytest.TempPathFactory, redis_server_url: str) -> Iterator[tuple[httpx.Client, RealWorld]]:
    world = make_real_world(
        tmp_path_factory.mktemp("pinned"), redis_server_url, build_backbone("llama"), max_rows=8, max_context=128
    )
    with serving(world.app) as live, httpx.Client(base_url=live.url, timeout=HANG_S) as client:
        yield client, world


class Answer:
    """A stream that was opened and is read later."""

    def __init__(self, response: httpx.Response, version: int) -> None:
        assert response.status_code == 200
        self.version = version
        self.events: list[dict[str, Any]] = []
        self._lines = (line for line in response.iter_lines() if line.startswith("data: {"))

    def read(self, most: int | None) -> None:
        self.events += [json.loads(line.removeprefix("data: ")) for line in itertools.islice(self._lines, most)]


def publish(client: httpx.Client, world: RealWorld, task: str, seed: int) -> int:
    """The next version, once this replica's `prod` is at it."""
    version = world.publish(task, "<prompt:6>{text}", seed=seed)
    wait_until(lambda: client.get(f"/v1/tasks/{task}/aliases/prod").json().get("version") == version)
    return version


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(moves=st.lists(st.sampled_from(["ask", "ask", "publish", "roll back", "read"]), min_size=2, max_size=8))
def test_answers_are_by_the_version_that_held_when_they_were_asked(
    pinned: tuple[httpx.Client, RealWorld], moves: list[str]
) -> None:
    client, world = pinned
    task = f"task-{next(_numbers)}"
    now = latest = publish(client, world, task, 1)
    with ExitStack() as stack:
        answers: list[Answer] = []
        for move in moves:
            if move == "ask":
                body = {**OPTIONS, "stream": True}
                response = stack.enter_context(client.stream("POST", f"/v1/tasks/{task}/generate", json=body))
                answers.append(Answer(response, now))
            elif move == "publish":
                now = latest = publish(client, world, task, latest + 1)
            elif move == "roll back":
                tag = client.get(f"/v1/tasks/{task}/aliases/prod").headers["etag"]
                moved = client.put(f"/v1/tasks/{task}/aliases/prod", json={"version": 1}, headers={"If-Match": tag})
                assert moved.status_code == 200
                now = 1
            else:
                for answer in answers:
                    answer.read(3)
        for answer in answers:
            answer.read(None)
    texts = {n: client.post(f"/v1/tasks/{task}@{n}/generate", json=OPTIONS).json() for n in range(1, latest + 1)}
    wanted = {n: of["outputs"][0] for n, of in texts.items()}
    assert len({of["text"] for of in wanted.values()}) == len({of["digest"] for of in wanted.values()}) == latest
    for answer in answers:
        of = wanted[answer.version]
        last = answer.events[-1]
        assert (last["version"], last["digest"]) == (answer.version, of["digest"])
        assert "".join(event["text"] for event in answer.events) == of["text"]
