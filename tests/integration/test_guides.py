"""Every guide in docs/guides is carried out as a reader would: its commands, in order, in one folder, against one
service. After a block, `<!-- prints: words -->` promises words of its output."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.whole import HANG_S, chorus_up, clean_environment

ROOT = Path(__file__).resolve().parents[2]
GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))

_BLOCK = re.compile(r"^```(?P<kind>bash|python)\n(?P<code>.*?)^```\n(?:<!-- prints: (?P<words>.*?) -->)?", re.M | re.S)


def blocks(guide: Path) -> list[tuple[str, str, str | None]]:
    """(kind, code, promised words) of each block that a reader runs."""
    text = guide.read_text(encoding="utf-8")
    return [(found["kind"], found["code"], found["words"]) for found in _BLOCK.finditer(text)]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with chorus_up(tmp_path_factory.mktemp("guides")) as url:
        yield url


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the reader stands: a copy of what the guides use of the repository, and `chorus` on the PATH."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    command = tmp_path / "bin" / "chorus"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m app "$@"\n')
    command.chmod(0o755)
    return tmp_path


def test_there_are_guides_and_each_has_commands() -> None:
    assert len(GUIDES) >= 2
    assert all(blocks(guide) for guide in GUIDES)


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_guide_does_what_it_says(guide: Path, service: str, folder: Path) -> None:
    environment = clean_environment(
        CHORUS_URL=service,
        PATH=f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        PYTHONPATH=str(ROOT),
        COLUMNS="160",
    )
    for kind, code, words in blocks(guide):
        command = ["bash", "-euo", "pipefail", "-c", code] if kind == "bash" else [sys.executable, "-c", code]
        run = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=HANG_S, check=False
        )
        told = f"{guide.name}:\n{code}\n{run.stdout}\n{run.stderr}"
        assert run.returncode == 0, told
        if words is not None:
            assert words in run.stdout + run.stderr, told
