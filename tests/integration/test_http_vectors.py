"""A version's vectors over HTTP, in the words of the model that serves it."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.architectures import build_backbone
from tests.live import HANG_S, serving
from tests.prompts import WORDS
from tests.real_world import RealWorld, make_real_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, redis_server_url: str) -> RealWorld:
    world = make_real_world(tmp_path_factory.mktemp("world"), redis_server_url, build_backbone("llama"))
    world.publish("mood", "<prompt:2>{text} so<prompt:1>", words=WORDS)
    world.publish("mood", "{text} so", words=WORDS)
    return world


@pytest.fixture(scope="module")
def client(world: RealWorld) -> Iterator[httpx.Client]:
    with serving(world.app) as live, httpx.Client(base_url=live.url, timeout=HANG_S) as client:
        yield client


def test_vectors_of_a_version_come_with_slot_norm_and_nearest_words(client: httpx.Client) -> None:
    answer = client.get("/v1/tasks/mood/versions/1/vectors", params={"words": 3}).json()
    assert (answer["task"], answer["version"], answer["prefix"]) == ("mood", 1, [])
    assert [(one["slot"], one["index"]) for one in answer["vectors"]] == [(0, 0), (0, 1), (1, 2)]
    for one in answer["vectors"]:
        assert one["norm"] > 0
        cosines = [word["cosine"] for word in one["words"]]
        assert len(cosines) == 3
        assert cosines == sorted(cosines, reverse=True)


def test_vectors_of_a_hand_written_version_are_none(client: httpx.Client) -> None:
    assert client.get("/v1/tasks/mood/versions/2/vectors").json()["vectors"] == []


@pytest.mark.parametrize(
    ("path", "status"),
    [("mood/versions/9/vectors", 404), ("nobody/versions/1/vectors", 404), ("mood/versions/1/vectors?words=0", 422)],
)
def test_vectors_that_cannot_be_shown_are_typed_errors(client: httpx.Client, path: str, status: int) -> None:
    answer = client.get(f"/v1/tasks/{path}")
    assert answer.status_code == status
    assert answer.json()["error"]["code"]
