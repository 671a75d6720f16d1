"""`make env` writes a `.env` with fresh secrets, for its owner only, and never over an existing one."""

from __future__ import annotations

import runpy
import stat
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def write_env() -> Any:
    return runpy.run_path(str(ROOT / "docker" / "write_env.py"))["main"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / ".env.example").write_text((ROOT / ".env.example").read_text())
    return tmp_path


def values(folder: Path) -> dict[str, str]:
    lines = (folder / ".env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def test_env_file_when_written_has_fresh_secrets_for_its_owner_only(write_env: Any, folder: Path) -> None:
    assert write_env(["--folder", str(folder)]) == 0
    written = values(folder)
    assert written["COMPOSE_PROFILES"] == "cpu"
    secrets = [written[name] for name in ("CHORUS_API_KEY", "REDIS_PASSWORD", "GRAFANA_PASSWORD")]
    assert len(set(secrets)) == 3
    assert min(map(len, secrets)) >= 40
    assert stat.S_IMODE((folder / ".env").stat().st_mode) == 0o600


def test_env_file_when_it_exists_is_left_alone(
    write_env: Any, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / ".env").write_text("CHORUS_API_KEY=mine\n")
    assert write_env(["--folder", str(folder)]) == 0
    assert (folder / ".env").read_text() == "CHORUS_API_KEY=mine\n"
    assert "nothing changed" in capsys.readouterr().out


def test_env_file_with_the_gpu_profile_starts_the_gpu_services(write_env: Any, folder: Path) -> None:
    write_env(["--profile", "gpu", "--folder", str(folder)])
    assert values(folder)["COMPOSE_PROFILES"] == "gpu"


def test_example_holds_no_secret() -> None:
    text = (ROOT / ".env.example").read_text()
    assert "\nCHORUS_API_KEY=\n" in text
    assert "\nREDIS_PASSWORD=\n" in text
    assert "\nGRAFANA_PASSWORD=\n" in text


def test_make_env_calls_the_script() -> None:
    recipe = (ROOT / "Makefile").read_text().split("\nenv:", 1)[1].split("\n\n", 1)[0]
    assert "docker/write_env.py" in recipe
