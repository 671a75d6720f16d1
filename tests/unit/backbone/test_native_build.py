from __future__ import annotations

from pathlib import Path

import pytest
import torch

from app.backbone.native import build


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build.load.cache_clear()
    yield
    build.load.cache_clear()


def fake_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    compiler = tmp_path / "mycc"
    compiler.write_text(f"#!/bin/sh\n{script}\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))


def test_load_without_a_compiler_gives_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert build.load(torch.float32) is None


def test_load_with_a_compiler_that_fails_gives_none_and_keeps_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_compiler(tmp_path, monkeypatch, "echo broken >&2; exit 1")
    assert build.load(torch.float32) is None
    assert not list((tmp_path / "chorus").iterdir())


def test_load_of_a_library_that_is_none_gives_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_compiler(tmp_path, monkeypatch, 'while [ "$1" != -o ]; do shift; done; echo nonsense > "$2"')
    assert build.load(torch.float32) is None


def test_load_for_a_dtype_without_compiled_steps_gives_none() -> None:
    assert build.load(torch.float16) is None


@pytest.mark.skipif(build.load(torch.float32) is None, reason="no C compiler on this machine")
def test_load_twice_compiles_once(tmp_path: Path) -> None:
    assert build.load(torch.bfloat16) is not None
    kept = list((tmp_path / "chorus").iterdir())
    build.load.cache_clear()
    assert build.load(torch.bfloat16) is not None
    assert list((tmp_path / "chorus").iterdir()) == kept
    assert len(kept) == 1
