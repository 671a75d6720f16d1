"""Promises of the package as a whole: what it exports, what it needs, where its keys and scripts stand."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import prompt_store
from prompt_store import keys, scripts

FOLDER = Path(prompt_store.__file__).parent


def test_all_is_complete_and_sorted() -> None:
    tree = ast.parse((FOLDER / "__init__.py").read_text())
    imported = [alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert set(prompt_store.__all__) == set(imported)
    assert len(prompt_store.__all__) == len(imported)
    assert prompt_store.__all__ == sorted(prompt_store.__all__, key=_kind_then_name)


def _kind_then_name(name: str) -> tuple[int, str]:
    """The order of the linter: constants, classes, functions."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


def test_all_holds_every_error() -> None:
    errors = {name for name, value in vars(prompt_store.errors).items() if isinstance(value, type)}
    assert errors <= set(prompt_store.__all__)


def test_every_error_has_a_code_of_its_own() -> None:
    errors = [value for value in vars(prompt_store.errors).values() if isinstance(value, type)]
    assert len({error.code for error in errors}) == len(errors)


def test_import_needs_neither_torch_nor_app() -> None:
    modules = sorted(f"prompt_store.{path.stem}" for path in FOLDER.glob("*.py"))
    code = f"""
import importlib, sys
for name in {modules!r}:
    importlib.import_module(name)
wrong = [name for name in sys.modules if name.split(".")[0] in ("torch", "transformers", "app", "fastapi")]
assert not wrong, wrong
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_keys_are_spelled_in_one_file_and_begin_alike() -> None:
    assert all(key.startswith("chorus:") for key in keys.ALL)
    assert len(set(keys.ALL)) == len(keys.ALL)
    for path in FOLDER.glob("*.py"):
        if path.name != "keys.py":
            assert "chorus:" not in path.read_text(), path.name


def test_every_script_opens_with_its_tables_and_names_no_key() -> None:
    texts = {name: text for name, text in vars(scripts).items() if name.isupper() and isinstance(text, str)}
    texts.pop("_PRELUDE", None)
    assert len(texts) == 8
    for name, text in texts.items():
        assert text.lstrip().startswith("-- KEYS"), name
        assert len(re.findall(r"^-- ARGV ", text, re.MULTILINE)) == 2, name
        assert "-- reply" in text, name
        assert max(int(number) for number in re.findall(r"KEYS\[(\d+)\]", text)) <= len(keys.ALL)
        assert "'chorus" not in text


def test_nothing_unpickles_or_runs_what_it_reads() -> None:
    for path in FOLDER.glob("*.py"):
        assert not re.search(r"\b(pickle|eval|exec|mmap|yaml|shell=True)\b\(?", path.read_text()), path.name
