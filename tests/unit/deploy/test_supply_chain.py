"""Every dependency has a reason, a licence and a pin; the bill of materials holds what serving needs and no more."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "scripts"))
import sbom  # noqa: E402

sys.path.pop(0)

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = [extra for extra in PROJECT["optional-dependencies"] if extra != "dev"]
PINS = {
    sbom.normal(line): line.partition(";")[0].strip().partition("==")[2]
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
}
FAMILIES = {"Apache-2.0": "Apache", "MIT": "MIT", "BSD": "BSD"}
SBOM_TOOL = ROOT / ".peers" / "sbom" / "bin" / "cyclonedx-py"


def table(heading: str) -> dict[str, list[str]]:
    """package -> reason, licence, size, of one section of the page."""
    text = (ROOT / "docs" / "dependencies.md").read_text()
    section = re.split(r"\n## ", text[text.index(f"## {heading}") + 3 :])[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    return {row[0]: row[1:] for row in rows[2:]}


def names(lines: list[str]) -> set[str]:
    return {sbom.normal(line) for line in lines}


def test_every_runtime_dependency_has_a_line_and_every_line_a_dependency() -> None:
    assert {sbom.normal(name) for name in table("Serving and training")} == names(PROJECT["dependencies"])
    extras = [line for extra in EXTRAS for line in PROJECT["optional-dependencies"][extra]]
    assert {sbom.normal(name) for name in table("Extras")} == names(extras)


@pytest.mark.parametrize("heading", ["Serving and training", "Extras"])
def test_lines_have_a_reason_a_free_licence_and_a_size(heading: str) -> None:
    for name, (reason, licence, size) in table(heading).items():
        assert len(reason) > 5, name
        assert licence in FAMILIES, name
        assert re.match(r"\d+", size), name


@pytest.mark.parametrize("name", table("Serving and training"))
def test_licence_is_the_one_that_the_package_states(name: str) -> None:
    metadata = importlib.metadata.metadata(name)
    said = [metadata.get("License-Expression") or "", metadata.get("License") or ""]
    said += [line for line in metadata.get_all("Classifier") or [] if line.startswith("License")]
    assert FAMILIES[table("Serving and training")[name][1]] in " ".join(said)


def test_every_direct_dependency_is_pinned_within_its_range() -> None:
    lines = [*PROJECT["dependencies"], *(one for lines in PROJECT["optional-dependencies"].values() for one in lines)]
    for line in lines:
        requirement = Requirement(line)
        assert requirement.specifier.contains(PINS[sbom.normal(line)]), line


def test_everything_that_serving_pulls_in_is_pinned() -> None:
    found = sbom.needed(names(PROJECT["dependencies"]))
    assert {"starlette", "tokenizers", "croniter"} <= found
    assert not {"pytest", "moto", "s3fs"} & found
    assert found - set(PINS) == set()


def test_pins_are_exact() -> None:
    assert all(re.fullmatch(r"\d[\w.]*", version) for version in PINS.values()), PINS


def bom() -> dict[str, Any]:
    parts = {"served": ["Inner_Part"], "Inner_Part": ["served"], "linter": ["other"], "other": []}
    return {
        "bomFormat": "CycloneDX",
        "metadata": {"component": {"bom-ref": "root"}},
        "components": [{"bom-ref": f"{name}==1", "name": name} for name in parts],
        "dependencies": [
            {"ref": "root", "dependsOn": ["linter==1", "served==1"]},
            *({"ref": f"{name}==1", "dependsOn": [f"{one}==1" for one in needs]} for name, needs in parts.items()),
        ],
    }


def test_bill_keeps_what_is_named_and_leaves_out_the_tools() -> None:
    found = sbom.served(bom(), {"served"}, {"served", "inner-part"})
    assert [component["name"] for component in found["components"]] == ["served", "Inner_Part"]
    assert found["dependencies"] == [
        {"ref": "root", "dependsOn": ["served==1"]},
        {"ref": "Inner_Part==1", "dependsOn": ["served==1"]},
        {"ref": "served==1", "dependsOn": ["Inner_Part==1"]},
    ]


def test_bill_without_a_package_that_is_wanted_is_refused() -> None:
    with pytest.raises(LookupError, match="absent"):
        sbom.served(bom(), {"served"}, {"served", "absent"})


def test_wanted_packages_are_those_of_the_project_and_of_the_extras_named() -> None:
    assert sbom.wanted(PROJECT) == names(PROJECT["dependencies"])
    assert sbom.wanted(PROJECT, ["s3"]) - sbom.wanted(PROJECT) == {"s3fs"}
    with pytest.raises(KeyError):
        sbom.wanted(PROJECT, ["nothing"])


@pytest.mark.slow
def test_make_sbom_writes_a_bill_of_what_is_installed(tmp_path: Path) -> None:
    """The tool itself checks its output against the schema of CycloneDX. The script installs it where it is missing,
    from the index of packages: where that is out of reach, this fails, and is not passed over."""
    subprocess.run(["scripts/sbom.sh"], cwd=ROOT, check=True, timeout=600)
    assert SBOM_TOOL.exists()
    found = json.loads((ROOT / "dist" / f"chorus-{PROJECT['version']}.cdx.json").read_text())
    assert (found["bomFormat"], found["specVersion"]) == ("CycloneDX", "1.6")
    versions = {sbom.normal(component["name"]): component["version"] for component in found["components"]}
    assert versions["fastapi"] == importlib.metadata.version("fastapi")
    assert names(PROJECT["dependencies"]) <= set(versions)
    assert not {"pytest", "moto", "mypy"} & set(versions)
    assert str(ROOT) not in json.dumps(found)
