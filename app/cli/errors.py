"""Exit codes of the command line, and the one error that commands raise."""

from __future__ import annotations

from enum import IntEnum
from typing import Any


class Exit(IntEnum):
    """What the exit status of `chorus` means."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    REFUSED = 4
    INTERRUPTED = 130


MEANING = {
    Exit.DONE: "done; for `up`, stopped in order",
    Exit.FAILED: "it failed: a job failed, a check failed, a process would not stay up, an error of ours",
    Exit.USAGE: "the command line or a setting is wrong",
    Exit.UNREACHABLE: "the service cannot be reached, or cannot answer now (429, 503, 5xx)",
    Exit.REFUSED: "the service refused the request (4xx): unknown task, invalid rows, a conflict, a wrong key",
    Exit.INTERRUPTED: "interrupted by Ctrl-C",
}


class CliError(Exception):
    """Ends a command: `message` says what is wrong, `fix` what to do, `detail` is the API's own error, if any."""

    def __init__(
        self,
        message: str,
        exit_code: Exit = Exit.FAILED,
        *,
        fix: str | None = None,
        detail: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code
        self.fix = fix
        self.detail = detail or {}

    def as_json(self) -> dict[str, Any]:
        """The error in the API's shape, with `fix` beside."""
        error: dict[str, Any] = {"code": self.exit_code.name.lower(), "message": self.message, "param": None}
        return {"error": error | self.detail | ({"fix": self.fix} if self.fix else {})}
