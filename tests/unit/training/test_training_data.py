"""Rows are checked one by one, and every fault names its row."""

from __future__ import annotations

import json
from typing import Any

import pytest

from app.errors import InvalidDataset
from app.training.data import parse_rows
from app.training.readers import sniff_format


def rows(*last: Any, count: int = 4) -> list[Any]:
    """Good rows of two labels, then `last`."""
    return [{"text": f"row {n}", "label": "ab"[n % 2]} for n in range(count)] + list(last)


def jsonl(*lines: str | bytes) -> bytes:
    good = [json.dumps(row).encode() for row in rows()]
    return b"\n".join([*good, *(line if isinstance(line, bytes) else line.encode() for line in lines)])


def test_label_rows_give_sorted_labels_and_fields_in_order() -> None:
    found = parse_rows([{"b": "1", "a": "2", "label": label} for label in ("z", "y", "z", "x")])
    assert (found.form, found.fields, found.labels) == ("label", ("b", "a"), ("x", "y", "z"))
    assert found.label_counts == {"x": 1, "y": 1, "z": 2}
    assert found.examples[1].row == 2


def test_label_is_read_without_white_space_around_it() -> None:
    assert parse_rows(rows({"text": "t", "label": " a\n"})).labels == ("a", "b")


def test_output_rows_are_free_text() -> None:
    found = parse_rows([{"input": f"q{n}", "output": f"a{n}"} for n in range(4)])
    assert (found.form, found.fields, found.labels) == ("output", ("input",), None)
    assert found.examples[0].output == "a0"


def test_prompt_and_completion_keep_their_white_space() -> None:
    found = parse_rows([{"prompt": f"Q{n}:", "completion": " yes"} for n in range(4)])
    assert (found.form, found.examples[0].fields, found.examples[0].output) == ("completion", {"prompt": "Q0:"}, " yes")


def chat(*turns: tuple[str, str], **extra: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} | extra for role, content in turns]}


def test_messages_with_one_question_give_it_as_it_is() -> None:
    found = parse_rows([chat(("user", "hello?"), ("assistant", "hi"))] * 4)
    assert (found.form, found.fields) == ("messages", ("input",))
    assert (found.examples[0].fields["input"], found.examples[0].output) == ("hello?", "hi")


