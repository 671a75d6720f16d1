"""The shape of the code: layers that point downwards, files and functions of readable size."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("app", "prompt_store")
MAX_FILE_LINES = 350
MAX_FUNCTION_LINES = 60
VAGUE_NAMES = {"utils.py", "helpers.py", "common.py", "misc.py"}

MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
TREES = {str(path.relative_to(ROOT)): ast.parse(path.read_text(encoding="utf-8")) for path in MODULES}


def test_layers_point_downwards() -> None:
    lint = Path(sys.executable).parent / "lint-imports"
    ended = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout


def test_files_are_of_readable_size() -> None:
    sizes = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8").count("\n") for path in MODULES}
    assert not {name: lines for name, lines in sizes.items() if lines > MAX_FILE_LINES}


def test_functions_are_of_readable_size() -> None:
    sizes = {
        f"{name}:{node.lineno} {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for name, node in nodes()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert not {name: lines for name, lines in sizes.items() if lines > MAX_FUNCTION_LINES}


def test_modules_say_what_they_are() -> None:
    assert not [name for name, tree in TREES.items() if tree.body and not ast.get_docstring(tree)]
    assert not [name for name in TREES if name.rpartition("/")[2] in VAGUE_NAMES]


def nodes() -> Iterator[tuple[str, ast.AST]]:
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            yield name, node
