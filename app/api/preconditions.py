"""`If-Match` and `If-None-Match` for aliases: which revision a caller expects to find."""

from __future__ import annotations

import re

from starlette.datastructures import Headers

from app.api.request_headers import ETAG
from app.errors import InvalidRequest

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
    tag = match[0].strip(" \t")
    if len(match) > 1 or not re.fullmatch(ETAG, tag):
        raise InvalidRequest('If-Match takes one ETag as this service gave it, such as "3"', param="if-match")
    return int(tag.strip('"'))


def etag(revision: int) -> str:
    return f'"{revision}"'
