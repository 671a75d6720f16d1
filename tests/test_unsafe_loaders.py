"""Nothing in the service unpickles, evaluates or runs what it reads, by whatever name a module calls the loader."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {
    "app": 20,
    "prompt_store": 20,
    "pretraining": 10,
    "benchmarks": 10,
    "scripts": 1,
    "docker": 1,
    "examples": 1,
}
"""Folder -> how many modules it has at least: an empty search would find nothing unsafe either."""
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

MODULES_NEVER_IMPORTED = {"pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "imp"}
CALLS_NEVER_MADE = {
    "eval", "exec", "compile", "__import__", "builtins.eval", "builtins.exec", "os.system", "os.popen",
    "runpy.run_path",
    "subprocess.getoutput", "subprocess.getstatusoutput", "torch.load", "torch.serialization.load", "torch.jit.load",
    "torch.hub.load", "torch.package.PackageImporter", "yaml.load", "yaml.load_all", "yaml.unsafe_load",
    "yaml.unsafe_load_all", "yaml.full_load", "yaml.full_load_all", "numpy.lib.npyio.NpzFile",
    "pandas.read_pickle", "importlib.util.spec_from_file_location",
}  # fmt: skip
METHODS_NEVER_CALLED = {"load_module", "exec_module", "read_pickle"}
NEVER_BUT = {"shell": "False", "trust_remote_code": "False", "allow_pickle": "False", "weights_only": "True"}
"""Argument -> the only value it may have, spelled out: a variable might become another."""
MUST_SAY = {"load": ("numpy.load", "allow_pickle"), "from_pretrained": (None, "trust_remote_code")}
"""Last part of a call's name -> its full name, if only that one is meant, and the argument that must stand there."""


def unsafe(text: str) -> Iterator[str]:
    """Each unsafe thing in a module's source, with its line."""
    tree = ast.parse(text)
    names = aliases(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            found = {name.partition(".")[0] for name in imported(node)} & MODULES_NEVER_IMPORTED
            yield from (f"{node.lineno}: import of {name}" for name in found)
        elif isinstance(node, ast.Call):
            yield from (f"{node.lineno}: {what}" for what in unsafe_parts(node, names))


def unsafe_parts(call: ast.Call, names: dict[str, str]) -> Iterator[str]:
    first, dot, rest = ast.unparse(call.func).partition(".")
    full = names.get(first, first) + dot + rest
    if full in CALLS_NEVER_MADE:
        yield f"call of {full}"
    if dot and rest.rpartition(".")[2] in METHODS_NEVER_CALLED:
        yield f"call of {rest}"
    only, needed = MUST_SAY.get(full.rpartition(".")[2], ("", ""))
    if needed and only in (None, full) and needed not in {argument.arg for argument in call.keywords}:
        yield f"{full} without {needed}"
    for argument in call.keywords:
        if argument.arg in NEVER_BUT and ast.unparse(argument.value) != NEVER_BUT[argument.arg]:
            yield f"{argument.arg}={ast.unparse(argument.value)}"


def aliases(tree: ast.Module) -> dict[str, str]:
    """Local name -> what it stands for, of all imports in a module."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {one.asname: one.name for one in node.names if one.asname}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {one.asname or one.name: f"{node.module}.{one.name}" for one in node.names}
    return found


def imported(node: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(node, ast.ImportFrom):
        return [node.module or ""]
    return [one.name for one in node.names]


@pytest.mark.parametrize("package", PACKAGES)
def test_package_uses_no_unsafe_loader(package: str) -> None:
    paths = [path for path in MODULES if path.relative_to(ROOT).parts[0] == package]
    assert len(paths) >= PACKAGES[package]
    found = [f"{path.relative_to(ROOT)}:{what}" for path in paths for what in unsafe(path.read_text(encoding="utf-8"))]
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from cloudpickle import dumps",
        "import joblib as j",
        "import torch\ntorch.load(path)",
        "import torch as t\nt.load(path, weights_only=True)",
        "from torch import load\nload(path)",
        "from torch import load as take\ntake(path)",
        "import numpy as np\nnp.load(path)",
        "frame.read_pickle(path)",
        "read(path, allow_pickle=True)",
        "read(path, allow_pickle=flag)",
        "read(path, weights_only=False)",
        "model.from_pretrained(name, trust_remote_code=True)",
        "model.from_pretrained(name, trust_remote_code=settings.trust)",
        "import yaml\nyaml.load(text, Loader=yaml.SafeLoader)",
        "from yaml import full_load\nfull_load(text)",
        "eval(text)",
        "def f():\n    from builtins import exec as run\n    run(text)",
        "import subprocess\nsubprocess.run(line, shell=True)",
        "spec.loader.exec_module(module)",
        "model.from_pretrained(name)",
    ],
)
def test_planted_loader_is_found(text: str) -> None:
    assert list(unsafe(text))


@pytest.mark.parametrize(
    "text",
    [
        "import yaml\nyaml.safe_load(text)",
        "from safetensors.torch import load\nload(data)",
        "store.load(version)",
        "import re\nre.compile(text)",
        "model.eval()",
        "import numpy as np\nnp.load(path, allow_pickle=False)",
        "model.from_pretrained(name, trust_remote_code=False)",
    ],
)
def test_safe_code_is_left_alone(text: str) -> None:
    assert not list(unsafe(text))
