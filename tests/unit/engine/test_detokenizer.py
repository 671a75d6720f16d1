from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.backbone import Backbone, BackboneTokenizer
from app.engine import flights
from app.engine.detokenizer import TextStream
from prompt_store.models import Decoding
from tests.architectures import build_backbone
from tests.engines import serving
from tests.prompts import make_prompt


def pieces(llama: Backbone, text: str, **options: object) -> list[str]:
    stream = TextStream(llama.tokenizer, **options)  # type: ignore[arg-type]
    out = []
    for token in llama.tokenizer.encode_text(text):
        out.append(stream.push(token))
        if stream.stopped:
            return out
    return [*out, stream.finish()]


def test_characters_of_many_bytes_come_whole(llama: Backbone) -> None:
    text = "naïve 🙂👩‍👩‍👧 日本語"
    out = pieces(llama, text)
    assert "".join(out) == text
    assert not any("\ufffd" in piece for piece in out)


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_pieces_of_any_text_add_up_to_it(llama: Backbone, text: str) -> None:
    assert "".join(pieces(llama, text)) == text


@pytest.mark.parametrize("stop", ["END", " jumps", "x", "\n\n"])
def test_nothing_of_a_stop_string_is_ever_shown(llama: Backbone, stop: str) -> None:
    before, after = "the quick brown fo", "and on"
    out = pieces(llama, before + stop + after, stop=(stop,))
    assert "".join(out) == before


def test_text_that_only_began_like_a_stop_string_is_shown_in_the_end(llama: Backbone) -> None:
    assert "".join(pieces(llama, "almost EN", stop=("END",))) == "almost EN"


def test_separator_is_dropped_once_from_the_beginning(llama: Backbone) -> None:
    assert "".join(pieces(llama, "  two spaces", separator=" ")) == " two spaces"
    assert "".join(pieces(llama, "none", separator=" ")) == "none"


@pytest.mark.anyio
@pytest.mark.parametrize(("name", "context"), [("llama", True), ("t5", False)])
async def test_answer_is_read_after_its_row_where_it_goes_on_and_by_itself_where_a_decoder_writes_it(
    name: str, context: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    contexts: list[Sequence[int]] = []

    class Noted(TextStream):
        def __init__(self, tokenizer: BackboneTokenizer, **options: Any) -> None:
            contexts.append(options["context"])
            super().__init__(tokenizer, **options)

    monkeypatch.setattr(flights, "TextStream", Noted)
    backbone = build_backbone(name)
    async with serving(backbone) as service:
        await service.answer(
            make_prompt(backbone, "{text}\n"), {"text": "a"}, decoding=Decoding(max_tokens=2), timeout_s=60
        )
    assert [bool(given) for given in contexts] == [context]
