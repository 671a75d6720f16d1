"""The overlays are valid Kubernetes objects, agree with the settings and with each other, and drain before they die."""

from __future__ import annotations

import copy
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from app.settings import Settings
from app.training.supervision import GRACE_S
from tests.unit.deploy.kustomization import Object, build, containers, pod_specs

K8S = Path(__file__).resolve().parents[3] / "k8s"
OVERLAYS = ("autoscaling", "cpu", "gpu", "local", "s3")
FOREIGN = {"keda.sh/v1alpha1"}  # of which the schemas of Kubernetes know nothing: see test_autoscaling.py
KUBERNETES_VERSIONS = ("1.30", "1.37")
KUBECTL = shutil.which("kubectl")
SEEN_AFTER_S = {"kube-proxy, minSyncPeriod": 1.0, "ingress-nginx, 1 / sync-rate-limit": 1 / 0.3}
"""How long, by their own defaults, those who forward requests may take from hearing of a change to acting on it."""
BUILT = {overlay: build(K8S / "overlays" / overlay) for overlay in OVERLAYS}


def one(overlay: str, kind: str, name: str) -> Object:
    (item,) = [item for item in BUILT[overlay] if item["kind"] == kind and item["metadata"]["name"] == name]
    return item


def validate(item: Object, version: str = KUBERNETES_VERSIONS[-1]) -> None:
    kubernetes_validate.validate(item, version, strict=True)


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_is_valid_by_the_strict_schema(overlay: str, version: str) -> None:
    for item in BUILT[overlay]:
        if item["apiVersion"] not in FOREIGN:
            validate(item, version)


def test_example_secret_is_valid_holds_no_value_and_is_not_applied() -> None:
    secret = yaml.safe_load((K8S / "base" / "secret.example.yaml").read_text())
    validate(secret)
    assert set(secret["stringData"].values()) == {""}
    assert not any(item["kind"] == "Secret" for item in BUILT["cpu"])


PLANTED: dict[str, tuple[str, Callable[[Object], Any]]] = {
    "a misspelt probe": ("Deployment", lambda item: container(item).update(readynessProbe={})),
    "a misspelt security field": (
        "Deployment",
        lambda item: container(item)["securityContext"].update(readOnlyRootFileSystem=True),
    ),
    "a number where a quantity belongs": ("PersistentVolumeClaim", lambda item: item["spec"].update(resources=10)),
    "a missing selector": ("StatefulSet", lambda item: item["spec"].pop("selector")),
    "a number as a configuration value": ("ConfigMap", lambda item: item["data"].update(CHORUS_DRAIN_S=20)),
}


def container(item: Object) -> Object:
    found: Object = item["spec"]["template"]["spec"]["containers"][0]
    return found


@pytest.mark.parametrize("mistake", PLANTED)
def test_strict_schema_rejects_a_planted_mistake(mistake: str) -> None:
    kind, plant = PLANTED[mistake]
    item = copy.deepcopy(next(item for item in BUILT["cpu"] if item["kind"] == kind))
    plant(item)
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(item)


def by_name(objects: list[Object]) -> dict[str, Object]:
    return {f"{item['kind']}/{item['metadata']['name']}": item for item in objects}


def test_kubectl_where_installed_renders_the_same_objects() -> None:
    if KUBECTL is None:
        pytest.skip("kubectl is not installed")
    for overlay in OVERLAYS:
        command = [str(KUBECTL), "kustomize", str(K8S / "overlays" / overlay)]
        rendered = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
        assert by_name(list(yaml.safe_load_all(rendered))) == by_name(BUILT[overlay])