def test_messages_give_one_example_for_each_turn_of_the_assistant() -> None:
    talk = chat(("system", "be kind"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    found = parse_rows([talk] * 4)
    assert len(found.examples) == 8
    assert found.examples[0].fields["input"] == "System: be kind\nUser: a"
    assert found.examples[1].fields["input"] == "System: be kind\nUser: a\nAssistant: b\nUser: c"
    assert [example.row for example in found.examples[:3]] == [1, 1, 2]


def test_assistant_turn_of_weight_zero_is_context_only() -> None:
    talk = chat(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    talk["messages"][1]["weight"] = 0
    assert [example.output for example in parse_rows([talk] * 4).examples] == ["d"] * 4


@pytest.mark.parametrize(
    ("last", "message"),
    [
        pytest.param({"text": "x"}, "`label` is missing", id="missing-label"),
        pytest.param({"label": "a"}, "`text` is missing", id="missing-field"),
        pytest.param({"text": "x", "label": "a", "id": "7"}, "unknown field `id`", id="unknown-field"),
        pytest.param({"text": "x", "output": "a"}, "mixed shapes", id="mixed-shapes"),
        pytest.param({"prompt": "x", "completion": "a"}, "mixed shapes", id="mixed-with-completions"),
        pytest.param({"messages": []}, "mixed shapes", id="mixed-with-messages"),
        pytest.param({"text": "", "label": "a"}, "`text` is empty", id="empty-text"),
        pytest.param({"text": "x", "label": " "}, "`label` is empty", id="blank-label"),
        pytest.param({"text": 7, "label": "a"}, "`text` is a string, not a number", id="number"),
        pytest.param({"text": None, "label": "a"}, "`text` is a string, not null", id="null"),
        pytest.param({"text": ["x"], "label": "a"}, "`text` is a string, not a list", id="list"),
        pytest.param({"text": "x", "label": True}, "`label` is a string, not a boolean", id="boolean-label"),
        pytest.param({"text": "x", "label": 1}, "`label` is a string, not a number", id="number-label"),
        pytest.param({"text": "\ud800", "label": "a"}, "lone surrogate", id="lone-surrogate"),
        pytest.param({"text": "x" * 100_001, "label": "a"}, "100001 characters", id="long-text"),
        pytest.param({"text": "x", "label": "a" * 201}, "at most 200 characters", id="long-label"),
        pytest.param({"text": "x", "label": "a\nb"}, "one line", id="label-of-two-lines"),
        pytest.param(["x", "a"], "a row is an object, not a list", id="not-an-object"),
    ],
)
def test_bad_row_is_refused_with_its_number(last: Any, message: str) -> None:
    with pytest.raises(InvalidDataset, match=message) as caught:
        parse_rows(rows(last))
    assert (caught.value.row, caught.value.param) == (5, "row 5")
    assert str(caught.value).startswith("row 5: ")


@pytest.mark.parametrize(
    ("first", "message"),
    [
        pytest.param({"text": "x"}, "no answer", id="no-answer"),
        pytest.param({}, "no answer", id="empty"),
        pytest.param({"label": "a"}, "1 to 32 input fields", id="no-input"),
        pytest.param({"text": "x", "label": "a", "output": "b"}, "not both", id="two-answers"),
        pytest.param({"my text": "x", "label": "a"}, "cannot be used in a template", id="field-with-space"),
        pytest.param({"\ud800": "x", "label": "a"}, "cannot be used in a template", id="surrogate-field"),
        pytest.param({f"f{n}": "x" for n in range(33)} | {"label": "a"}, "1 to 32 input fields", id="many-fields"),
        pytest.param({"messages": [], "id": "x"}, "no other field", id="messages-and-more"),
    ],
)
def test_first_row_that_fits_no_form_is_refused(first: Any, message: str) -> None:
    with pytest.raises(InvalidDataset, match=message) as caught:
        parse_rows([first, *rows()])
    assert caught.value.row == 1


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        pytest.param("hello", "list of turns", id="text"),
        pytest.param([], "list of turns", id="empty"),
        pytest.param([{"role": "user", "content": "a"}], "no turn of the assistant", id="no-assistant"),
        pytest.param([{"role": "assistant", "content": "a"}], "before any user", id="assistant-first"),
        pytest.param([{"role": "robot", "content": "a"}], "`role` is one of", id="unknown-role"),
        pytest.param([{"role": ["user"], "content": "a"}], "`role` is one of", id="role-of-another-type"),
        pytest.param([{"role": "user"}], "has `role` and `content`", id="no-content"),
        pytest.param([{"role": "user", "content": "a", "name": "b"}], "has `role` and `content`", id="unknown-key"),
        pytest.param([{"role": "user", "content": [1]}], "is a string, not a list", id="content-of-parts"),
        pytest.param([{"role": "user", "content": "a", "weight": 1}], "the assistant's alone", id="weight-of-user"),
        pytest.param(
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0.5}],
            "`weight` is 0 or 1",
            id="half-weight",
        ),
        pytest.param(
            [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}], "comes first", id="late-system"
        ),
    ],
)
def test_bad_conversation_is_refused_with_its_row(turns: Any, message: str) -> None:
    good = chat(("user", "a"), ("assistant", "b"))
    with pytest.raises(InvalidDataset, match=message) as caught:
        parse_rows([good, good, good, {"messages": turns}])
    assert caught.value.row == 4


@pytest.mark.parametrize("count", [0, 1, 3])
def test_fewer_than_four_rows_are_refused(count: int) -> None:
    with pytest.raises(InvalidDataset, match="at least 4 rows"):
        parse_rows(rows(count=count))


def test_rows_of_one_label_are_refused() -> None:
    with pytest.raises(InvalidDataset, match="at least two labels"):
        parse_rows([{"text": "x", "label": "a"}] * 4)


def test_a_label_for_each_of_many_rows_is_refused() -> None:
    with pytest.raises(InvalidDataset, match="free text goes into `output`"):
        parse_rows([{"text": "x", "label": f"l{n}"} for n in range(600)])


def test_more_rows_than_allowed_are_refused_at_the_first_one_too_many() -> None:
    with pytest.raises(InvalidDataset, match="more than 4 rows") as caught:
        parse_rows(rows(count=9), max_rows=4)
    assert caught.value.row == 5


