"""References and names: what is read, what is refused, and what the refusal says."""

from __future__ import annotations

import pytest

from prompt_store import (
    InvalidName,
    InvalidReference,
    PromptRef,
    check_digest,
    check_publication,
    parse_ref,
)


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("sentiment", PromptRef("sentiment", alias="prod")),
        ("sentiment@3", PromptRef("sentiment", version=3)),
        ("a.b_c-1@12", PromptRef("a.b_c-1", version=12)),
        ("sentiment:canary", PromptRef("sentiment", alias="canary")),
        ("0:prod", PromptRef("0", alias="prod")),
    ],
)
def test_parse_ref_when_well_formed_reads_it(text: str, ref: PromptRef) -> None:
    assert parse_ref(text) == ref
    assert parse_ref(str(ref)) == ref


def test_parse_ref_when_a_word_stands_for_a_number_suggests_the_alias() -> None:
    with pytest.raises(InvalidReference, match="write sentiment:canary"):
        parse_ref("sentiment@canary")


@pytest.mark.parametrize("text", ["a@", "a@0", "a@-1", "a@1.0", "a@٣", "a@²", "a@1@2", "a@1:prod", "a@" + "9" * 4000])
def test_parse_ref_when_the_number_is_none_is_refused_in_short(text: str) -> None:
    with pytest.raises(InvalidReference) as caught:
        parse_ref(text)
    assert len(caught.value.message) < 200
    assert caught.value.message.isascii()


@pytest.mark.parametrize(
    "text", ["", ":", "@1", ":prod", "a:", "a:1x", "a:b:c", "A", "a b", "a\n", "..", "a..b", "\ud800"]
)
def test_parse_ref_when_a_name_is_not_of_its_form_is_refused(text: str) -> None:
    with pytest.raises(InvalidName) as caught:
        parse_ref(text)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("digest", ["", "0" * 63, "0" * 65, "A" * 64, "../" + "0" * 61, "0" * 64 + "\n"])
def test_check_digest_when_not_of_its_form_is_refused(digest: str) -> None:
    with pytest.raises(InvalidName):
        check_digest(digest)


def test_check_publication_takes_the_keys_that_jobs_and_people_use() -> None:
    for publication in ("job-1", "01J9Z", "starter:sentiment@1", "import/peft_x.y"):
        assert check_publication(publication) == publication
