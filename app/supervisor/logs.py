"""Where the output of the supervised processes goes: a rotating file each, the last lines in memory, and, of what a
person should see at once, the terminal.
"""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Callable
from logging import LogRecord, makeLogRecord
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import IO

MAX_LOG_BYTES = 5 << 20
KEPT_FILES = 3
TAIL_LINES = 30
MAX_LINE_BYTES = 64 << 10  # a longer line is cut in pieces, never gathered in memory
LOUD = re.compile(r"\b(WARNING|ERROR|CRITICAL)\b|\"level\": ?\"(warning|error|critical)\"")
SHOWN_CHARS = 400
TRACEBACK = "Traceback (most recent call last)"
LOUD_WITHIN_CHARS = 120  # the level stands near the line's beginning; further on it may be anyone's words

Echo = Callable[[str, str], None]


class ProcessLog:
    """The output of one process over all its restarts. `echo(name, line)` is called for lines to show."""

    def __init__(self, name: str, folder: Path, echo: Echo | None, *, everything: bool = False) -> None:
        self.name = name
        self.path = folder / f"{name}.log"
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._echo = echo
        self._everything = everything
        self._file = _LogFile(
            self.path,
            maxBytes=MAX_LOG_BYTES,
            backupCount=KEPT_FILES,
            encoding="utf-8",
            errors="backslashreplace",
            delay=True,
        )

    def follow(self, stream: IO[bytes]) -> threading.Thread:
        """Read `stream` to its end on a thread of its own, which never stops: a full pipe would stop the writer."""
        thread = threading.Thread(target=self._pump, args=(stream,), name=f"log-{self.name}", daemon=True)
        thread.start()
        return thread

    def write(self, line: str) -> None:
        self.tail.append(line)
        self._file.handle(makeLogRecord({"msg": line}))
        if self._echo is not None and (self._everything or is_loud(line)):
            self._echo(self.name, line)

    def close(self) -> None:
        self._file.close()

    def _pump(self, stream: IO[bytes]) -> None:
        with stream:
            while raw := stream.readline(MAX_LINE_BYTES):
                self.write(raw.decode("utf-8", "backslashreplace").rstrip("\r\n"))


class _LogFile(RotatingFileHandler):
    """A log that cannot be written (a full disk) must not fill the terminal with tracebacks or stop the pump."""

    def handleError(self, record: LogRecord) -> None:  # noqa: N802  (logging's name)
        return


def condense(line: str) -> str:
    """A log line as a person wants it at once: of a traceback only its last line, nothing endless. The file has all."""
    head, traceback, rest = line.partition(TRACEBACK)
    if traceback:
        lines = [part.strip() for part in rest.replace("\\n", "\n").splitlines() if part.strip()]
        line = head + (lines[-1] if lines else traceback)
    return line if len(line) <= SHOWN_CHARS else line[: SHOWN_CHARS - 1] + "…"


def is_loud(line: str) -> bool:
    """True for a log line of level warning or above."""
    return LOUD.search(line[:LOUD_WITHIN_CHARS]) is not None
