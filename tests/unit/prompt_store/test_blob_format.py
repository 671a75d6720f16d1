"""Bytes of prompts: deterministic to write, and nothing but a good prompt is read."""

from __future__ import annotations

import hashlib
import json
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.numpy import load as load_safetensors

from prompt_store import Evaluation, InvalidBlob, decode_blob, encode_blob
from prompt_store.blob_format import MAX_HEADER_BYTES, canonical_meta
from prompt_store.testing import example_meta, example_tensors

META = example_meta()
TENSORS = example_tensors(META)
GOOD = encode_blob(META, TENSORS)


def file_of(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def header_of(data: bytes) -> dict[str, Any]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length])


def altered(**entries: Any) -> bytes:
    """The good file with other header entries; None removes one."""
    length = int.from_bytes(GOOD[:8], "little")
    header = header_of(GOOD) | entries
    return file_of({key: value for key, value in header.items() if value is not None}, GOOD[8 + length :])


def test_encode_then_decode_returns_the_same() -> None:
    meta, tensors = decode_blob(GOOD)
    assert meta == META
    np.testing.assert_array_equal(tensors["prompt"], TENSORS["prompt"])
    assert tensors["prompt"].flags.writeable
    assert tensors["prompt"].flags.owndata


def test_encode_makes_a_file_that_safetensors_reads() -> None:
    np.testing.assert_array_equal(load_safetensors(GOOD)["prompt"], TENSORS["prompt"])


def test_encode_of_equal_content_gives_equal_bytes() -> None:
    method = {"type": "prompt_tuning", "init": "vocab"}
    turned = example_meta(method=dict(reversed(method.items())))
    strided = np.asfortranarray(TENSORS["prompt"])
    assert encode_blob(turned, {"prompt": strided}) == GOOD
    assert encode_blob(turned, {"prompt": strided.astype(">f4").astype("<f4")}) == GOOD


def test_encode_keeps_the_order_of_labels() -> None:
    turned = example_meta(verbalizer=dict(reversed((META.verbalizer or {}).items())))
    meta, _ = decode_blob(encode_blob(turned, TENSORS))
    assert list(meta.verbalizer or {}) == ["negative", "positive"]
    assert list(decode_blob(GOOD)[0].verbalizer or {}) == ["positive", "negative"]


def test_encode_gives_the_digest_it_always_gave() -> None:
    """A changed digest splits one content over two blobs: change it knowingly, with a new `format`."""
    meta = example_meta(verbalizer=None, method={"type": "hard", "note": "é ∑"})
    data = encode_blob(meta, {"prompt": np.arange(8, dtype=np.float32).reshape(2, 4)})
    assert hashlib.sha256(data).hexdigest() == "f6a9a38229e6228363e2590f9001e49cb6bfd45f402817c85c53286a47898881"


def test_encode_of_a_hard_prompt_holds_metadata_only() -> None:
    meta = example_meta(num_virtual_tokens=0, template="{text}")
    data = encode_blob(meta, {})
    assert decode_blob(data) == (meta, {})
    with pytest.raises(InvalidBlob):
        encode_blob(meta, TENSORS)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800", np.float32(1), {1, 2}, {1: 2, "a": 3}])
def test_encode_when_free_form_metadata_cannot_be_written_is_refused(value: Any) -> None:
    with pytest.raises(InvalidBlob):
        encode_blob(example_meta(method={"type": "x", "value": value}), TENSORS)


def test_records_refuse_scores_that_are_not_finite() -> None:
    with pytest.raises(ValidationError):
        Evaluation(metric="loss", score=float("nan"), n=1, interval=(0, 1), split="dev", at=0)


