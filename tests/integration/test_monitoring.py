"""Every expression of the dashboards and alerts reads what a live server exports: parsed, and each name looked up."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from app.errors import EngineFailure
from app.settings import Settings
from tests.architectures import build_backbone
from tests.live import HANG_S, serving, wait_until
from tests.prompts import WORDS
from tests.promql import Scrape, problems, read_scrape
from tests.real_world import RealWorld, make_real_world
from tests.training_data import short_request

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "monitoring"
BOARDS = {
    path.name: json.loads(path.read_text()) for path in sorted((MONITORING / "grafana/dashboards").glob("*.json"))
}
ALERTS = [
    rule for group in yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"] for rule in group["rules"]
]
RUNBOOK = (ROOT / "docs/observability.md").read_text()
LABEL_VALUES = re.compile(r"label_values\((\w+), (\w+)\)")


def expressions() -> Iterator[tuple[str, str]]:
    for name, board in BOARDS.items():
        for panel in board["panels"]:
            for target in panel.get("targets", ()):
                yield f"{name}: {panel['title']} {target['refId']}", target["expr"]
    for rule in ALERTS:
        yield f"alerts.yml: {rule['alert']}", rule["expr"]


EXPRESSIONS = dict(expressions())


@pytest.fixture(scope="module")
def scrape(tmp_path_factory: pytest.TempPathFactory, redis_server_url: str) -> Scrape:
    """What a server exports that has met everything once: labels, texts, streams, errors, a damaged version, a job."""
    folder = tmp_path_factory.mktemp("monitored")
    world = make_real_world(folder, redis_server_url, build_backbone("llama"), max_rows=8, max_context=160)
    world.publish("mood", "<prompt:9>Review: {text}\nSentiment:", words=WORDS)
    world.publish("tale", "<prompt:3>{text}")
    world.publish("broken", "<prompt:2>{text}", seed=9)
    for blob in (folder / "blobs").rglob(f"*{world.store.get_version('broken', 1).digest[:16]}*.safetensors"):
        blob.unlink()
    with serving(world.app) as live, httpx.Client(base_url=live.url, timeout=HANG_S) as client:
        _meet_everything(client, world)
        wait_until(lambda: "chorus_train_workers" in client.get("/metrics").text)
        return read_scrape(client.get("/metrics").text)


def _meet_everything(client: httpx.Client, world: RealWorld) -> None:
    def ask(task: str, status: int = 200, **body: Any) -> None:
        answer = client.post(f"/v1/tasks/{task}/generate", json={"input": "a fine film", **body})
        assert answer.status_code == status, answer.text

    spec = client.get("/v1/tasks/mood").json()
    changed = {name: spec[name] for name in ("fields", "labels", "metric", "decoding")} | {"abstain_below": 0.999}
    assert client.put("/v1/tasks/mood", json=changed).status_code == 200
    ask("mood")
    ask("tale", max_tokens=8, temperature=1.0, seed=3)
    ask("tale", max_tokens=8, temperature=1.0, seed=3, stream=True)
    ask("tale", 422, input="far too long " * 400)
    ask("nowhere", 404)
    ask("broken", 503)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world.app.state.services.engine, "answer", _fail)
        ask("tale", 500)
    body = short_request("seen").model_dump(mode="json", exclude_none=True)
    assert client.post("/v1/train", json=body).status_code == 202
    assert client.put("/v1/datasets/d", content=b'{"text": "x", "label": "a"}\n').status_code < 500


async def _fail(*_: Any, **__: Any) -> None:
    raise EngineFailure("the model failed on this row")


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_expression_reads_what_a_live_server_exports(name: str, scrape: Scrape) -> None:
    assert problems(EXPRESSIONS[name], scrape) == []


MISTAKES = {
    "a metric that does not exist": "sum(rate(chorus_http_request_total[5m]))",
    "a label that does not exist": 'chorus_batch_rows_bucket{stage="decode"}',
    "a value that does not exist": 'chorus_batch_rows_bucket{phase="decoding"}',
    "a pattern that fits nothing": 'chorus_batch_rows_bucket{phase=~"dec"}',
    "a group by what is not there": "sum by (phase) (rate(chorus_engine_decode_steps_total[5m]))",
    "a match on what is not there": "chorus_registry_tasks and on (phase) chorus_registry_epoch",
    "the parts of a histogram without them": "histogram_quantile(0.9, chorus_batch_rows)",
    "a range that rate needs": "rate(chorus_engine_decode_steps_total)",
    "a bracket": "sum(chorus_registry_epoch",
    "a counter under another name": "chorus_engine_decode_steps",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_in_an_expression_is_found(mistake: str, scrape: Scrape) -> None:
    assert problems(MISTAKES[mistake], scrape)


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_each_metric_of_an_expression_is_missed_when_it_is_gone(name: str, scrape: Scrape) -> None:
    """Takes every series away that the expression reads, one by one: nothing in it is overlooked."""
    read = {one for one in scrape if re.search(rf"\b{one}\b", EXPRESSIONS[name])}
    assert read
    for gone in read:
        assert problems(EXPRESSIONS[name], {one: labels for one, labels in scrape.items() if one != gone})


@pytest.mark.parametrize("name", BOARDS)
def test_variables_of_a_dashboard_exist_and_are_used(name: str, scrape: Scrape) -> None:
    board, text = BOARDS[name], json.dumps(BOARDS[name]["panels"])
    variables = {one["name"]: one for one in board["templating"]["list"]}
    assert set(re.findall(r"\$(?!__)(\w+)", text)) == set(variables)
    for one in variables.values():
        metric, label = LABEL_VALUES.fullmatch(one["query"]["query"]).groups()  # type: ignore[union-attr]
        assert metric in scrape
        assert label == "instance" or label in scrape[metric]


@pytest.mark.parametrize("name", BOARDS)
def test_legends_name_labels_that_their_expressions_keep(name: str) -> None:
    for panel in BOARDS[name]["panels"]:
        for target in panel.get("targets", ()):
            for label in re.findall(r"{{(\w+)}}", target["legendFormat"]):
                grouped = re.findall(r"by \(([^)]*)\)", target["expr"])
                kept = any(label in one.replace(" ", "").split(",") for one in grouped)
                assert kept or (label == "instance" and not grouped and "sum(" not in target["expr"]), panel["title"]


@pytest.mark.parametrize("name", BOARDS)
def test_panels_lie_side_by_side(name: str) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in BOARDS[name]["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    ids = [panel["id"] for panel in BOARDS[name]["panels"]]
    assert len(ids) == len(set(ids))


NOT_SHOWN = {"chorus_asyncio_tasks", "chorus_process_threads"}
"""What a soak watches for leaks; no picture of them is needed from day to day."""


def test_dashboards_show_every_metric_there_is(scrape: Scrape) -> None:
    shown = " ".join(EXPRESSIONS.values())
    families = {re.sub(r"_(bucket|sum|count|created)$", "", one) for one in scrape if one.startswith("chorus_")}
    assert {one for one in families if one not in shown} == NOT_SHOWN


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_alert_says_what_is_wrong_and_where_the_remedy_stands(rule: dict[str, Any]) -> None:
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
    assert rule["labels"]["severity"] in ("critical", "warning")
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    assert (page, anchor) == ("docs/observability.md", rule["alert"].lower())
    assert f"\n### {rule['alert']}\n" in RUNBOOK
    for label in re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]):
        assert label == "instance"
        assert "sum(" not in rule["expr"]


def test_runbook_has_no_alert_that_does_not_exist() -> None:
    assert set(re.findall(r"^### (Chorus\w+)$", RUNBOOK, re.M)) == {rule["alert"] for rule in ALERTS}


def test_settings_that_the_runbook_names_exist() -> None:
    for name in re.findall(r"`CHORUS_(\w+)`", RUNBOOK):
        assert name.lower() in Settings.model_fields
