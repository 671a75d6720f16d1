"""`If-Match` and `If-None-Match` for aliases: which revision a caller expects to find."""

from __future__ import annotations

import re

from starlette.datastructures import Headers

from app.errors import InvalidRequest

_TAG = re.compile(r'"(\d{1,18})"\Z')
ABSENT = 0


def expected_revision(headers: Headers) -> int | None:
    """The revision that must stand there: None for any, 0 for "does not exist yet". Raises InvalidRequest."""
    match, none_match = headers.getlist("if-match"), headers.getlist("if-none-match")
    if match and none_match:
        raise InvalidRequest("send either If-Match or If-None-Match", param="if-match")
    if none_match:
        if none_match != ["*"]:
            raise InvalidRequest("If-None-Match takes only *: create, but do not replace", param="if-none-match")
        return ABSENT
    if not match:
        return None
    tag = _TAG.match(match[0].strip()) if len(match) == 1 else None
    if tag is None or int(tag[1]) == ABSENT:
        raise InvalidRequest('If-Match takes one ETag as this service gave it, such as "3"', param="if-match")
    return int(tag[1])


def etag(revision: int) -> str:
    return f'"{revision}"'