ENTRY = header_of(GOOD)["prompt"]
METADATA = header_of(GOOD)["__metadata__"]
DATA = GOOD[-32:]
NAN = np.full(8, np.nan, np.float32).tobytes()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\x00" * 7, id="shorter than a length"),
        pytest.param(GOOD[:100], id="cut in the header"),
        pytest.param(GOOD[:-1], id="cut in the data"),
        pytest.param(GOOD + b"\x00", id="one byte more"),
        pytest.param((1 << 63).to_bytes(8, "little") + GOOD[8:], id="huge header length"),
        pytest.param(file_of(b"[]"), id="header is a list"),
        pytest.param(file_of(b"\xff\xfe"), id="header is not UTF-8"),
        pytest.param(file_of(b"[" * 200_000), id="header nested without end"),
        pytest.param(file_of(b'{"a":NaN}'), id="NaN in the header"),
        pytest.param(altered(__metadata__=None), id="no metadata"),
        pytest.param(altered(__metadata__={"chorus": 1}), id="metadata is not text"),
        pytest.param(altered(__metadata__={**METADATA, "pt": "x"}), id="more metadata"),
        pytest.param(altered(__metadata__={"chorus": "{"}), id="metadata is not JSON"),
        pytest.param(altered(__metadata__={"chorus": "{}"}), id="metadata lacks fields"),
        pytest.param(
            altered(__metadata__={"chorus": METADATA["chorus"].replace('"format":1', '"format":2')}), id="format 2"
        ),
        pytest.param(
            altered(__metadata__={"chorus": METADATA["chorus"][:-1] + ',"new":1}'}), id="metadata of the future"
        ),
        pytest.param(altered(prompt=None), id="no tensor"),
        pytest.param(altered(prompt=None, **{"../../etc/passwd": ENTRY}), id="a path for a name"),
        pytest.param(altered(more={**ENTRY, "shape": [0, 4], "data_offsets": [32, 32]}), id="one tensor more"),
        pytest.param(altered(prompt={**ENTRY, "dtype": "F16"}), id="half precision"),
        pytest.param(altered(prompt={**ENTRY, "dtype": "I32"}), id="integers"),
        pytest.param(altered(prompt={**ENTRY, "shape": [4, 2]}), id="transposed"),
        pytest.param(altered(prompt={**ENTRY, "shape": [8]}), id="flat"),
        pytest.param(altered(prompt={**ENTRY, "shape": [1, 2, 4]}), id="three dimensions"),
        pytest.param(altered(prompt={**ENTRY, "shape": [0, 4]}), id="no rows"),
        pytest.param(altered(prompt={**ENTRY, "data_offsets": [0, 16]}), id="half the data"),
        pytest.param(altered(prompt={**ENTRY, "data_offsets": [8, 40]}), id="data beyond the end"),
        pytest.param(altered(prompt={**ENTRY, "extra": 1}), id="unknown entry"),
        pytest.param(altered(prompt=[]), id="entry is a list"),
        pytest.param(GOOD[:-32] + NAN, id="NaN"),
        pytest.param(GOOD[:-4] + np.float32(np.inf).tobytes(), id="infinity"),
        pytest.param(GOOD[:-4] + np.float32(1e30).tobytes(), id="1e30"),
    ],
)
def test_decode_when_the_bytes_are_no_good_prompt_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidBlob):
        decode_blob(data)


def test_decode_when_a_key_stands_twice_is_refused() -> None:
    text = json.dumps(header_of(GOOD))
    twice = text[:-1] + ', "prompt": ' + json.dumps(ENTRY) + "}"
    with pytest.raises(InvalidBlob, match="twice"):
        decode_blob(file_of(twice.encode(), DATA))
    inner = METADATA["chorus"][:-1] + ',"bos":"none"}'
    with pytest.raises(InvalidBlob, match="twice"):
        decode_blob(altered(__metadata__={"chorus": inner}))


def test_decode_when_the_header_is_huge_is_refused_before_it_is_parsed() -> None:
    entries = {f"t{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(20_000)}
    data = file_of(entries)
    assert len(data) > MAX_HEADER_BYTES
    started = time.process_time()
    with pytest.raises(InvalidBlob, match="limit"):
        decode_blob(data)
    assert time.process_time() - started < 0.5


def test_decode_when_larger_than_the_limit_is_refused() -> None:
    with pytest.raises(InvalidBlob, match="limit is 100"):
        decode_blob(GOOD, max_bytes=100)


@given(place=st.integers(0, len(GOOD) * 8 - 1))
@settings(max_examples=300, deadline=None)
def test_decode_when_any_bit_is_flipped_refuses_or_reads_a_sane_prompt(place: int) -> None:
    data = bytearray(GOOD)
    data[place // 8] ^= 1 << place % 8
    try:
        meta, tensors = decode_blob(bytes(data))
    except InvalidBlob:
        return
    assert np.isfinite(tensors["prompt"]).all()
    assert tensors["prompt"].shape == (meta.num_virtual_tokens, meta.backbone.hidden_size)


@given(data=st.binary(max_size=200))
@example(b"\x02\x00\x00\x00\x00\x00\x00\x00{}")
@settings(max_examples=200, deadline=None)
def test_decode_of_arbitrary_bytes_raises_nothing_else(data: bytes) -> None:
    with pytest.raises(InvalidBlob):
        decode_blob(data)


def test_canonical_meta_has_no_spaces_and_sorted_keys() -> None:
    text = canonical_meta(META)
    assert text.startswith('{"backbone":{"family":"causal","fingerprint":')
    assert json.loads(text) == json.loads(META.model_dump_json())


def test_encode_of_named_tensors_holds_exactly_those_in_their_shapes() -> None:
    meta = example_meta(tensors={"prefix": (2, 3, 1, 2, 5), "prompt": (2, 4)})
    tensors = example_tensors(meta)
    again, found = decode_blob(encode_blob(meta, tensors))
    assert again == meta
    assert all(np.array_equal(found[name], tensors[name]) for name in ("prefix", "prompt"))
    for wrong in ({"prompt": tensors["prompt"]}, {**tensors, "prefix": tensors["prefix"][:1]}):
        with pytest.raises(InvalidBlob):
            encode_blob(meta, wrong)


@pytest.mark.parametrize("tensors", [{"other": (2, 4)}, {"prompt": (0, 4)}, {"prompt": (2, -1)}])
def test_metadata_refuses_tensors_of_unknown_names_and_empty_shapes(tensors: Any) -> None:
    with pytest.raises(ValidationError):
        example_meta(tensors=tensors)
