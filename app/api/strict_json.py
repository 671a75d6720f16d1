"""Strict JSON: what the standard reader lets through and a service cannot use is refused here, before pydantic sees it.

Refused: anything but UTF-8; NaN and infinities, also as `1e999`; integers beyond 64 bits; the same key twice; nesting
deeper than `max_depth`; lone surrogates in strings or keys. No message repeats what was sent.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from app.api.faults import InvalidJson

MAX_DEPTH = 32
MAX_INT = 2**63 - 1
_MAX_INT_DIGITS = 20


def read_json(raw: bytes, *, max_depth: int = MAX_DEPTH) -> Any:
    """Parse `raw`; raises InvalidJson."""
    try:
        value = json.loads(
            raw.decode("utf-8"),
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_small,
            object_pairs_hook=_unique,
        )
    except UnicodeDecodeError as error:
        raise InvalidJson(f"the body is not UTF-8 (byte {error.start})") from None
    except json.JSONDecodeError as error:
        if not raw.strip():
            raise InvalidJson("the body is empty; send a JSON object") from None
        raise InvalidJson(f"the body is not JSON: line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise InvalidJson(f"the body is nested deeper than {max_depth} levels") from None
    _check_tree(value, max_depth)
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise InvalidJson("NaN and Infinity are not JSON numbers")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise InvalidJson("a number is beyond the range of a double")
    return number


def _small(text: str) -> int:
    if len(text) > _MAX_INT_DIGITS or abs(int(text)) > MAX_INT:
        raise InvalidJson("an integer is beyond 64 bits")
    return int(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise InvalidJson("an object names the same key twice")
    return found


def _check_tree(value: Any, max_depth: int) -> None:
    """Depth and text of a parsed value, without recursion."""
    level = [value]
    for _ in range(max_depth + 1):
        below: list[Any] = []
        for item in level:
            if isinstance(item, str):
                _check_text(item)
            elif isinstance(item, list):
                below.extend(item)
            elif isinstance(item, dict):
                below.extend(item)
                below.extend(item.values())
        if not below:
            return
        level = below
    raise InvalidJson(f"the body is nested deeper than {max_depth} levels")


def _check_text(text: str) -> None:
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidJson("a string holds a lone surrogate, which is not text") from None
