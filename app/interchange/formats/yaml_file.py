"""YAML beside checkpoints: plain values only, of bounded size."""

from __future__ import annotations

from typing import Any

import yaml

from app.errors import InvalidPrompt, TooLarge

MAX_BYTES = 1 << 20


def read_yaml(data: bytes) -> dict[str, Any]:
    """The mapping that the text is. Raises InvalidPrompt and TooLarge."""
    if len(data) > MAX_BYTES:
        raise TooLarge(f"a YAML file of more than {MAX_BYTES} bytes")
    try:
        found = yaml.safe_load(data)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise InvalidPrompt("the configuration is not YAML of plain values") from None
    return {str(key): value for key, value in found.items()} if isinstance(found, dict) else {}
