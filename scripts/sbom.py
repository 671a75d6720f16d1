"""Keep of a bill of materials what the service needs: `python scripts/sbom.py ALL.json SERVED.json [EXTRA …]`.

The tool lists a whole environment, linters and test servers too. What ships is the project's own dependencies, those of
the extras named, and whatever these need in turn.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import requires
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def wanted(project: Mapping[str, Any], extras: Sequence[str] = ()) -> set[str]:
    """Normalised names of the packages that the project asks for. Raises KeyError for an extra that does not exist."""
    lines = list(project["dependencies"])
    for extra in extras:
        lines += project["optional-dependencies"][extra]
    return {normal(line) for line in lines}


def normal(requirement: str) -> str:
    """The package's name in a requirement, as indexes compare names."""
    found = _NAME.match(requirement)
    if found is None:
        raise ValueError(f"not a requirement: {requirement}")
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def needed(names: Collection[str]) -> set[str]:
    """`names` and all that they need here, of what is installed; not what would be needed for extras of theirs, which a
    bill of a whole environment counts too. Raises PackageNotFoundError."""
    found: set[str] = set()
    ahead = list(names)
    while ahead:
        name = ahead.pop()
        if name in found:
            continue
        found.add(name)
        for line in requires(name) or []:
            requirement = Requirement(line)
            for extra in requirement.extras or {""}:
                if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                    ahead.append(normal(requirement.name))
                    ahead += _of_extra(requirement.name, extra)
    return found


def _of_extra(name: str, extra: str) -> list[str]:
    """What one extra of a package adds."""
    found = [Requirement(line) for line in requires(name) or []] if extra else []
    return [normal(one.name) for one in found if one.marker is not None and one.marker.evaluate({"extra": extra})]


def served(bom: Mapping[str, Any], direct: Collection[str], kept: Collection[str]) -> dict[str, Any]:
    """The bill of `kept` packages, of which the root needs `direct`. Raises LookupError when one is not in `bom`."""
    root = bom["metadata"]["component"]["bom-ref"]
    refs = {normal(component["name"]): component["bom-ref"] for component in bom["components"]}
    missing = set(kept) - set(refs)
    if missing:
        raise LookupError(f"not installed: {', '.join(sorted(missing))}")
    inside = {refs[name] for name in kept}
    needs = {
        entry["ref"]: [ref for ref in entry.get("dependsOn", []) if ref in inside] for entry in bom["dependencies"]
    }
    return {
        **bom,
        "components": [component for component in bom["components"] if component["bom-ref"] in inside],
        "dependencies": [
            {"ref": root, "dependsOn": sorted(refs[name] for name in direct)},
            *({"ref": ref, "dependsOn": needs.get(ref, [])} for ref in sorted(inside)),
        ],
    }


def main(source: str, target: str, *extras: str) -> None:
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    direct = wanted(project, extras)
    bom = served(json.loads(Path(source).read_text()), direct, needed(direct))
    Path(target).write_text(json.dumps(bom, indent=2, ensure_ascii=False) + "\n")
    sys.stdout.write(f"{target}: {len(bom['components'])} packages\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
