"""Where the settings say that keys and the pepper are."""

from __future__ import annotations

import hashlib
from pathlib import Path
from urllib.parse import urlsplit

from app.access.file_store import FileKeys
from app.access.pepper import Pepper
from app.access.redis_store import RedisKeys
from app.access.store import KeyStore
from app.settings import Settings

FOLDER = "keys"


def file_keys(settings: Settings) -> FileKeys:
    return FileKeys(settings.keys_file or settings.data_dir / FOLDER / "keys.json")


def key_stores(settings: Settings, redis_url: str | None = None) -> list[KeyStore]:
    """The file first, then the Redis at `redis_url`, by default that of the settings, if any."""
    url = redis_url or settings.redis_url
    return [file_keys(settings), *([RedisKeys(url)] if url is not None else [])]


def pepper_of(settings: Settings) -> Pepper:
    return Pepper(settings.key_pepper, settings.data_dir / FOLDER / "pepper")


def keyless_mark(saved: Path) -> Path:
    """Beside the copy, where there is none: says which Redis was read, and held no key."""
    return saved.with_name("none-made")


def redis_mark(settings: Settings) -> str:
    """Which Redis the settings name, without its secrets."""
    parts = urlsplit(settings.redis_url or "")
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="")
    return hashlib.sha256(bare.geturl().encode()).hexdigest()


def saved_keys(settings: Settings) -> Path:
    """A replica's copy of the records in Redis, for a start while Redis is away."""
    return settings.data_dir / FOLDER / "known.json"
