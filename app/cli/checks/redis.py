"""Checks of the registry's server: reachable, new enough, durable, never evicting."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, cast

from app.cli.checks import Check
from app.settings import Settings
from app.supervisor.embedded import EmbeddedServer, ServerFailed, running_url, server_folder
from app.supervisor.up import hide_password

MIN_VERSION = (7, 2)


def check_redis(settings: Settings) -> list[Check]:
    """The configured server, the one that runs on the data folder, or a trial start of the embedded one."""
    running = running_url(server_folder(settings.data_dir))
    url = settings.redis_url or running
    if url is not None:
        return _check_server(url)
    return [_try_embedded()]


def _try_embedded() -> Check:
    with tempfile.TemporaryDirectory(prefix="chorus-doctor-") as folder:
        try:
            with EmbeddedServer(Path(folder) / "redis") as server:
                version = _info(server.url)["valkey_version"]
        except (ServerFailed, OSError) as error:
            return Check("redis", "fail", str(error), "use one of your own: CHORUS_REDIS_URL=redis://127.0.0.1:6379/0")
    return Check("redis", "ok", f"embedded server {version} starts; chorus up runs it")


def _check_server(url: str) -> list[Check]:
    import redis

    shown = hide_password(url)
    try:
        info = _info(url)
    except (redis.RedisError, OSError) as error:
        return [Check("redis", "fail", f"{shown}: {error}", "start it, or unset CHORUS_REDIS_URL to embed one")]
    return [_check_version(info, shown), _check_persistence(info), _check_eviction(info)]


def _check_version(info: dict[str, Any], shown: str) -> Check:
    version = str(info.get("redis_version", "0"))
    name = f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {version}"
    old = tuple(int(part) for part in version.split(".")[:2]) < MIN_VERSION
    found = f"{name} at {shown}"
    return Check("redis", "fail", found, "use Redis 7.2 or newer, or Valkey") if old else Check("redis", "ok", found)


def _check_persistence(info: dict[str, Any]) -> Check:
    if int(info.get("aof_enabled", 0)):
        return Check("redis: durable", "ok", "append-only file on")
    found = "no append-only file: a restart of this server loses the last changes"
    return Check("redis: durable", "warn", found, "redis-cli CONFIG SET appendonly yes")


def _check_eviction(info: dict[str, Any]) -> Check:
    policy = str(info.get("maxmemory_policy", "unknown"))
    if policy == "noeviction":
        return Check("redis: eviction", "ok", policy)
    return Check(
        "redis: eviction", "fail", f"{policy}: records can vanish", "redis-cli CONFIG SET maxmemory-policy noeviction"
    )


def _info(url: str) -> dict[str, Any]:
    from prompt_store.redis_url import client_from_url

    with client_from_url(url, socket_connect_timeout=3, socket_timeout=3) as client:
        return cast(dict[str, Any], client.info())
