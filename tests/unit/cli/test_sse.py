"""Promises of the reader of server-sent events."""

from app.cli.sse import ServerEvent, read_events, split_lines


def test_read_events_gives_id_name_and_data() -> None:
    lines = ["id: 7-0", "event: status", 'data: {"a": 1}', ""]
    (event,) = read_events(lines)
    assert event == ServerEvent('{"a": 1}', "7-0", "status")
    assert event.json() == {"a": 1}


def test_read_events_leaves_out_pings_and_ends_at_done() -> None:
    lines = [": ping", "", "data: 1", "data: 2", "", "data: [DONE]", "", "data: late", ""]
    assert [event.data for event in read_events(lines)] == ["1\n2"]


def test_read_events_when_the_stream_is_cut_drops_the_torn_event() -> None:
    assert list(read_events(["data: whole", "", 'data: {"tor'])) == [ServerEvent("whole")]


def test_read_events_keeps_the_id_but_not_the_name_for_later_events() -> None:
    lines = ["id: 1", "event: a", "data: x", "", "data: y", ""]
    assert [(event.id, event.name) for event in read_events(lines)] == [("1", "a"), ("1", None)]


LINES = "one\r\ntwo\rthree\n\nfour \u2028\u2029\x85\x0b\x0c five\r\n"


def test_split_lines_when_a_text_holds_other_line_breaks_ends_lines_at_cr_and_lf_only() -> None:
    wanted = ["one", "two", "three", "", "four \u2028\u2029\x85\x0b\x0c five"]
    assert list(split_lines([LINES])) == wanted
    for cut in range(len(LINES) + 1):
        assert list(split_lines([LINES[:cut], "", LINES[cut:]])) == wanted
    assert list(split_lines(LINES)) == wanted  # one character at a time


def test_split_lines_when_the_last_line_has_no_end_leaves_it_out() -> None:
    assert list(split_lines(["a\r", "b\r", "\nc"])) == ["a", "b"]
