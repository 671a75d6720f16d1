"""Log lines with a request id, as text or JSON, one event to a line. User text is never a field of a log line.

Messages are constant and facts travel beside them: `log.info("version loaded", extra={"task": name, "seconds": s})`.
"""

from __future__ import annotations

import contextvars
import json
import logging
import sys
import time
from typing import Any, Literal, TextIO

from app.telemetry.tracing import current_span

request_id: contextvars.ContextVar[str | None] = contextvars.ContextVar("request_id", default=None)

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


def configure_logging(
    level: Literal["debug", "info", "warning", "error"],
    form: Literal["json", "text"],
    stream: TextIO | None = None,
) -> None:
    """Send all logs of this process to `stream` (standard error) in one form; replaces earlier handlers of the root."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in ("httpx", "httpcore", "urllib3", "filelock", "rq.worker", "uvicorn.error"):
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


def facts(record: logging.LogRecord) -> dict[str, Any]:
    """The fields given in `extra`, and the ids of the request being answered and of its trace, if any."""
    found = {key: value for key, value in vars(record).items() if key not in _STANDARD}
    current = request_id.get()
    if current is not None:
        found.setdefault("request_id", current)
    trace = current_span().trace_id
    if trace is not None:
        found.setdefault("trace_id", trace)
    return found


class JsonFormatter(logging.Formatter):
    """One JSON object to a line; ASCII only, so that no character of a value can break the line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _utc(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **facts(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """`12:00:01 INFO  message  key=value …` for people; control characters in values are escaped."""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        fields = "  ".join(f"{key}={_plain(value)}" for key, value in facts(record).items())
        line = f"{clock} {record.levelname:<7} {_escape(record.getMessage())}"
        if fields:
            line += f"  {fields}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds % 1 * 1000):03d}Z"


def _plain(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else _escape(str(value))


def _escape(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
