"""Promises of the embedded server."""

import os
import stat
from pathlib import Path

import pytest
import redis

from app.supervisor import EmbeddedServer, FolderBusy, running_url
from app.supervisor import embedded as embedded_module
from app.supervisor.embedded import MAX_SOCKET_PATH_BYTES, make_private, socket_path
from tests.unit.supervisor.conftest import wait_for


def test_server_when_killed_keeps_every_acknowledged_write(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path / "redis")
    server.start()
    with redis.Redis.from_url(server.url) as client:
        client.set("kept", "yes")
    server.kill()
    with EmbeddedServer(tmp_path / "redis") as again, redis.Redis.from_url(again.url) as client:
        assert client.get("kept") == b"yes"


def test_server_is_durable_private_and_never_evicts(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path / "redis") as server, redis.Redis.from_url(server.url) as client:
        for name, value in {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}.items():
            assert client.config_get(name)[name] == value
        assert client.config_get("port")["port"] == "0"
        assert stat.S_IMODE(server.folder.stat().st_mode) == 0o700
        assert stat.S_IMODE(server.socket.stat().st_mode) == 0o700


def test_server_when_another_runs_on_the_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_module, "LOCK_WAIT_S", 0.05)
    with EmbeddedServer(tmp_path / "redis"), pytest.raises(FolderBusy):
        EmbeddedServer(tmp_path / "redis").start()


def test_server_when_its_starter_forgets_the_lock_still_holds_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded_module, "LOCK_WAIT_S", 0.05)
    with EmbeddedServer(tmp_path / "redis") as server:
        server._lock.release()
        with pytest.raises(FolderBusy):
            EmbeddedServer(tmp_path / "redis").claim()


def test_running_url_follows_the_server(tmp_path: Path) -> None:
    folder = tmp_path / "data with spaces" / "redis"
    assert running_url(folder) is None
    with EmbeddedServer(folder) as server:
        assert running_url(folder) == server.url
    wait_for(lambda: running_url(folder) is None)


def test_socket_path_when_the_folder_is_deep_is_short_private_and_stable(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 150)
    path = socket_path(deep)
    assert len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES
    assert path == socket_path(deep)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert path != socket_path(tmp_path / ("e" * 150))
    path.parent.rmdir()
    socket_path(tmp_path / ("e" * 150)).parent.rmdir()


def test_make_private_when_the_folder_is_a_link_refuses(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(PermissionError):
        make_private(tmp_path / "link")
