from __future__ import annotations

import pytest

from app.backbone import parse_template
from app.backbone.template import Slot
from app.errors import InvalidRequest, InvalidTemplate


def test_parse_with_several_slots_numbers_the_vectors_in_order() -> None:
    template = parse_template("<prompt:5>{text} It was<prompt:3>")
    assert template.slots == (5, 3)
    assert [s for s in template.segments if isinstance(s, Slot)] == [Slot(0, 5), Slot(5, 3)]


def test_parse_of_fields_keeps_the_order_of_first_use() -> None:
    assert parse_template("{b} {a} {b}").fields == ("b", "a")


def test_parse_of_an_open_slot_takes_the_number_that_is_left() -> None:
    assert parse_template("<prompt:5>{x}<prompt>", num_virtual_tokens=20).slots == (5, 15)


def test_source_of_a_parsed_template_parses_to_itself() -> None:
    source = "<prompt:2>a {{b}} {c}\n</s>"
    assert parse_template(source).source == source
    assert parse_template(parse_template("<prompt>{x}", num_virtual_tokens=4).source).slots == (4,)


def test_without_slots_keeps_the_words() -> None:
    assert parse_template("<prompt:5>Review: {text}<prompt:2> is").without_slots().source == "Review: {text} is"


@pytest.mark.parametrize(
    ("source", "separator"), [("{x}:", " "), ("{x}: ", ""), ("{x}\n", ""), ("{x}<prompt:3>", " "), ("{x}", " ")]
)
def test_separator_is_a_space_unless_the_template_ends_in_white_space(source: str, separator: str) -> None:
    assert parse_template(source).separator == separator


@pytest.mark.parametrize(
    ("source", "number", "param"),
    [
        ("", None, "template"),
        ("no field", None, "template"),
        ("{x", None, "template"),
        ("x}", None, "template"),
        ("{a b}", None, "template"),
        ("{}", None, "template"),
        ("<prompt:0>{x}", None, "template"),
        ("<prompt:>{x}", None, "template"),
        ("<prompt:-1>{x}", None, "template"),
        ("<prompt 5>{x}", None, "template"),
        ("<prompt>{x}", None, "template"),
        ("<prompt><prompt>{x}", 20, "template"),
        ("<prompt:5>{x}", 6, "num_virtual_tokens"),
        ("<prompt:5><prompt>{x}", 5, "num_virtual_tokens"),
        ("<prompt:2000>{x}", None, "template"),
        ("{x}" + "y" * 20_000, None, "template"),
    ],
)
def test_parse_of_a_bad_template_raises_and_names_the_parameter(source: str, number: int | None, param: str) -> None:
    with pytest.raises(InvalidTemplate) as caught:
        parse_template(source, num_virtual_tokens=number)
    assert caught.value.param == param


def test_check_input_names_the_missing_field_and_never_echoes_an_unknown_one() -> None:
    template = parse_template("{premise} {hypothesis}")
    with pytest.raises(InvalidRequest) as missing:
        template.check_input({"premise": "a"})
    assert missing.value.param == "input.hypothesis"
    with pytest.raises(InvalidRequest) as unknown:
        template.check_input({"premise": "a", "hypothesis": "b", "<script>": "c"})
    assert "<script>" not in unknown.value.message