@pytest.mark.parametrize(
    ("line", "message"),
    [
        pytest.param("{", "not valid JSON", id="broken"),
        pytest.param('{"text": NaN, "label": "a"}', "NaN is not a JSON number", id="nan"),
        pytest.param('{"text": "x", "text": "y", "label": "a"}', "'text' stands twice", id="duplicate-key"),
        pytest.param('[{"text": "x", "label": "a"}]', "one object on each line", id="array"),
        pytest.param("[" * 100_000, "nested too deeply", id="deep"),
        pytest.param('{"text": ' + "9" * 5000 + ', "label": "a"}', "not valid JSON", id="huge-number"),
        pytest.param(b'{"text": "\xff", "label": "a"}', "not valid UTF-8", id="bad-utf8"),
        pytest.param(b'{"text": "\xed\xa0\x80", "label": "a"}', "not valid UTF-8", id="encoded-surrogate"),
        pytest.param('{"text": "\\ud800", "label": "a"}', "lone surrogate", id="escaped-surrogate"),
        pytest.param('{"text": "' + "x" * (1 << 20) + '", "label": "a"}', "longer than", id="long-line"),
        pytest.param('"text"', "a row is a JSON object", id="string"),
    ],
)
def test_bad_jsonl_line_is_refused_with_its_number(line: str | bytes, message: str) -> None:
    with pytest.raises(InvalidDataset, match=message) as caught:
        parse_rows(jsonl("", line))
    assert caught.value.row == 6  # four rows, an empty line, this one


def test_jsonl_tolerates_a_bom_empty_lines_and_windows_line_ends() -> None:
    data = b"\xef\xbb\xbf" + jsonl("", '{"text": "é", "label": "a"}').replace(b"\n", b"\r\n") + b"\n\n"
    assert [example.row for example in parse_rows(data).examples] == [1, 2, 3, 4, 6]


CSV = b'text,label\n"one, two",a\n"line one\nline two",b\nx,a\ny,b\n'


def test_csv_reads_quotes_line_breaks_and_a_bom() -> None:
    found = parse_rows(b"\xef\xbb\xbf" + CSV, format="csv")
    assert [example.row for example in found.examples] == [2, 3, 5, 6]
    assert found.examples[1].fields["text"] == "line one\nline two"


@pytest.mark.parametrize(
    ("data", "message", "row"),
    [
        pytest.param(b"text,text,label\n", "'text' twice", 1, id="duplicate-header"),
        pytest.param(b"text,,label\n", "has no name", 1, id="unnamed-column"),
        pytest.param(CSV + b"z\n", "has 1 values", 7, id="too-few-values"),
        pytest.param(CSV + b"z,a,b\n", "has 3 values", 7, id="too-many-values"),
        pytest.param(CSV + b"z,\n", "`label` is empty", 7, id="empty-value"),
        pytest.param(CSV + b'"z,a\n', "not valid CSV", 7, id="open-quote"),
        pytest.param(CSV + b"\xff,a\n", "not valid UTF-8", 7, id="bad-utf8"),
        pytest.param(CSV + b'"' + b"x" * 200_000 + b'",a\n', "not valid CSV", 7, id="huge-field"),
    ],
)
def test_bad_csv_is_refused_with_its_line(data: bytes, message: str, row: int) -> None:
    with pytest.raises(InvalidDataset, match=message) as caught:
        parse_rows(data, format="csv")
    assert caught.value.row == row


def test_csv_header_alone_has_no_rows() -> None:
    with pytest.raises(InvalidDataset, match="at least 4 rows"):
        parse_rows(b"text,label\n", format="csv")


@pytest.mark.parametrize(
    ("data", "content_type", "expected"),
    [
        (b"text,label\n", "", "csv"),
        (b'\xef\xbb\xbf {"text"', "", "jsonl"),
        (b"[1]", "", "jsonl"),
        (b"{", "text/csv; charset=utf-8", "csv"),
        (b"a,b", "application/x-ndjson", "jsonl"),
        (b"a,b", "application/octet-stream", "csv"),
    ],
)
def test_format_follows_the_content_type_or_else_the_first_character(
    data: bytes, content_type: str, expected: str
) -> None:
    assert sniff_format(data, content_type) == expected
