"""docker/Dockerfile is clean by hadolint and keeps what it promises: no root, exec form, small context, one image."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from app.settings import Settings

ROOT = Path(__file__).resolve().parents[3]
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()
FINAL_STAGE = DOCKERFILE[DOCKERFILE.rindex("\nFROM ") :]
HADOLINT = Path(sys.executable).parent / "hadolint"


def lint(text: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(HADOLINT), "-"], input=text, text=True, capture_output=True, check=False, timeout=60)


def test_dockerfile_is_clean_by_hadolint() -> None:
    result = lint(DOCKERFILE)
    assert result.returncode == 0, result.stdout


PLANTED: dict[str, tuple[str, Callable[[str], str]]] = {
    "shell-form command": ("DL3025", lambda text: text.replace('CMD ["serve"]', "CMD serve")),
    "untagged base": ("DL3006", lambda text: text + "\nFROM debian\n"),
    "sudo": ("DL3004", lambda text: text.replace("RUN groupadd", "RUN sudo groupadd")),
    "root at the end": ("DL3002", lambda text: text.replace("USER 10001:10001", "USER root")),
    "relative work folder": ("DL3000", lambda text: text.replace("WORKDIR /data", "WORKDIR data")),
}


@pytest.mark.parametrize("mistake", PLANTED)
def test_hadolint_rejects_a_planted_mistake(mistake: str) -> None:
    rule, plant = PLANTED[mistake]
    broken = plant(DOCKERFILE)
    assert broken != DOCKERFILE
    result = lint(broken)
    assert result.returncode != 0
    assert rule in result.stdout


def test_image_runs_as_a_numeric_user_that_is_not_root() -> None:
    assert re.findall(r"^USER (.*)$", DOCKERFILE, re.MULTILINE) == ["10001:10001"]


def test_commands_are_in_exec_form_so_that_signals_arrive() -> None:
    for keyword in ("ENTRYPOINT", "CMD"):
        (command,) = re.findall(rf"^{keyword} (.*)$", DOCKERFILE, re.MULTILINE)
        assert command.startswith("[")


def test_image_has_no_tools_to_fetch_with() -> None:
    assert not re.search(r"\b(curl|wget)\b", DOCKERFILE)


def test_image_installs_a_c_compiler_for_the_engine_and_nothing_else_of_the_distribution() -> None:
    installed = re.findall(r"apt-get install (.*?) *\\?$", DOCKERFILE, re.MULTILINE)
    assert installed == ["--yes --no-install-recommends ${COMPILER}"]
    assert re.findall(r"^ARG COMPILER=(.*)$", FINAL_STAGE, re.MULTILINE) == ['"gcc libc6-dev"']
    assert "HOME" not in re.findall(r"\b([A-Z_]+)=", FINAL_STAGE[FINAL_STAGE.rindex("\nENV ") :])
    assert "--home-dir /data " in FINAL_STAGE  # where the compiled library is kept


def test_every_install_obeys_the_constraints_or_installs_no_dependency() -> None:
    installs = re.findall(r"pip install .*", DOCKERFILE)
    assert len(installs) == 3
    assert all("--constraint constraints.txt" in line or line == "pip install --no-deps ." for line in installs)


def test_torch_comes_from_the_cpu_index_unless_a_build_argument_says_otherwise() -> None:
    assert DOCKERFILE.count("ARG ACCELERATOR=cpu") == 2
    assert '--index-url "https://download.pytorch.org/whl/${ACCELERATOR}"' in DOCKERFILE


def test_settings_in_the_image_exist() -> None:
    names = re.findall(r"\bCHORUS_(\w+)=", FINAL_STAGE)
    assert names
    assert all(name.lower() in Settings.model_fields for name in names)


def test_everything_copied_is_in_the_build_context() -> None:
    allowed = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }  # everything else is ignored by the line `*`
    copied = [line.split()[:-1] for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE)]
    sources = {source for line in copied for source in line}
    assert sources == allowed
    assert all((ROOT / source).exists() for source in sources)


def test_constraints_pin_a_torch_that_every_index_has() -> None:
    (pin,) = re.findall(r"^torch==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert re.fullmatch(r"[\d.]+", pin), "a pin with +cpu would refuse the CUDA build"


def written_requirements(extras: str) -> subprocess.CompletedProcess[str]:
    """What the build installs when it is given EXTRAS."""
    (script,) = re.findall(r'python -c "(import tomllib.*?)" > requirements.txt', DOCKERFILE)
    command = [sys.executable, "-c", script.replace("${EXTRAS}", extras)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize(("extras", "found"), [("", False), ("s3", True), ("tracing s3", True)])
def test_extras_named_by_a_build_argument_are_installed_with_the_rest(extras: str, found: bool) -> None:
    lines = written_requirements(extras).stdout.splitlines()
    assert any(line.startswith("torch") for line in lines)
    assert any(line.startswith("s3fs") for line in lines) is found


def test_extra_that_does_not_exist_ends_the_build() -> None:
    assert written_requirements("s4").returncode != 0
