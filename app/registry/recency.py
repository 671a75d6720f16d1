"""Which versions were in use when a replica stopped, so that the next one warms those first. A hint, never a truth:
a file that is missing or cannot be read only changes an order."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from prompt_store import StoreError
from prompt_store.durable import make_folder, read_file, storage_errors, write_file

log = logging.getLogger(__name__)
Key = tuple[str, int]  # task id, number
_MAX_KEYS = 20_000
_MAX_BYTES = 4 << 20


def save_recent(path: Path, keys: Sequence[Key]) -> None:
    """Write keys, the most used first."""
    try:
        with storage_errors("list of recent prompts"):
            make_folder(path.parent)
            write_file(path, json.dumps(keys[:_MAX_KEYS], separators=(",", ":")).encode())
    except StoreError as error:
        log.warning("list of recent prompts not saved", extra={"code": error.code})


def load_recent(path: Path) -> list[Key]:
    """What `save_recent` wrote; nothing where there is nothing good."""
    try:
        found = json.loads(read_file(path, limit=_MAX_BYTES))
        return [(task_id, number) for task_id, number in found if isinstance(task_id, str) and isinstance(number, int)]
    except (OSError, ValueError, TypeError):
        return []
