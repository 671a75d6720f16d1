"""Names and references: `task`, `task@3`, `task:alias`. Pure text; it touches no storage.

Every name that enters the store passes through here once, so that a user's string is checked by one set of patterns
and never becomes a path, a key or code. What is refused is not repeated in the message.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from prompt_store.errors import InvalidName, InvalidReference
from prompt_store.models import ALIAS_NAME, DIGEST, PROD, TASK_NAME, AliasTarget

_TASK = re.compile(TASK_NAME)
_ALIAS = re.compile(ALIAS_NAME)
_DIGEST = re.compile(DIGEST)
_PUBLICATION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/-]{0,199}")
_EVENT_ID = re.compile(r"[0-9]{1,19}(-[0-9]{1,19})?")
_MAX_NUMBER_DIGITS = 9


@dataclass(frozen=True)
class PromptRef:
    """What a reference says: a task with either a version number or an alias, never both.

    A bare task name means its alias `prod`; `parse_ref` fills that in.
    """

    task: str
    version: int | None = None
    alias: str | None = None

    def __str__(self) -> str:
        if self.version is not None:
            return f"{self.task}@{self.version}"
        return self.task if self.alias in (None, PROD) else f"{self.task}:{self.alias}"


def parse_ref(text: str) -> PromptRef:
    """Read `task`, `task@version` or `task:alias`.

    Raises InvalidReference for anything else; `task@word` suggests `task:word`. Raises InvalidName when the parts are
    there but a name is not of its form.
    """
    if "@" in text:
        task, _, number = text.partition("@")
        return PromptRef(check_task_name(task), version=_version_number(task, number))
    if ":" in text:
        task, _, alias = text.partition(":")
        return PromptRef(check_task_name(task), alias=check_alias_name(alias))
    return PromptRef(check_task_name(text), alias=PROD)


def _version_number(task: str, number: str) -> int:
    if number.isascii() and number.isdigit() and len(number) <= _MAX_NUMBER_DIGITS and int(number) >= 1:
        return int(number)
    message = "what stands behind the @ is not a version number"
    if _ALIAS.fullmatch(number):
        message += f"; for the alias write {task}:{number}"
    raise InvalidReference(message, param="task")


def only_version(ref: PromptRef, target: AliasTarget) -> int:
    """The one version that `target`, where `ref` points, consists of. Raises InvalidReference when it has several."""
    if target.version is None:
        numbers = ", ".join(f"{ref.task}@{number}" for number in target.versions)
        raise InvalidReference(f"{ref} points to several versions: name one of {numbers}", param="task")
    return target.version


def check_task_name(name: str) -> str:
    """Return `name`; InvalidName unless it matches `TASK_NAME` and holds no `..`."""
    if not _TASK.fullmatch(name) or ".." in name:
        raise InvalidName(
            "not a task name: 1 to 63 of a-z, 0-9, '.', '_' and '-', beginning with a letter or digit, without '..'",
            param="task",
        )
    return name


def check_alias_name(name: str) -> str:
    """Return `name`; InvalidName unless it matches `ALIAS_NAME`."""
    if not _ALIAS.fullmatch(name) or ".." in name:
        raise InvalidName(
            "not an alias: 1 to 63 of a-z, 0-9, '.', '_' and '-', beginning with a letter, without '..'",
            param="alias",
        )
    return name


def check_digest(digest: str) -> str:
    """Return `digest`; InvalidName unless it is 64 lower-case hex digits."""
    if not _DIGEST.fullmatch(digest):
        raise InvalidName("not a sha256 digest in lower-case hex", param="digest")
    return digest


def check_publication(publication: str) -> str:
    """Return `publication`, the idempotency key of a publish; InvalidName unless short and printable ASCII."""
    if not _PUBLICATION.fullmatch(publication):
        raise InvalidName(
            "not a publication key: 1 to 200 letters, digits and . _ : @ / -",
            param="publication",
        )
    return publication


def check_event_id(event_id: str) -> str:
    """Return `event_id`, a place in the event stream; InvalidName unless it is `0`, `ms` or `ms-sequence`."""
    if not _EVENT_ID.fullmatch(event_id):
        raise InvalidName("not the id of an event", param="after")
    return event_id
