"""The strict JSON reader: what it takes as the standard one does, and what it refuses."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.api.faults import InvalidJson
from app.api.strict_json import MAX_INT, read_json

LEAVES = st.none() | st.booleans() | st.integers(-MAX_INT, MAX_INT) | st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
TREES = st.recursive(LEAVES | TEXT, lambda tree: st.lists(tree) | st.dictionaries(TEXT, tree), max_leaves=20)


@given(TREES)
def test_honest_json_is_read_as_the_standard_reader_does(tree: Any) -> None:
    for ascii_only in (True, False):
        raw = json.dumps(tree, ensure_ascii=ascii_only).encode()
        assert read_json(raw) == json.loads(raw)


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_any_bytes_are_read_or_refused_but_never_break_the_reader(raw: bytes) -> None:
    with suppress(InvalidJson):
        read_json(raw)


@pytest.mark.parametrize("depth", [1, 31, 32])
def test_nesting_up_to_the_limit_is_read(depth: int) -> None:
    read_json(b"[" * depth + b"]" * depth)


@pytest.mark.parametrize(
    "raw",
    [
        b"[" * 33 + b"1" + b"]" * 33,
        b"[" * 200_000,
        b'{"a":' * 33 + b"1" + b"}" * 33,
        b"NaN",
        b"[Infinity]",
        b"-Infinity",
        b"1e309",
        b"[-1e400]",
        b"9223372036854775808",
        b"-9223372036854775808",
        b"1" * 5000,
        b'"\\ud800"',
        b'["\\udc00\\ud800"]',
        b'{"\\ud800": 1}',
        b'{"a": 1, "a": 1}',
        b'{"a": 1, "\\u0061": 2}',
        b'[{"x": {"b": 1, "b": 2}}]',
        b"\xff",
        b'"\xed\xa0\x80"',
        b"\xef\xbb\xbf1",
        b"",
        b"1 2",
        b"[1,]",
        b"nul",
    ],
)
def test_what_cannot_be_used_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidJson):
        read_json(raw)


def test_surrogate_pairs_are_text() -> None:
    assert read_json(b'"\\ud83d\\ude00"') == "\U0001f600"


def test_message_does_not_repeat_the_body() -> None:
    with pytest.raises(InvalidJson) as refused:
        read_json(b'{"secret": oops}')
    assert "secret" not in refused.value.message
    assert "oops" not in refused.value.message
