"""Answers as bytes: models go out as JSON exactly as declared, without a second validation."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel
from starlette.responses import Response


def reply(model: BaseModel, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(
        model.model_dump_json(),
        status_code=status,
        headers={"cache-control": "no-store", **(headers or {})},
        media_type="application/json",
    )


def no_content() -> Response:
    return Response(status_code=204, headers={"cache-control": "no-store"})
