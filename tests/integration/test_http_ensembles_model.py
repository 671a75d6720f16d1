"""Ensembles and calibration over HTTP on a model that really runs, against the answers of its members one by one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.architectures import build_backbone
from tests.live import HANG_S, serving
from tests.prompts import TEXTS, WORDS
from tests.real_world import RealWorld, make_real_world

TOLERANCE = 1e-4
MEMBERS = ("<prompt:9>Review: {text}\nSentiment:", "{text}<prompt:6>", "<prompt:3>{text} It was<prompt:4>")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, redis_server_url: str) -> RealWorld:
    """`mood` and `tale` have three different versions, `same` and `twin` three equal ones."""
    folder = tmp_path_factory.mktemp("real")
    world = make_real_world(
        folder, redis_server_url, build_backbone("llama"), max_rows=8, max_context=160, max_queued_rows=16
    )
    for seed, template in enumerate(MEMBERS):
        world.publish("mood", template, words=WORDS, seed=seed)
        world.publish("tale", template, seed=seed)
        world.publish("same", MEMBERS[0], words=WORDS, seed=5)
        world.publish("twin", MEMBERS[2], seed=5)
    return world


@pytest.fixture(scope="module")
def client(world: RealWorld) -> Iterator[httpx.Client]:
    with serving(world.app) as live, httpx.Client(base_url=live.url, timeout=HANG_S) as client:
        for task in ("mood", "tale", "same", "twin"):
            for mode in ("vote", "mean"):
                target = {"ensemble": {"members": [1, 2, 3], "mode": mode}}
                assert client.put(f"/v1/tasks/{task}/aliases/{mode}", json=target).status_code == 200
        yield client


def ask(client: httpx.Client, ref: str, text: str, **options: Any) -> dict[str, Any]:
    answer = client.post(f"/v1/tasks/{ref}/generate", json={"input": text, **options})
    assert answer.status_code == 200, answer.text
    return dict(answer.json()["outputs"][0])


@pytest.mark.parametrize("text", TEXTS)
def test_mean_of_equal_members_is_the_member(client: httpx.Client, text: str) -> None:
    alone, output = ask(client, "same@1", text, scores=True), ask(client, "same:mean", text, scores=True)
    assert (output["label"], output["agreement"]) == (alone["label"], 1.0)
    assert output["scores"] == pytest.approx(alone["scores"], abs=TOLERANCE)
    assert output["usage"]["total_tokens"] == 3 * alone["usage"]["total_tokens"]


@pytest.mark.parametrize("text", TEXTS)
def test_vote_of_equal_members_on_text_is_the_member(client: httpx.Client, text: str) -> None:
    alone, output = ask(client, "twin@1", text), ask(client, "twin:vote", text)
    assert (output["text"], output["finish_reason"], output["agreement"]) == (
        alone["text"],
        alone["finish_reason"],
        1.0,
    )


@pytest.mark.parametrize("text", TEXTS)
def test_mean_of_equal_members_on_text_is_the_member_streamed_or_not(client: httpx.Client, text: str) -> None:
    alone, output = ask(client, "twin@1", text), ask(client, "twin:mean", text, members=True)
    assert (output["text"], output["finish_reason"], output["agreement"]) == (
        alone["text"],
        alone["finish_reason"],
        1.0,
    )
    first, *others = [member["logprob"] for member in output["members"]]
    assert first < 0
    assert others == pytest.approx([first, first], abs=TOLERANCE)
    streamed = client.post("/v1/tasks/twin:mean/generate", json={"input": text, "stream": True})
    events = [json.loads(line.removeprefix("data: ")) for line in streamed.text.split("\n\n")[:-2]]
    assert "".join(event["text"] for event in events) == alone["text"]
    assert (events[-1]["agreement"], events[-1]["usage"]) == (1.0, output["usage"])


@pytest.mark.parametrize("text", TEXTS)
def test_members_of_an_ensemble_answer_as_they_do_alone(client: httpx.Client, text: str) -> None:
    output = ask(client, "mood:mean", text, scores=True, members=True)
    alone = [ask(client, f"mood@{number}", text, scores=True) for number in (1, 2, 3)]
    for member, one in zip(output["members"], alone, strict=True):
        assert (member["version"], member["label"], member["usage"]) == (one["version"], one["label"], one["usage"])
        assert member["scores"] == pytest.approx(one["scores"], abs=TOLERANCE)
    means = {label: sum(one["scores"][label] for one in alone) / 3 for label in ("good", "bad")}
    assert output["scores"] == pytest.approx(means, abs=TOLERANCE)
    assert output["label"] == max(means, key=means.__getitem__)
    assert output["agreement"] == pytest.approx(sum(one["label"] == output["label"] for one in alone) / 3)


@pytest.mark.parametrize("text", TEXTS)
def test_vote_of_texts_is_what_most_members_write_alone(client: httpx.Client, text: str) -> None:
    output = ask(client, "tale:vote", text, members=True)
    alone = [ask(client, f"tale@{number}", text)["text"] for number in (1, 2, 3)]
    assert [member["text"] for member in output["members"]] == alone
    best = max(alone, key=alone.count)
    assert (output["text"], output["agreement"]) == (best, pytest.approx(alone.count(best) / 3))


@pytest.mark.parametrize("ref", ["mood@1", "mood@2", "mood@3"])
def test_calibrated_scores_are_those_divided_by_the_mean_over_no_content(client: httpx.Client, ref: str) -> None:
    empty = [ask(client, ref, text, scores=True)["scores"] for text in ("N/A", "", "[MASK]")]
    for text in TEXTS:
        plain = ask(client, ref, text, scores=True)["scores"]
        divided = {label: plain[label] / (sum(one[label] for one in empty) / 3) for label in plain}
        wanted = {label: share / sum(divided.values()) for label, share in divided.items()}
        output = ask(client, ref, text, scores=True, calibrate=True)
        assert output["scores"] == pytest.approx(wanted, abs=TOLERANCE)
        assert output["label"] == max(wanted, key=wanted.__getitem__)


def test_request_whose_members_exceed_the_queue_is_answered_whole(client: httpx.Client) -> None:
    inputs = [f"{TEXTS[n % len(TEXTS)]} {n}" for n in range(40)]  # 120 rows, where 8 run and 16 wait
    outputs = client.post("/v1/tasks/mood:vote/generate", json={"inputs": inputs}).json()["outputs"]
    assert [output["error"] for output in outputs] == [None] * 40
    fan_out = {"tasks": ["mood:mean"] * 20, "input": TEXTS[0]}
    outputs = client.post("/v1/generate", json=fan_out).json()["outputs"]
    assert {output["label"] for output in outputs} == {ask(client, "mood:mean", TEXTS[0])["label"]}


def test_fan_out_to_ensembles_answers_as_each_alone(client: httpx.Client) -> None:
    refs = ["mood:mean", "tale@2", "same:vote", "tale:vote", "mood@2"]
    body = {"tasks": refs, "input": TEXTS[2], "scores": True, "members": True}
    outputs = client.post("/v1/generate", json=body).json()["outputs"]
    for ref, output in zip(refs, outputs, strict=True):
        alone = ask(client, ref, TEXTS[2], scores=True, members=True)
        assert output["scores"] == (alone["scores"] and pytest.approx(alone["scores"], abs=TOLERANCE))
        for name in ("task", "version", "digest", "text", "label", "agreement", "finish_reason", "usage", "error"):
            assert output[name] == alone[name]
        assert len(output["members"] or ()) == len(alone["members"] or ())