@pytest.mark.parametrize("change", [{"helmCharts": []}, {"patches": [{"target": {"kind": "Ingress"}, "patch": "[]"}]}])
def test_reader_refuses_what_it_would_get_wrong(change: Object, tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump({"resources": [], **change}))
    with pytest.raises(ValueError, match=r"does not know|matches nothing"):
        build(tmp_path)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_settings_in_the_manifests_exist_and_their_values_are_accepted(overlay: str) -> None:
    values = dict(one(overlay, "ConfigMap", "chorus")["data"])
    names = set(values)
    for pod in pod_specs(BUILT[overlay]).values():
        names |= {variable["name"] for item in containers(pod) for variable in item.get("env", [])}
    for name in names:
        if name.startswith("CHORUS_"):
            assert name.removeprefix("CHORUS_").lower() in Settings.model_fields
    Settings.model_validate({name.removeprefix("CHORUS_").lower(): value for name, value in values.items()})


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_secret_keys_in_the_manifests_stand_in_the_example(overlay: str) -> None:
    example = yaml.safe_load((K8S / "base" / "secret.example.yaml").read_text())
    for pod in pod_specs(BUILT[overlay]).values():
        for item in containers(pod):
            for variable in item.get("env", []):
                reference = variable.get("valueFrom", {}).get("secretKeyRef")
                if reference:
                    assert reference["name"] == example["metadata"]["name"]
                    assert reference["key"] in example["stringData"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_api_may_wait_and_drain_before_it_is_killed(overlay: str) -> None:
    pod = one(overlay, "Deployment", "api")["spec"]["template"]["spec"]
    wait = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain = float(one(overlay, "ConfigMap", "chorus")["data"]["CHORUS_DRAIN_S"])
    assert pod["terminationGracePeriodSeconds"] > wait + drain


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_api_listens_until_all_who_forward_to_it_have_seen_that_it_goes(overlay: str) -> None:
    """SIGTERM comes behind `preStop`; the endpoint goes before it, whatever the readiness probe says."""
    pod = one(overlay, "Deployment", "api")["spec"]["template"]["spec"]
    wait = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert wait > max(SEEN_AFTER_S.values())
    deployment = (K8S.parent / "docs/deployment.md").read_text()
    assert f"during `preStop` ({wait} s)" in deployment
    assert f"killed after {pod['terminationGracePeriodSeconds']} s" in deployment


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_worker_may_write_a_checkpoint_before_it_is_killed(overlay: str) -> None:
    pod = one(overlay, "Deployment", "worker")["spec"]["template"]["spec"]
    checkpoint = float(one(overlay, "ConfigMap", "chorus")["data"]["CHORUS_CHECKPOINT_S"])
    assert pod["terminationGracePeriodSeconds"] > max(checkpoint, GRACE_S) + Settings().job_heartbeat_s


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_api_is_ready_by_a_real_run_and_alive_without_redis(overlay: str) -> None:
    api = one(overlay, "Deployment", "api")["spec"]["template"]["spec"]["containers"][0]
    paths = {kind: api[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")}
    assert paths == {"startup": "/livez", "readiness": "/readyz", "liveness": "/livez"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_selectors_of_services_budgets_and_policies_find_a_workload(overlay: str) -> None:
    labels = [
        item["spec"]["template"]["metadata"]["labels"] for item in BUILT[overlay] if "template" in item.get("spec", {})
    ]
    for kind, name in [("Service", "api"), ("Service", "redis")]:
        assert one(overlay, kind, name)["spec"]["selector"] in labels
    assert one(overlay, "PodDisruptionBudget", "api")["spec"]["selector"]["matchLabels"] in labels


def test_network_is_closed_but_for_the_flows_that_are_needed() -> None:
    policies = {item["metadata"]["name"]: item["spec"] for item in BUILT["cpu"] if item["kind"] == "NetworkPolicy"}
    assert policies["default-deny"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    (to_redis,) = policies["redis"]["ingress"]
    assert to_redis["from"][0]["podSelector"]["matchExpressions"][0]["values"] == ["api", "worker"]
    assert to_redis["ports"] == [{"port": "redis", "protocol": "TCP"}]
    egress = [port["port"] for rule in policies["to-redis"]["egress"] for port in rule["ports"]]
    assert egress == ["redis", 53, 53]


def test_namespace_enforces_the_restricted_standard() -> None:
    labels = one("cpu", "Namespace", "chorus")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_gpu_overlay_gives_each_model_process_one_gpu_and_waits_for_it() -> None:
    for name, pod in pod_specs(BUILT["gpu"]).items():
        limits = pod["containers"][0]["resources"]["limits"]
        assert limits.get("nvidia.com/gpu") == (None if name.endswith("redis") else "1")
    assert one("gpu", "Deployment", "api")["spec"]["strategy"]["rollingUpdate"]["maxSurge"] == 0
    assert one("gpu", "Deployment", "worker")["spec"]["strategy"] == {"type": "Recreate"}
    assert one("gpu", "ConfigMap", "chorus")["data"]["CHORUS_DEVICE"] == "cuda"


def test_overlays_use_images_made_for_them() -> None:
    for overlay, tag in {"autoscaling": "cpu", "cpu": "cpu", "gpu": "cuda", "local": "cpu", "s3": "cpu-s3"}.items():
        for name in ("api", "worker"):
            image = one(overlay, "Deployment", name)["spec"]["template"]["spec"]["containers"][0]["image"]
            assert image.startswith("chorus:")
            assert image.endswith(f"-{tag}")


def test_local_overlay_runs_on_one_node() -> None:
    assert one("local", "Deployment", "api")["spec"]["replicas"] == 1
    assert one("local", "PersistentVolumeClaim", "chorus-data")["spec"]["accessModes"] == ["ReadWriteOnce"]


def test_s3_overlay_has_no_volume_that_pods_share_and_every_pod_knows_the_place() -> None:
    assert not any(item["kind"] == "PersistentVolumeClaim" for item in BUILT["s3"])
    assert one("s3", "ConfigMap", "chorus")["data"]["CHORUS_BLOBS_URL"].startswith("s3://")
    for name in ("api", "worker"):
        pod = one("s3", "Deployment", name)["spec"]["template"]["spec"]
        assert {next(iter(set(volume) - {"name"})) for volume in pod["volumes"]} == {"emptyDir"}
        assert [volume["name"] for volume in pod["volumes"]] == ["data", "tmp"]
        names = {variable["name"] for variable in pod["containers"][0]["env"]}
        # replicas share no folder, so each would hash keys under a pepper of its own
        assert {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "CHORUS_KEY_PEPPER"} <= names
    assert one("s3", "NetworkPolicy", "to-object-store")["spec"]["egress"][0]["ports"] == [
        {"port": 443, "protocol": "TCP"}
    ]


def test_api_is_spread_over_nodes_and_keeps_all_but_one_replica() -> None:
    spread = one("cpu", "Deployment", "api")["spec"]["template"]["spec"]["topologySpreadConstraints"]
    assert [rule["topologyKey"] for rule in spread] == ["kubernetes.io/hostname"]
    assert one("cpu", "PodDisruptionBudget", "api")["spec"]["maxUnavailable"] == 1
