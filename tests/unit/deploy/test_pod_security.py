"""Every container of every overlay meets Pod Security `restricted` and the project's own rules; the check bites."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.deploy.kustomization import build, pod_specs
from tests.unit.deploy.pod_security import house_violations, restricted_violations

K8S = Path(__file__).resolve().parents[3] / "k8s"
PODS = {
    f"{overlay}: {name}": pod
    for overlay in ("cpu", "gpu", "local")
    for name, pod in pod_specs(build(K8S / "overlays" / overlay)).items()
}


def test_all_workloads_of_all_overlays_are_looked_at() -> None:
    assert len(PODS) == 3 * len(["api", "worker", "redis"])


@pytest.mark.parametrize("name", PODS)
def test_pod_meets_the_restricted_standard(name: str) -> None:
    assert restricted_violations(PODS[name]) == []


@pytest.mark.parametrize("name", PODS)
def test_pod_meets_the_rules_of_the_house(name: str) -> None:
    assert house_violations(PODS[name]) == []


def without(path: str) -> Callable[[dict[str, Any]], None]:
    def plant(pod: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        place: Any = pod
        for part in parents:
            place = place[int(part)] if part.isdigit() else place[part]
        del place[last]

    return plant


def with_(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def plant(pod: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        place: Any = pod
        for part in parents:
            place = place[int(part)] if part.isdigit() else place.setdefault(part, {})
        place[last] = value

    return plant


CONTEXT = "containers.0.securityContext"
FORBIDDEN = {
    "no runAsNonRoot": without("securityContext.runAsNonRoot"),
    "runAsNonRoot false in one container": with_(f"{CONTEXT}.runAsNonRoot", False),
    "no seccomp profile": without("securityContext.seccompProfile"),
    "seccomp unconfined": with_(f"{CONTEXT}.seccompProfile", {"type": "Unconfined"}),
    "capabilities kept": without(f"{CONTEXT}.capabilities"),
    "a capability added": with_(f"{CONTEXT}.capabilities.add", ["SYS_ADMIN"]),
    "privilege escalation not denied": without(f"{CONTEXT}.allowPrivilegeEscalation"),
    "privileged": with_(f"{CONTEXT}.privileged", True),
    "user 0": with_(f"{CONTEXT}.runAsUser", 0),
    "unmasked proc": with_(f"{CONTEXT}.procMount", "Unmasked"),
    "SELinux user": with_("securityContext.seLinuxOptions", {"user": "system_u"}),
    "AppArmor off": with_(f"{CONTEXT}.appArmorProfile", {"type": "Unconfined"}),
    "host network": with_("hostNetwork", True),
    "host processes": with_("hostPID", True),
    "host path": with_("volumes", [{"name": "root", "hostPath": {"path": "/"}}]),
    "host port": with_("containers.0.ports", [{"containerPort": 8000, "hostPort": 80}]),
    "probe of another host": with_("containers.0.livenessProbe", {"httpGet": {"host": "169.254.169.254", "port": 80}}),
    "unsafe sysctl": with_("securityContext.sysctls", [{"name": "kernel.msgmax", "value": "1"}]),
    "an init container without a context": with_("initContainers", [{"name": "init", "image": "busybox:1"}]),
}
UNWANTED = {
    "service account token": without("automountServiceAccountToken"),
    "service links": without("enableServiceLinks"),
    "writable root": without(f"{CONTEXT}.readOnlyRootFilesystem"),
    "no memory limit": without("containers.0.resources.limits"),
    "no requests": without("containers.0.resources.requests"),
    "image without a tag": with_("containers.0.image", "registry.example:5000/chorus"),
    "image latest": with_("containers.0.image", "chorus:latest"),
}


@pytest.mark.parametrize("mistake", FORBIDDEN)
def test_restricted_check_rejects_a_planted_mistake(mistake: str) -> None:
    pod = copy.deepcopy(PODS["cpu: Deployment/api"])
    FORBIDDEN[mistake](pod)
    assert restricted_violations(pod)


@pytest.mark.parametrize("mistake", UNWANTED)
def test_house_check_rejects_a_planted_mistake(mistake: str) -> None:
    pod = copy.deepcopy(PODS["cpu: Deployment/api"])
    UNWANTED[mistake](pod)
    assert house_violations(pod)
