"""PEFT adapters over HTTP: imported, served, exported and imported again; and everything that is refused."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from app.api.schemas.adapters import AdapterBody
from app.backbone import load_prompt
from app.cli import main
from app.interchange.adapter_files import AdapterFiles, read_folder
from app.training.examples import Encoder
from app.training.golden import golden_outputs
from prompt_store import PromptStore, Publication, StoreUnavailable
from tests.adapters import KINDS, load_in_peft, peft_model, serving_llama
from tests.adapters import save as save_adapter
from tests.architectures import build_backbone
from tests.full_disk import refuse_writes
from tests.live import HANG_S, serving
from tests.real_world import RealWorld, make_real_world

WORDS = {"good": [" good", " great"], "bad": [" bad"]}
# peft 0.21 reads a property that transformers 5.23 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, redis_server_url: str) -> RealWorld:
    return make_real_world(tmp_path_factory.mktemp("world"), redis_server_url, serving_llama())


@pytest.fixture(scope="module")
def client(world: RealWorld) -> Iterator[httpx.Client]:
    with serving(world.app) as live, httpx.Client(base_url=live.url, timeout=HANG_S) as client:
        yield client


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, AdapterFiles]:
    llama = build_backbone("llama")
    return {kind: save_adapter(peft_model(llama, kind), tmp_path_factory.mktemp(kind)) for kind in KINDS}


def body(files: AdapterFiles, **more: Any) -> dict[str, Any]:
    model = base64.b64encode(files.model).decode()
    return {"adapter_config": dict(files.config), "adapter_model": model, "create_task": True, **more}


@pytest.mark.parametrize("kind", KINDS)
def test_an_imported_adapter_answers_at_once(
    client: httpx.Client, adapters: dict[str, AdapterFiles], kind: str
) -> None:
    task = f"mood-{kind.lower().replace('_', '-')}"
    index = {"task_index": 1} if kind == "MULTITASK_PROMPT_TUNING" else {}
    sent = body(adapters[kind], template="{text}\nIt was", verbalizer=WORDS, **index)
    answer = client.post(f"/v1/tasks/{task}/versions", json=sent)
    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert answer.headers["location"] == f"/v1/tasks/{task}/versions/1"
    assert (made["version"], made["state"], made["aliases"]) == (1, "published", ["prod"])
    assert made["template"] == "<prompt:5>{text}\nIt was"
    assert made["provenance"]["source"]["peft_type"] == kind
    output = client.post(f"/v1/tasks/{task}/generate", json={"input": "fine", "scores": True}).json()["outputs"][0]
    assert output["version"] == 1
    assert output["usage"]["virtual_tokens"] == 5
    assert set(output["scores"]) == {"good", "bad"}


def test_an_import_when_the_store_is_away_right_after_it_answers_the_version(
    world: RealWorld, client: httpx.Client, adapters: dict[str, AdapterFiles], monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object, **__: object) -> None:
        raise StoreUnavailable("the server is away")

    def publish(**publication: Any) -> Publication:
        for read in ("snapshot", "delta", "events", "epoch"):
            patch.setattr(world.store, read, away)
        return PromptStore.publish(world.store, **publication)

    with monkeypatch.context() as patch:
        patch.setattr(world.store, "publish", publish)
        answer = client.post("/v1/tasks/unseen/versions", json=body(adapters["PROMPT_TUNING"]))
    assert answer.status_code == 201, answer.text
    assert (answer.json()["version"], answer.json()["aliases"]) == (1, [])


def test_golden_outputs_of_an_import_are_those_that_a_trainer_would_have_stored(
    world: RealWorld, client: httpx.Client, adapters: dict[str, AdapterFiles]
) -> None:
    plain = build_backbone("llama")
    for task, words in (("labels", WORDS), ("texts", None)):
        sent = body(adapters["PREFIX_TUNING"], verbalizer=words)
        assert client.post(f"/v1/tasks/{task}/versions", json=sent).status_code == 201
        golden = world.store.get_version(task, 1).meta.golden
        assert len(golden) == 4
        assert all((one.scores if words else one.tokens) for one in golden)
        prompt = load_prompt(
            world.store.get_version(task, 1), world.store.load(world.store.get_version(task, 1)), plain
        )
        encoder = Encoder(plain.tokenizer, prompt.template, prompt.bos, prompt.verbalizer, plain.max_positions)
        for ours, one in zip(golden_outputs(plain, encoder, prompt.learned), golden, strict=True):
            assert ours.tokens == one.tokens
            assert ours.scores == pytest.approx(one.scores, abs=1e-4)


def test_export_and_import_again_give_the_same_bytes(
    client: httpx.Client, world: RealWorld, adapters: dict[str, AdapterFiles]
) -> None:
    first = client.post("/v1/tasks/round/versions", json=body(adapters["P_TUNING"], verbalizer=WORDS)).json()
    exported = client.get("/v1/tasks/round/versions/1/adapter").json()
    assert exported["adapter_config"]["peft_type"] == "PROMPT_TUNING"
    second = client.post("/v1/tasks/round/versions", json=exported).json()
    assert (second["version"], second["template"], second["verbalizer"]) == (2, first["template"], WORDS)
    one, two = (world.store.load(world.store.get_version("round", number)) for number in (1, 2))
    assert one["prompt"].tobytes() == two["prompt"].tobytes()
    again = client.get("/v1/tasks/round/versions/2/adapter").json()
    assert again == exported


def test_command_line_imports_exports_and_peft_loads_it(
    client: httpx.Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    llama = build_backbone("llama")
    save_adapter(peft_model(llama, "PREFIX_TUNING", seed=8), tmp_path / "in")
    url = ("--url", str(client.base_url))
    assert main(["import-peft", str(tmp_path / "in"), "--task", "cli", "--alias", "canary", *url]) == 0
    assert "cli@1" in capsys.readouterr().out
    assert main(["export-peft", "cli:canary", str(tmp_path / "out"), *url]) == 0
    assert load_in_peft(llama, tmp_path / "out").active_peft_config.num_virtual_tokens == 5
    assert read_folder(tmp_path / "out").template == "<prompt:5>{text}"
    assert main(["import-peft", str(tmp_path / "out"), "--task", "cli", "--no-alias", *url]) == 0
    aliases = client.get("/v1/tasks/cli").json()["aliases"]
    assert aliases == {"canary": 1, "prod": 1}


def test_versions_that_peft_has_no_form_for_are_refused_with_the_reason(client: httpx.Client, world: RealWorld) -> None:
    cases = {
        "{text}<prompt:3>": "behind words",
        "<prompt:2>{text} so<prompt:2>": "2 slots",
        "{text} so": "by hand",
    }
    for template, reason in cases.items():
        number = world.publish("shapes", template)
        client.put("/v1/tasks/shapes/aliases/touch", json={"version": number})  # makes it seen
        answer = client.get(f"/v1/tasks/shapes/versions/{number}/adapter")
        assert answer.status_code == 422
        assert answer.json()["error"]["code"] == "capability_missing"
        assert reason in answer.json()["error"]["message"]
    assert client.get("/v1/tasks/shapes/versions/99/adapter").status_code == 404


@pytest.mark.parametrize(
    ("change", "status", "code", "param"),
    [
        ({"adapter_model": "no base64!"}, 422, "invalid_prompt", "adapter_model"),
        ({"adapter_model": base64.b64encode(b"PK\x03\x04pickle").decode()}, 422, "invalid_prompt", "adapter_model"),
        ({"adapter_model": "AAAA"}, 422, "invalid_prompt", "adapter_model"),
        ({"adapter_config": {}}, 422, "invalid_prompt", "adapter_config.peft_type"),
        ({"adapter_config": {"peft_type": "LORA"}}, 422, "capability_missing", "adapter_config.peft_type"),
        ({"template": "{text"}, 422, "invalid_template", "template"),
        ({"template": "<prompt:4>{text}"}, 422, "invalid_template", "num_virtual_tokens"),
        ({"verbalizer": {"one": [" one"]}}, 422, "invalid_verbalizer", "verbalizer"),
        ({"task_index": 0}, 422, "invalid_request", "task_index"),
        ({"alias": "No Alias"}, 422, "invalid_request", "alias"),
        ({"create_task": False}, 404, "task_not_found", "task"),
        ({"surplus": 1}, 422, "invalid_request", "surplus"),
    ],
)
def test_what_is_refused_leaves_nothing_behind(
    client: httpx.Client,
    adapters: dict[str, AdapterFiles],
    change: dict[str, Any],
    status: int,
    code: str,
    param: str,
) -> None:
    answer = client.post("/v1/tasks/refused/versions", json=body(adapters["PROMPT_TUNING"]) | change)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param)
    assert client.get("/v1/tasks/refused").status_code == 404


def test_wording_that_is_not_the_tasks_is_refused(client: httpx.Client, adapters: dict[str, AdapterFiles]) -> None:
    client.put("/v1/tasks/typed", json={"fields": ["text"], "labels": ["good", "bad"]})
    path = "/v1/tasks/typed/versions"
    other = {"a": [" a"], "b": [" b"]}
    files = adapters["PROMPT_TUNING"]
    assert client.post(path, json=body(files, verbalizer=other)).json()["error"]["code"] == "invalid_verbalizer"
    assert client.post(path, json=body(files, template="{question}")).json()["error"]["code"] == "invalid_template"
    made = client.post(path, json=body(files)).json()
    assert made["verbalizer"] == {"good": [" good"], "bad": [" bad"]}  # each label its own word


def test_a_prompt_of_monstrous_vectors_is_refused(client: httpx.Client, adapters: dict[str, AdapterFiles]) -> None:
    files = adapters["PROMPT_TUNING"]
    model = save({"prompt_embeddings": torch.full((5, 64), 3e38)})
    answer = client.post("/v1/tasks/refused/versions", json=body(AdapterFiles(files.config, model)))
    assert answer.json()["error"]["code"] == "invalid_prompt"


def test_a_body_beyond_json_limits_passes_here_and_nowhere_else(client: httpx.Client, world: RealWorld) -> None:
    sent = {"adapter_config": {"peft_type": "LORA"}, "adapter_model": "A" * (2 << 20)}
    assert client.post("/v1/tasks/large/versions", json=sent).json()["error"]["code"] == "task_not_found"
    assert client.post("/v1/generate", json=sent).status_code == 413


def test_body_names_what_an_export_answers() -> None:
    assert {"adapter_config", "adapter_model", "template", "verbalizer"} <= set(AdapterBody.model_fields)


NAMES = sorted(AdapterBody.model_fields)
LEAF = (
    st.none()
    | st.booleans()
    | st.integers(-5, 2000)
    | st.sampled_from(["", "x", "{text}", "<prompt:5>", "PREFIX_TUNING"])
)
TREE = st.recursive(
    LEAF, lambda tree: st.lists(tree, max_size=3) | st.dictionaries(st.text(max_size=4), tree, max_size=3)
)


def test_wrong_values_in_an_honest_body_are_answered(client: httpx.Client, adapters: dict[str, AdapterFiles]) -> None:
    files = adapters["MULTITASK_PROMPT_TUNING"]
    fields = sorted(files.config)

    @given(st.sampled_from(NAMES), st.sampled_from(fields), TREE, st.booleans())
    @settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    def send(name: str, field: str, value: Any, inside: bool) -> None:
        change = {"adapter_config": dict(files.config) | {field: value}} if inside else {name: value}
        answer = client.post("/v1/tasks/fuzzed/versions", json=body(files, task_index=0) | change)
        assert answer.status_code < 500, (answer.text, change)

    send()


def test_full_disk_refuses_an_import_and_leaves_nothing(
    world: RealWorld, client: httpx.Client, adapters: dict[str, AdapterFiles], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = world.store.blobs.path("0" * 64).parent  # type: ignore[attr-defined]
    before = set(folder.iterdir())
    wanted = body(adapters[KINDS[0]], template="Full: {text}")
    with monkeypatch.context() as patch:
        refuse_writes(patch, folder)
        refused = client.post("/v1/tasks/full/versions", json=wanted)
    assert (refused.status_code, refused.json()["error"]["code"]) == (507, "storage_full")
    assert set(folder.iterdir()) == before
    assert client.get("/v1/tasks/full").status_code == 404
    assert client.post("/v1/tasks/full/versions", json=wanted).status_code == 201
