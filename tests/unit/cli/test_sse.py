"""Promises of the reader of server-sent events."""

from app.cli.sse import ServerEvent, read_events


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
