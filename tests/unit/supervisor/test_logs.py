"""Promises of the logs of supervised processes."""

import io
from pathlib import Path

import pytest

from app.supervisor.logs import MAX_LINE_BYTES, SHOWN_CHARS, TAIL_LINES, ProcessLog, condense, is_loud


def test_follow_when_lines_come_writes_all_and_echoes_the_loud(tmp_path: Path) -> None:
    echoed: list[tuple[str, str]] = []
    log = ProcessLog("api", tmp_path, lambda name, line: echoed.append((name, line)))
    log.follow(io.BytesIO(b"INFO started\nWARNING low disk\n100 %s done\n")).join()
    log.close()
    assert log.path.read_text() == "INFO started\nWARNING low disk\n100 %s done\n"
    assert echoed == [("api", "WARNING low disk")]


def test_follow_when_everything_is_wanted_echoes_all(tmp_path: Path) -> None:
    echoed: list[str] = []
    log = ProcessLog("api", tmp_path, lambda _name, line: echoed.append(line), everything=True)
    log.follow(io.BytesIO(b"one\ntwo\n")).join()
    log.close()
    assert echoed == ["one", "two"]


def test_follow_when_bytes_are_not_text_and_lines_endless_keeps_reading(tmp_path: Path) -> None:
    log = ProcessLog("api", tmp_path, None)
    log.follow(io.BytesIO(b"\xff\xfe\n" + b"x" * (MAX_LINE_BYTES + 10) + b"\nend")).join()
    log.close()
    assert log.tail[0] == "\\xff\\xfe"
    assert log.tail[-1] == "end"


def test_tail_when_much_is_written_keeps_the_last_lines(tmp_path: Path) -> None:
    log = ProcessLog("api", tmp_path, None)
    for number in range(TAIL_LINES * 2):
        log.write(str(number))
    log.close()
    assert list(log.tail)[-1] == str(TAIL_LINES * 2 - 1)
    assert len(log.tail) == TAIL_LINES


@pytest.mark.parametrize(
    ("line", "loud"),
    [
        ("2026-01-01 WARNING app.api slow", True),
        ('{"at": 1, "level": "error", "message": "x"}', True),
        ("INFO all good", False),
        ("INFO " + "x" * 200 + " ERROR in what a user wrote", False),
        ("a warning in lower case words", False),
    ],
)
def test_is_loud_for_a_line_sees_its_level(line: str, loud: bool) -> None:
    assert is_loud(line) is loud


def test_condense_when_a_traceback_comes_keeps_its_last_line() -> None:
    line = "12:00 ERROR  Traceback (most recent call last):\\n  File x\\napp.errors.UnsupportedBackbone: no folder\\n"
    assert condense(line) == "12:00 ERROR  app.errors.UnsupportedBackbone: no folder"


def test_condense_when_a_line_is_endless_cuts_it() -> None:
    assert len(condense("x" * 10_000)) == SHOWN_CHARS
    assert condense("short") == "short"
