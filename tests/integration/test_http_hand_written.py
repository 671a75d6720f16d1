"""Hand-written prompts over HTTP: a template without slots published as a version, served, replaced; and refusals."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import torch

from app.backbone import compile_verbalizer, default_bos, encode_row, parse_template, score_labels
from app.cli import main
from app.errors import InvalidTemplate
from app.interchange.drafting import Wanted, Wording, prepare
from prompt_store.models import HAND_WRITTEN
from tests.adapters import serving_llama
from tests.architectures import build_backbone
from tests.live import HANG_S, serving
from tests.real_world import RealWorld, make_real_world

WORDS = {"good": [" good", " great"], "bad": [" bad"]}
TEMPLATE = "Review: {text}\nIt was"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, redis_server_url: str) -> RealWorld:
    return make_real_world(tmp_path_factory.mktemp("world"), redis_server_url, serving_llama())


@pytest.fixture(scope="module")
def client(world: RealWorld) -> Iterator[httpx.Client]:
    with serving(world.app) as live, httpx.Client(base_url=live.url, timeout=HANG_S) as client:
        yield client


def body(**more: Any) -> dict[str, Any]:
    return {"template": TEMPLATE, "verbalizer": WORDS, "create_task": True, **more}


def test_a_template_answers_as_the_model_itself_scores_the_same_words(client: httpx.Client) -> None:
    made = client.post("/v1/tasks/mood/versions", json=body())
    assert made.status_code == 201, made.text
    version = made.json()
    assert (version["version"], version["aliases"], version["num_virtual_tokens"]) == (1, ["prod"], 0)
    assert (version["template"], version["verbalizer"]) == (TEMPLATE, WORDS)
    assert (version["method"], version["provenance"]) == ({"type": HAND_WRITTEN}, {"source": {"format": "template"}})
    output = client.post("/v1/tasks/mood/generate", json={"input": "fine", "scores": True}).json()["outputs"][0]
    plain = build_backbone("llama")
    row = encode_row(plain.tokenizer, parse_template(TEMPLATE), default_bos(plain.tokenizer), {"text": "fine"})
    with torch.no_grad():
        (scores,) = score_labels(plain, [row], [None], [compile_verbalizer(plain.tokenizer, WORDS)])
    assert list(output["scores"].values()) == pytest.approx(scores.softmax(0).tolist(), abs=1e-4)
    assert output["usage"]["virtual_tokens"] == 0


def test_golden_outputs_of_a_template_are_stored_for_labels_and_for_texts(
    client: httpx.Client, world: RealWorld
) -> None:
    assert client.post("/v1/tasks/labelled/versions", json=body()).status_code == 201
    assert client.post("/v1/tasks/told/versions", json=body(verbalizer=None)).status_code == 201
    assert all(one.scores for one in world.store.get_version("labelled", 1).meta.golden)
    assert all(one.tokens for one in world.store.get_version("told", 1).meta.golden)
    answer = client.post("/v1/tasks/told/generate", json={"input": "fine", "max_tokens": 3}).json()["outputs"][0]
    assert (answer["version"], answer["usage"]["completion_tokens"]) == (1, 3)


def test_a_template_is_the_next_version_beside_a_learned_one_and_prod_may_go_back(
    client: httpx.Client, world: RealWorld
) -> None:
    learned = world.publish("both", "<prompt:4>" + TEMPLATE, words=WORDS)
    client.put("/v1/tasks/both/aliases/touch", json={"version": learned})  # makes it seen
    made = client.post("/v1/tasks/both/versions", json=body(alias=None, create_task=False)).json()
    assert (made["version"], made["aliases"]) == (2, [])
    output = client.post("/v1/generate", json={"requests": [{"task": f"both@{n}", "input": "fine"} for n in (1, 2)]})
    assert [one["usage"]["virtual_tokens"] for one in output.json()["outputs"]] == [4, 0]


def test_a_template_without_words_for_a_task_of_labels_takes_each_label_as_its_word(client: httpx.Client) -> None:
    client.put("/v1/tasks/typed", json={"fields": ["text"], "labels": ["good", "bad"]})
    made = client.post("/v1/tasks/typed/versions", json={"template": TEMPLATE}).json()
    assert made["verbalizer"] == {"good": [" good"], "bad": [" bad"]}


@pytest.mark.parametrize(
    ("change", "status", "code", "param"),
    [
        ({"template": None}, 422, "invalid_request", "template"),
        ({"template": "{text"}, 422, "invalid_template", "template"),
        ({"template": "<prompt:4>{text}"}, 422, "invalid_template", "template"),
        ({"template": "<prompt>{text}"}, 422, "invalid_template", "template"),
        ({"verbalizer": {"one": [" one"]}}, 422, "invalid_verbalizer", "verbalizer"),
        ({"task_index": 0}, 422, "invalid_request", "task_index"),
        ({"adapter_config": {"peft_type": "PROMPT_TUNING"}}, 422, "invalid_request", "adapter_model"),
        ({"adapter_model": "AAAA"}, 422, "invalid_request", "adapter_config"),
        ({"create_task": False}, 404, "task_not_found", "task"),
    ],
)
def test_what_is_refused_leaves_nothing_behind(
    client: httpx.Client, change: dict[str, Any], status: int, code: str, param: str
) -> None:
    answer = client.post("/v1/tasks/refused/versions", json=body(**change))
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param)
    assert client.get("/v1/tasks/refused").status_code == 404


def test_command_line_publishes_a_template(client: httpx.Client, capsys: pytest.CaptureFixture[str]) -> None:
    url = ("--url", str(client.base_url))
    words = '{"good": [" good"], "bad": [" bad"]}'
    assert main(["publish-template", TEMPLATE, "--task", "cli", "--verbalizer", words, *url]) == 0
    assert "cli@1 is hand-written" in capsys.readouterr().out
    assert main(["publish-template", "{text} Say", "--task", "cli", "--no-alias", "--json", *url]) == 0
    assert '"version": 2' in capsys.readouterr().out
    assert client.get("/v1/tasks/cli").json()["aliases"] == {"prod": 1}
    assert main(["publish-template", "<prompt:3>{text}", "--task", "cli", *url]) != 0
    assert "no slot" in capsys.readouterr().err


@pytest.mark.parametrize(("architecture", "template"), [("t5", TEMPLATE), ("bert", TEMPLATE + " {mask}")])
def test_other_families_take_templates_too(architecture: str, template: str) -> None:
    backbone = build_backbone(architecture)
    mask = getattr(backbone.tokenizer, "mask_token", None) or ""
    wanted = Wanted("mood", Wording(template.replace("{mask}", mask), WORDS))
    draft = prepare(wanted, None, backbone)
    assert (draft.meta.num_virtual_tokens, draft.tensors, draft.prompt.learned) == (0, {}, None)
    assert draft.meta.backbone.family == backbone.family


def test_a_template_for_a_masked_model_without_a_mask_is_refused() -> None:
    with pytest.raises(InvalidTemplate, match="mask"):
        prepare(Wanted("mood", Wording(TEMPLATE, WORDS)), None, build_backbone("bert"))
