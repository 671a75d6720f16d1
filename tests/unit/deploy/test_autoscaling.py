"""What the autoscaling component counts exists: a metric of ours, and a key of ours of a type that KEDA counts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import redis
import yaml

from app.settings import Settings
from app.telemetry.metrics import ENGINE, PREFIX
from app.training import keys
from app.training.job import ENDED
from app.training.jobs import JobStore
from app.training.queue import Dispatcher
from app.training.records import JobRecords
from app.training.supervision import GRACE_S
from tests.promql import parse, selectors
from tests.unit.deploy.kustomization import Object, build

ROOT = Path(__file__).resolve().parents[3]
BUILT = build(ROOT / "k8s" / "overlays" / "autoscaling")
SCALED_FIELDS = {
    "scaleTargetRef", "minReplicaCount", "maxReplicaCount", "pollingInterval", "cooldownPeriod", "fallback",
    "advanced", "triggers",
}  # fmt: skip
COUNT = """
local kinds = {zset = 'zcard', set = 'scard', list = 'llen', hash = 'hlen', none = 'llen'}
return redis.call(kinds[redis.call('type', KEYS[1]).ok], KEYS[1])
"""
"""How KEDA's redis scaler measures a key, whatever it calls it."""


def one(kind: str, name: str) -> Object:
    (item,) = [item for item in BUILT if item["kind"] == kind and item["metadata"]["name"] == name]
    return item


def trigger(name: str) -> Object:
    (found,) = one("ScaledObject", name)["spec"]["triggers"]
    return dict(found)


@pytest.mark.parametrize("name", ["api", "worker"])
def test_scaled_objects_have_known_fields_and_a_deployment_that_leaves_the_count_to_them(name: str) -> None:
    spec = one("ScaledObject", name)["spec"]
    assert set(spec) <= SCALED_FIELDS
    assert all(isinstance(value, str) for value in trigger(name)["metadata"].values())
    assert "replicas" not in one("Deployment", spec["scaleTargetRef"]["name"])["spec"]


def test_api_is_scaled_by_a_metric_that_is_exported() -> None:
    (name,) = re.findall(rf"{PREFIX}\w+", trigger("api")["metadata"]["query"])
    assert name.removeprefix(PREFIX) in ENGINE.values()
    assert float(trigger("api")["metadata"]["threshold"]) < Settings().max_queued_tokens


TARGET = {"__scheme__": "http", "__metrics_path__": "/metrics"}


def found_in_the_cluster() -> list[dict[str, str]]:
    """What `role: pod` tells of every port of every pod of the overlay, and of an API pod in another namespace."""
    pods = [
        (item["metadata"]["namespace"], item["spec"]["template"])
        for item in BUILT
        if "template" in item.get("spec", {})
    ]
    (api,) = [pod for _, pod in pods if pod["metadata"]["labels"]["app.kubernetes.io/name"] == "api"]
    return [
        {
            **TARGET,
            "__meta_kubernetes_namespace": namespace,
            "__meta_kubernetes_pod_name": f"{pod['metadata']['labels']['app.kubernetes.io/name']}-abc12",
            "__meta_kubernetes_pod_container_port_name": port["name"],
            **{
                "__meta_kubernetes_pod_label_" + re.sub(r"\W", "_", name): value
                for name, value in pod["metadata"]["labels"].items()
            },
        }
        for namespace, pod in [*pods, ("elsewhere", api)]
        for port in pod["spec"]["containers"][0].get("ports", [])
    ]


def relabelled(labels: dict[str, str], rules: list[Object]) -> dict[str, str] | None:
    """As Prometheus does, for the two actions that are used; None: dropped. Labels in `__` do not reach series."""
    for rule in rules:
        assert set(rule) <= {"source_labels", "regex", "action", "target_label"}, rule
        text = ";".join(labels.get(name, "") for name in rule["source_labels"])
        match = re.fullmatch(rule.get("regex", "(.*)"), text)
        if rule.get("action", "replace") == "keep":
            if match is None:
                return None
        elif match is not None:
            labels = {**labels, rule["target_label"]: match[1]}
    return {name: value for name, value in labels.items() if not name.startswith("__")}


