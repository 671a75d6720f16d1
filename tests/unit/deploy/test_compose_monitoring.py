"""The compose profile `monitoring`: hardened as the rest, off unless asked for, and wired to what it shows."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
PROMETHEUS, GRAFANA = SERVICES["prometheus"], SERVICES["grafana"]
SCRAPE = yaml.safe_load((ROOT / "monitoring/prometheus.yml").read_text())
PROVISIONING = ROOT / "monitoring/grafana/provisioning"


def mounts(service: dict[str, Any]) -> dict[str, str]:
    """Place in the container → place in the repository, for what is mounted from it."""
    found = {}
    for volume in service["volumes"]:
        source, target, *mode = volume.split(":")
        if source.startswith("./"):
            assert mode == ["ro"], f"{source} can be written"
            found[target] = source
    return found


def script_of(service: dict[str, Any]) -> str:
    """What the container's shell gets to run, after compose has read it."""
    (script,) = service["command"]
    assert service["entrypoint"] == ["/bin/sh", "-c"]
    return str(script).replace("$$", "$")


def run_script(script: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", "-c", script.replace("/tmp/", f"{folder}/").replace("/run.sh", f"{folder}/run.sh")],
        env={"PATH": f"{folder}:{os.environ['PATH']}", **environment},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


def stub(folder: Path, name: str) -> None:
    """A program that says what it was started with."""
    program = folder / name
    program.write_text('#!/bin/sh\necho "$0 $*"\nenv\n')
    program.chmod(0o755)


@pytest.mark.parametrize("name", ["prometheus", "grafana"])
def test_service_starts_only_when_asked_for(name: str) -> None:
    assert SERVICES[name]["profiles"] == ["monitoring"]
    assert not [
        one
        for one, service in SERVICES.items()
        if "monitoring" in service.get("profiles", []) and one not in ("prometheus", "grafana")
    ]


@pytest.mark.parametrize("name", ["prometheus", "grafana"])
def test_service_is_no_root_and_its_image_has_a_version(name: str) -> None:
    assert re.fullmatch(r"\d+:\d+", SERVICES[name]["user"])
    assert not SERVICES[name]["user"].startswith("0:")
    assert re.fullmatch(r"[a-z/]+:v?\d+\.\d+\.\d+(@sha256:[0-9a-f]{64})?", SERVICES[name]["image"])


@pytest.mark.parametrize("name", ["prometheus", "grafana"])
def test_service_cannot_reach_redis(name: str) -> None:
    assert SERVICES[name]["networks"] == ["front"]


@pytest.mark.parametrize("name", ["prometheus", "grafana"])
def test_what_is_mounted_exists(name: str) -> None:
    assert mounts(SERVICES[name])
    for source in mounts(SERVICES[name]).values():
        assert (ROOT / source).exists(), source


@pytest.mark.parametrize(("given", "shown"), [("", "operators-key"), ("ck_1_2", "ck_1_2")])
def test_prometheus_shows_the_key_it_is_given_and_keeps_it_for_itself(tmp_path: Path, given: str, shown: str) -> None:
    stub(tmp_path, "prometheus")
    ended = run_script(script_of(PROMETHEUS), tmp_path, CHORUS_API_KEY="operators-key", METRICS_KEY=given)
    assert ended.returncode == 0, ended.stderr
    key = tmp_path / Path(SCRAPE["scrape_configs"][0]["authorization"]["credentials_file"]).name
    assert key.read_text() == shown
    assert key.stat().st_mode & 0o777 == 0o600
    assert shown not in ended.stdout
    assert "--config.file=/etc/prometheus/prometheus.yml --storage.tsdb.path=/prometheus " in ended.stdout


def test_prometheus_scrapes_the_api_of_either_profile_by_the_name_and_port_it_has() -> None:
    (scrape,) = SCRAPE["scrape_configs"]
    (found,) = scrape["dns_sd_configs"]
    assert scrape["job_name"] == "chorus"  # the job that dashboards and alerts name
    assert sorted(found["names"]) == sorted(name for name in SERVICES if name.startswith("api"))
    for name in found["names"]:
        assert "front" in SERVICES[name]["networks"]
        assert SERVICES[name]["ports"][0].endswith(f":{found['port']}")


def test_prometheus_reads_the_alerts_where_they_are_mounted() -> None:
    assert set(SCRAPE["rule_files"]) <= set(mounts(PROMETHEUS))
    assert mounts(PROMETHEUS)["/etc/prometheus/alerts.yml"] == "./monitoring/alerts.yml"
    assert "--config.file=/etc/prometheus/prometheus.yml" in script_of(PROMETHEUS)
    assert "/etc/prometheus/prometheus.yml" in mounts(PROMETHEUS)


def test_grafana_without_a_password_does_not_start(tmp_path: Path) -> None:
    stub(tmp_path, "run.sh")
    ended = run_script(script_of(GRAFANA), tmp_path, GF_SECURITY_ADMIN_PASSWORD="")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "GRAFANA_PASSWORD" in ended.stderr
    assert run_script(script_of(GRAFANA), tmp_path, GF_SECURITY_ADMIN_PASSWORD="x").returncode == 0


def test_grafana_tells_nobody_of_itself() -> None:
    environment = GRAFANA["environment"]
    assert environment["GF_ANALYTICS_REPORTING_ENABLED"] == environment["GF_USERS_ALLOW_SIGN_UP"] == "false"
    assert environment["GF_PLUGINS_PREINSTALL_DISABLED"] == "true"


def test_grafana_finds_its_dashboards_and_the_source_they_name() -> None:
    (source,) = yaml.safe_load((PROVISIONING / "datasources/prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((PROVISIONING / "dashboards/chorus.yml").read_text())["providers"]
    assert mounts(GRAFANA)[provider["options"]["path"]] == "./monitoring/grafana/dashboards"
    boards = sorted((ROOT / "monitoring/grafana/dashboards").glob("*.json"))
    assert len(boards) == 3
    for path in boards:
        named = set(re.findall(r'"type": "prometheus",\s+"uid": "([^"]+)"', path.read_text()))
        assert named == {source["uid"]}
