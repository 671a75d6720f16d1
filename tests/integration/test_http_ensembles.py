"""Aliases to several versions over HTTP: votes, means, weighted splits, and names that move under load."""

from __future__ import annotations

import json
import math
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.fakes import FakeBackbone, World, make_world, publish
from tests.live import HANG_S, serving

VERSIONS = range(1, 5)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, redis_server_url: str) -> World:
    """The tasks `mood` (labels) and `tale` (text), four versions of each."""
    world = make_world(tmp_path_factory.mktemp("world"), redis_server_url)
    for number in VERSIONS:
        publish(world.store, FakeBackbone(), "mood", f"v{number}: {{text}}", labels=("bad", "good"))
        publish(world.store, FakeBackbone(), "tale", f"v{number}: {{text}}")
        world.engine.texts[f"tale@{number}"] = f"tale {number}"
    return world


@pytest.fixture(scope="module")
def client(world: World) -> Iterator[httpx.Client]:
    with serving(world.app) as live, httpx.Client(base_url=live.url, timeout=HANG_S) as client:
        yield client


@pytest.fixture(autouse=True)
def fresh(world: World) -> None:
    world.engine.views.clear()
    world.engine.groups.clear()


def point(client: httpx.Client, ref: str, **target: Any) -> None:
    task, _, alias = ref.partition(":")
    answer = client.put(f"/v1/tasks/{task}/aliases/{alias}", json=target)
    assert answer.status_code == 200, answer.text


def ensemble(client: httpx.Client, ref: str, mode: str, *members: int) -> None:
    point(client, ref, ensemble={"members": list(members), "mode": mode})


def ask(client: httpx.Client, ref: str, given: str = "x", **options: Any) -> dict[str, Any]:
    answer = client.post(f"/v1/tasks/{ref}/generate", json={"input": given, **options})
    assert answer.status_code == 200, answer.text
    return dict(answer.json()["outputs"][0])


def views(world: World, task: str, *good: float) -> None:
    """What versions 1, 2, … think of `good`."""
    for number, share in enumerate(good, start=1):
        world.engine.views[f"{task}@{number}"] = [1 - share, share]


