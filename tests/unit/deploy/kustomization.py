"""Reads the kustomizations of this project without kubectl: just the fields they use, and an error for any other.

Where kubectl is installed, a test compares this reader's objects with those of `kubectl kustomize`.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]
FIELDS = {"apiVersion", "kind", "namespace", "labels", "resources", "components", "patches", "replicas", "images"}
CLUSTER_KINDS = {"Namespace"}


def build(folder: Path) -> list[Object]:
    """All objects of the kustomization in `folder`, bases first, as dictionaries."""
    return _build(folder, [])


def _build(folder: Path, given: list[Object]) -> list[Object]:
    """What the kustomization makes of its resources and, where it is a component, of the objects given to it."""
    spec = yaml.safe_load((folder / "kustomization.yaml").read_text())
    unknown = set(spec) - FIELDS
    if unknown:
        raise ValueError(f"{folder / 'kustomization.yaml'}: fields this reader does not know: {sorted(unknown)}")
    objects = given + [item for entry in spec.get("resources", []) for item in _load(folder / entry)]
    for entry in spec.get("components", []):
        objects = _build(folder / entry, objects)
    for patch in spec.get("patches", []):
        _apply(patch, objects)
    for item in objects:
        _transform(item, spec)
    return objects


def containers(pod: Object) -> list[Object]:
    """Every container of a pod spec, init and ephemeral ones too."""
    return [one for key in ("initContainers", "containers", "ephemeralContainers") for one in pod.get(key, [])]


def pod_specs(objects: list[Object]) -> dict[str, Object]:
    """`kind/name` -> pod spec, of all workloads."""
    return {
        f"{item['kind']}/{item['metadata']['name']}": item["spec"]["template"]["spec"]
        for item in objects
        if "template" in item.get("spec", {})
    }


def _load(path: Path) -> list[Object]:
    return build(path) if path.is_dir() else list(yaml.safe_load_all(path.read_text()))


def _apply(patch: Object, objects: list[Object]) -> None:
    target = patch["target"]
    matching = [item for item in objects if _matches(item, target)]
    if not matching:
        raise ValueError(f"a patch matches nothing: {target}")
    operations = yaml.safe_load(patch["patch"])
    if isinstance(operations, dict):
        if operations.get("$patch") != "delete":
            raise ValueError(f"a patch this reader does not know: {target}")
        objects[:] = [item for item in objects if item not in matching]
        return
    for item in matching:
        for operation in operations:
            _operate(item, operation)


def _matches(item: Object, target: Object) -> bool:
    return item["kind"] == target["kind"] and target.get("name", item["metadata"]["name"]) == item["metadata"]["name"]


def _operate(item: Object, operation: Object) -> None:
    """One JSON patch operation: `add`, `replace` or `remove` of a key in a mapping, `add` at a list's end, `replace` in
    a list."""
    *parents, last = (part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:])
    place: Any = item
    for part in parents:
        place = place[int(part)] if isinstance(place, list) else place[part]
    kind = operation["op"]
    if kind not in ("add", "replace", "remove"):
        raise ValueError(f"an operation this reader does not know: {kind}")
    if isinstance(place, list):
        if (kind, last) == ("add", "-"):
            place.append(copy.deepcopy(operation["value"]))
        elif kind == "replace":
            place[int(last)] = copy.deepcopy(operation["value"])
        else:
            raise ValueError(f"{kind} at {operation['path']}: this reader does not know that for lists")
        return
    if kind != "add" and last not in place:
        raise ValueError(f"{kind} of {operation['path']}, which does not exist")
    if kind == "remove":
        del place[last]
    else:
        place[last] = copy.deepcopy(operation["value"])


def _transform(item: Object, spec: Object) -> None:
    if "namespace" in spec and item["kind"] not in CLUSTER_KINDS:
        item["metadata"]["namespace"] = spec["namespace"]
    for entry in spec.get("labels", []):
        item["metadata"].setdefault("labels", {}).update(entry["pairs"])
    for entry in spec.get("replicas", []):
        if item["metadata"]["name"] == entry["name"] and "replicas" in item.get("spec", {}):
            item["spec"]["replicas"] = entry["count"]
    for container in containers(item.get("spec", {}).get("template", {}).get("spec", {})):
        for image in spec.get("images", []):
            if container["image"].partition(":")[0] == image["name"]:
                container["image"] = f"{image['name']}:{image['newTag']}"