def test_documented_scrape_gives_the_labels_that_the_query_asks_for() -> None:
    (scrape,) = yaml.safe_load((ROOT / "monitoring" / "kubernetes.yml").read_text())["scrape_configs"]
    targets = [relabelled(labels, scrape["relabel_configs"]) for labels in found_in_the_cluster()]
    (labels,) = [one for one in targets if one is not None]
    assert labels == {"namespace": "chorus", "pod": "api-abc12"}
    (asked,) = selectors(parse(trigger("api")["metadata"]["query"]))
    assert asked.equal, "the query asks for nothing but a name"
    assert asked.equal <= labels.items()
    assert asked.labels == {name for name, _ in asked.equal}
    assert {scrape["job_name"]} == {value for name, value in asked_of_alerts() if name == "job"}


def asked_of_alerts() -> set[tuple[str, str]]:
    groups = yaml.safe_load((ROOT / "monitoring" / "alerts.yml").read_text())["groups"]
    expressions = [parse(rule["expr"]) for group in groups for rule in group["rules"]]
    return {pair for expression in expressions for one in selectors(expression) for pair in one.equal}


def test_deployment_page_names_the_scrape_and_the_query_as_they_are() -> None:
    page = (ROOT / "docs" / "deployment.md").read_text()
    assert "monitoring/kubernetes.yml" in page
    assert f"`{trigger('api')['metadata']['query']}`" in page
    monitors = [
        yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", page, re.S) if "PodMonitor" in block
    ]
    (spec,) = [monitor["spec"] for monitor in monitors]
    api = one("Deployment", "api")["spec"]["template"]
    assert spec["selector"]["matchLabels"].items() <= api["metadata"]["labels"].items()
    assert spec["podMetricsEndpoints"][0]["port"] in {port["name"] for port in api["spec"]["containers"][0]["ports"]}


def test_api_never_falls_below_what_the_disruption_budget_needs() -> None:
    assert one("ScaledObject", "api")["spec"]["minReplicaCount"] > 1
    assert one("ScaledObject", "api")["spec"]["fallback"]["replicas"] > 1


def test_workers_are_scaled_to_none_and_counted_by_jobs_that_have_not_ended() -> None:
    assert one("ScaledObject", "worker")["spec"]["minReplicaCount"] == 0
    assert trigger("worker")["metadata"]["listName"] == keys.LIVE
    assert trigger("worker")["metadata"]["listLength"] == "1"


def test_count_covers_a_job_in_hand_and_falls_when_it_ends(jobs_in_redis: tuple[redis.Redis, str]) -> None:
    client, job_id = jobs_in_redis
    records = JobRecords(client, lease_s=15)
    count = client.register_script(COUNT)

    def waiting() -> int:
        return int(count(keys=[trigger("worker")["metadata"]["listName"]]))

    assert waiting() == 1
    attempt = records.claim(job_id, "worker-1")
    Dispatcher(client).remove(job_id)
    assert attempt
    assert waiting() == 1  # though the queue itself is empty
    assert Dispatcher(client).position(job_id) is None
    assert records.move(job_id, "failed", attempt=attempt) == "moved"
    assert records.get(job_id).status in ENDED
    assert waiting() == 0


def test_worker_that_is_scaled_away_may_save_its_place_first() -> None:
    pod = one("Deployment", "worker")["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > GRACE_S + Settings().job_heartbeat_s
    assert one("ScaledObject", "worker")["spec"]["cooldownPeriod"] >= Settings().job_lease_s


def test_keda_may_reach_redis_with_the_password_of_the_secret() -> None:
    secret = one("TriggerAuthentication", trigger("worker")["authenticationRef"]["name"])["spec"]["secretTargetRef"]
    assert secret == [{"parameter": "password", "name": "chorus", "key": "REDIS_PASSWORD"}]
    (rule,) = one("NetworkPolicy", "redis-from-keda")["spec"]["ingress"]
    assert rule["from"][0]["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "keda"}
    host, port = trigger("worker")["metadata"]["address"].split(":")
    service = one("Service", host.partition(".")[0])
    assert service["spec"]["ports"][0]["port"] == int(port)


@pytest.fixture
def jobs_in_redis(redis_url: str, tmp_path: Path) -> tuple[redis.Redis, str]:
    from app.training.connection import connect
    from app.training.datasets import DatasetStore
    from app.training.requests import TrainRequest
    from prompt_store.testing import memory_store

    client = connect(redis_url)
    jobs = JobStore(client, memory_store(tmp_path / "blobs"), DatasetStore(client, tmp_path / "data"), lease_s=15)
    rows = [{"text": f"row {number}", "label": "ab"[number % 2]} for number in range(8)]
    request = TrainRequest.model_validate({"task": "pets", "training_data": {"inline": rows}})
    return client, jobs.submit(request)[0].id