def counted(client: httpx.Client, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


# ensembles


def test_vote_of_labels_answers_by_majority_with_shares_and_agreement(client: httpx.Client, world: World) -> None:
    ensemble(client, "mood:vote", "vote", 1, 2, 3)
    views(world, "mood", 0.6, 0.7, 0.05)
    output = ask(client, "mood:vote", scores=True)
    assert (output["label"], output["text"], output["finish_reason"]) == ("good", "good", "label")
    assert output["scores"] == pytest.approx({"bad": 1 / 3, "good": 2 / 3})
    assert output["agreement"] == pytest.approx(2 / 3)
    assert (output["version"], output["members"]) == (1, None)
    assert world.engine.groups == [["mood@1", "mood@2", "mood@3"]]


def test_mean_of_labels_answers_by_the_mean_of_their_probabilities(client: httpx.Client, world: World) -> None:
    ensemble(client, "mood:mean", "mean", 1, 2, 3)
    views(world, "mood", 0.6, 0.7, 0.05)  # two of three say good; the mean is 0.45
    output = ask(client, "mood:mean", scores=True)
    assert output["label"] == "bad"
    assert output["scores"] == pytest.approx({"bad": 0.55, "good": 0.45})
    assert output["agreement"] == pytest.approx(1 / 3)


def test_members_when_asked_have_versions_digests_views_and_usage(client: httpx.Client, world: World) -> None:
    ensemble(client, "mood:members", "mean", 3, 1)
    views(world, "mood", 0.6, 0.5, 0.2)
    output = ask(client, "mood:members", "one two", members=True)
    first, second = output["members"]
    assert (first["version"], second["version"]) == (3, 1)
    assert (first["digest"], output["digest"]) == (
        output["digest"],
        client.get("/v1/tasks/mood/versions/3").json()["digest"],
    )
    assert (first["label"], second["label"]) == ("bad", "good")
    assert second["scores"] == pytest.approx({"bad": 0.4, "good": 0.6})
    assert (first["usage"]["prompt_tokens"], output["usage"]["prompt_tokens"]) == (2, 4)


def test_members_of_a_single_version_are_null_even_when_asked(client: httpx.Client) -> None:
    output = ask(client, "mood@2", members=True)
    assert (output["members"], output["agreement"], output["abstained"]) == (None, None, None)


def test_ensemble_row_counts_once_with_the_usage_of_all_members(client: httpx.Client) -> None:
    ensemble(client, "mood:counted", "vote", 1, 2, 3)
    rows, tokens = (
        'chorus_request_success_total{finished_reason="label",task="mood"}',
        'chorus_prompt_tokens_total{task="mood"}',
    )
    before = counted(client, rows), counted(client, tokens)
    ask(client, "mood:counted", "one two three")
    assert (counted(client, rows), counted(client, tokens)) == (before[0] + 1, before[1] + 9)


def test_vote_of_texts_answers_what_most_members_write(client: httpx.Client, world: World) -> None:
    ensemble(client, "tale:vote", "vote", 1, 2, 3)
    world.engine.texts["tale@3"] = "tale 2"
    try:
        output = ask(client, "tale:vote", members=True)
        assert (output["text"], output["label"], output["scores"]) == ("tale 2", None, None)
        assert output["agreement"] == pytest.approx(2 / 3)
        assert [member["text"] for member in output["members"]] == ["tale 1", "tale 2", "tale 2"]
        assert output["usage"]["completion_tokens"] == 6
    finally:
        world.engine.texts["tale@3"] = "tale 3"


def test_vote_of_texts_that_all_differ_answers_the_first_members(client: httpx.Client) -> None:
    ensemble(client, "tale:tie", "vote", 4, 1, 2)
    output = ask(client, "tale:tie")
    assert (output["text"], output["agreement"]) == ("tale 4", pytest.approx(1 / 3))


def test_vote_as_a_stream_is_one_event_that_says_all(client: httpx.Client, world: World) -> None:
    ensemble(client, "tale:streamed", "vote", 2, 3, 4)
    answer = client.post("/v1/tasks/tale:streamed/generate", json={"input": "x", "stream": True, "members": True})
    event, done = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    output = json.loads(event)
    assert done == "[DONE]"
    assert (output["index"], output["text"], output["finish_reason"]) == (0, "tale 2", "stop")
    assert output["agreement"] == pytest.approx(1 / 3)
    assert len(output["members"]) == 3
    assert answer.headers["x-chorus-version"] == "tale@2,tale@3,tale@4"


def test_mean_of_texts_is_one_text_with_each_members_log_probability(client: httpx.Client, world: World) -> None:
    ensemble(client, "tale:mean", "mean", 2, 1)
    output = ask(client, "tale:mean", members=True)
    assert (output["text"], output["finish_reason"], output["agreement"]) == ("tale 2", "stop", 0.5)
    assert [(one["version"], one["logprob"], one["text"]) for one in output["members"]] == [
        (2, -1, None),
        (1, -2, None),
    ]
    assert world.engine.groups == [["tale@2", "tale@1"]]


def test_mean_of_texts_streams_its_pieces_and_says_all_in_the_last(client: httpx.Client) -> None:
    ensemble(client, "tale:flow", "mean", 1, 2)
    answer = client.post("/v1/tasks/tale:flow/generate", json={"input": "x", "stream": True, "members": True})
    *pieces, last = [json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n\n")[:-2]]
    assert [piece["text"] for piece in pieces] == ["tale", "1"]
    assert (last["finish_reason"], last["agreement"]) == ("stop", 0.5)
    assert [member["logprob"] for member in last["members"]] == [-1, -2]


def test_member_that_fails_fails_the_row_and_not_its_neighbours(client: httpx.Client) -> None:
    ensemble(client, "mood:whole", "vote", 1, 2)
    assert client.post("/v1/tasks/mood:whole/generate", json={"input": "!failure"}).status_code == 500
    answer = client.post("/v1/tasks/mood:whole/generate", json={"inputs": ["x", "!overloaded", "y"]})
    outputs = answer.json()["outputs"]
    assert [output["error"] and output["error"]["code"] for output in outputs] == [None, "overloaded", None]
    assert [output["label"] for output in outputs] == ["bad", None, "bad"]


def test_fan_out_to_ensembles_and_versions_is_one_group(client: httpx.Client, world: World) -> None:
    ensemble(client, "mood:fan", "mean", 1, 2)
    ensemble(client, "tale:fan", "vote", 3, 4)
    views(world, "mood", 0.9, 0.3)
    ensemble(client, "tale:apart", "mean", 2, 3)  # members that write one text are a group of their own
    body = {"tasks": ["tale@1", "mood:fan", "tale:apart", "tale:fan"], "input": "x", "scores": True}
    first, second, apart, third = client.post("/v1/generate", json=body).json()["outputs"]
    assert sorted(world.engine.groups) == [
        ["tale@1", "mood@1", "mood@2", "tale@3", "tale@4"],
        ["tale@2", "tale@3"],
    ]
    assert apart["text"] == "tale 2"
    assert (first["text"], first["agreement"]) == ("tale 1", None)
    assert second["scores"] == pytest.approx({"bad": 0.4, "good": 0.6})
    assert (third["text"], third["agreement"]) == ("tale 3", 0.5)


def test_completion_of_an_ensemble_is_its_answer_and_names_every_member(client: httpx.Client) -> None:
    ensemble(client, "tale:openai", "vote", 1, 2)
    answer = client.post("/v1/completions", json={"model": "tale:openai", "prompt": ["x", "y"]}).json()
    assert [choice["text"] for choice in answer["choices"]] == ["tale 1", "tale 1"]
    assert [name.split(":")[0] for name in answer["system_fingerprint"].split(",")] == ["tale@1", "tale@2"]
    assert answer["usage"]["completion_tokens"] == 8


# splits


def test_split_answers_each_row_by_weight_and_says_by_which_version(client: httpx.Client) -> None:
    point(client, "tale:split", split=[{"version": 1, "weight": 9}, {"version": 3, "weight": 1}])
    answer = client.post("/v1/tasks/tale:split/generate", json={"inputs": [f"text {n}" for n in range(1000)]})
    outputs = answer.json()["outputs"]
    shares = Counter(output["version"] for output in outputs)
    assert set(shares) == {1, 3}
    assert abs(shares[3] - 100) < 5 * math.sqrt(1000 * 0.9 * 0.1)
    assert all(output["text"] == f"tale {output['version']}" for output in outputs)
    assert {output["agreement"] for output in outputs} == {None}


def test_split_with_a_seed_draws_the_same_version_alone_and_in_a_batch(client: httpx.Client) -> None:
    point(client, "tale:seeded", split=[{"version": 1, "weight": 1}, {"version": 2, "weight": 1}])
    inputs = [f"text {n}" for n in range(24)]
    body = {"inputs": inputs, "seed": 5}
    batch = [one["version"] for one in client.post("/v1/tasks/tale:seeded/generate", json=body).json()["outputs"]]
    assert [ask(client, "tale:seeded", given, seed=5)["version"] for given in inputs] == batch
    assert set(batch) == {1, 2}


def test_stream_of_a_split_says_which_version_was_drawn(client: httpx.Client) -> None:
    point(client, "tale:drawn", split=[{"version": 2, "weight": 1}, {"version": 4, "weight": 1}])
    answer = client.post("/v1/tasks/tale:drawn/generate", json={"input": "x", "stream": True})
    last = json.loads(answer.text.split("\n\n")[-3].removeprefix("data: "))
    assert answer.headers["x-chorus-version"] == f"tale@{last['version']}"


# aliases that move


def test_alias_moved_under_load_never_mixes_within_a_request(client: httpx.Client) -> None:
    """One client moves `canary` between two versions and two ensembles; every answer is wholly of one of the four."""
    targets: list[dict[str, Any]] = [
        {"version": 1},
        {"ensemble": {"members": [1, 2], "mode": "vote"}},
        {"version": 4},
        {"ensemble": {"members": [3, 4], "mode": "vote"}},
    ]
    point(client, "tale:canary", **targets[0])
    moved = threading.Event()
    seen: set[tuple[int, ...]] = set()
    problems: list[Any] = []

    def load() -> None:
        while not moved.is_set():
            body = {"inputs": ["a", "b", "c", "d"], "members": True}
            outputs = client.post("/v1/tasks/tale:canary/generate", json=body).json()["outputs"]
            groups = {tuple(m["version"] for m in o["members"] or ()) or (o["version"],) for o in outputs}
            texts = {output["text"] for output in outputs}
            (first,) = groups if len(groups) == 1 else [(0,)]
            if first not in {(1,), (1, 2), (4,), (3, 4)} or texts != {f"tale {first[0]}"}:
                problems.append(outputs)
            seen.add(first)

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for turn in range(40):
            point(client, "tale:canary", **targets[turn % 4])
    finally:
        moved.set()
        for thread in threads:
            thread.join(HANG_S)
    assert not problems
    assert len(seen) > 1
