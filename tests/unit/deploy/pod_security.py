"""The Pod Security Standard `restricted`, and what this project asks beyond it, as a list of violations of a pod spec.

The admission controller of a cluster enforces the standard; schema validators do not know it, so it is checked here.
"""

from __future__ import annotations

from typing import Any

from tests.unit.deploy.kustomization import containers

VOLUME_KINDS = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret",
}  # fmt: skip
SECCOMP = ("RuntimeDefault", "Localhost")
SELINUX_TYPES = (None, "", "container_t", "container_init_t", "container_kvm_t", "container_engine_t")
SAFE_SYSCTLS = {
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
}


def restricted_violations(pod: dict[str, Any]) -> list[str]:
    """What the standard `restricted` forbids in this pod spec; empty when it may run in such a namespace."""
    found = [f"{key} is set" for key in ("hostNetwork", "hostPID", "hostIPC") if pod.get(key)]
    context = pod.get("securityContext", {})
    for volume in pod.get("volumes", []):
        kinds = set(volume) - {"name"}
        found += [f"volume {volume['name']} is a {kind}" for kind in kinds - VOLUME_KINDS]
    found += [f"sysctl {item['name']}" for item in context.get("sysctls", []) if item["name"] not in SAFE_SYSCTLS]
    found += _shared_violations("the pod", context)
    for container in containers(pod):
        own = container.get("securityContext", {})
        found += _shared_violations(container["name"], own)
        found += _container_violations(container, own, context)
    return found


def house_violations(pod: dict[str, Any]) -> list[str]:
    """What this project asks beyond `restricted`: no token, read-only root, bounded memory, no service links."""
    refused = ("automountServiceAccountToken", "enableServiceLinks")
    found = [f"{key} is not false" for key in refused if pod.get(key) is not False]
    for container in containers(pod):
        name = container["name"]
        if container.get("securityContext", {}).get("readOnlyRootFilesystem") is not True:
            found.append(f"{name}: the root file system is writable")
        resources = container.get("resources", {})
        if not {"cpu", "memory"} <= set(resources.get("requests", {})):
            found.append(f"{name}: requests lack cpu or memory")
        if "memory" not in resources.get("limits", {}):
            found.append(f"{name}: memory is not limited")
        image = container["image"]
        if ":" not in image.rsplit("/", 1)[-1] or image.endswith(":latest"):
            found.append(f"{name}: image {image} has no fixed tag")
    return found


def _shared_violations(where: str, context: dict[str, Any]) -> list[str]:
    """Fields that a pod's and a container's security context both have."""
    found = []
    if context.get("runAsUser") == 0:
        found.append(f"{where}: runs as user 0")
    if "seccompProfile" in context and context["seccompProfile"].get("type") not in SECCOMP:
        found.append(f"{where}: seccomp {context['seccompProfile'].get('type')}")
    linux = context.get("seLinuxOptions", {})
    if linux.get("type") not in SELINUX_TYPES or linux.get("user") or linux.get("role"):
        found.append(f"{where}: SELinux options")
    if context.get("appArmorProfile", {}).get("type") == "Unconfined":
        found.append(f"{where}: AppArmor is off")
    if context.get("windowsOptions", {}).get("hostProcess"):
        found.append(f"{where}: Windows host process")
    return found


def _container_violations(container: dict[str, Any], own: dict[str, Any], pod: dict[str, Any]) -> list[str]:
    """Fields that count per container, where the container's own context goes before the pod's."""
    name = container["name"]
    capabilities = own.get("capabilities", {})
    checks = {
        "is privileged": not own.get("privileged"),
        "may escalate privileges": own.get("allowPrivilegeEscalation") is False,
        "does not drop ALL capabilities": "ALL" in capabilities.get("drop", []),
        "adds capabilities": set(capabilities.get("add", [])) <= {"NET_BIND_SERVICE"},
        "may run as root": own.get("runAsNonRoot", pod.get("runAsNonRoot")) is True,
        "has no seccomp profile": bool(own.get("seccompProfile", pod.get("seccompProfile"))),
        "unmasks /proc": own.get("procMount", "Default") == "Default",
        "uses a host port": not any(port.get("hostPort") for port in container.get("ports", [])),
        "probes another host": not any(_host(handler) for handler in _handlers(container)),
    }
    return [f"{name}: {what}" for what, holds in checks.items() if not holds]


def _handlers(container: dict[str, Any]) -> list[dict[str, Any]]:
    probes = [container.get(key, {}) for key in ("startupProbe", "readinessProbe", "livenessProbe")]
    return probes + list(container.get("lifecycle", {}).values())


def _host(handler: dict[str, Any]) -> str | None:
    return handler.get("httpGet", {}).get("host") or handler.get("tcpSocket", {}).get("host")
