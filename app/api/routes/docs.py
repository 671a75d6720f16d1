"""`/docs`: the API's pages, from files of this package alone, under a policy that forbids everything else."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from starlette.responses import FileResponse
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

STATIC = Path(__file__).parent.parent / "static"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

router = APIRouter(include_in_schema=False)


@router.get("/docs")
async def docs() -> FileResponse:
    return WholeFile(
        STATIC / "docs.html",
        media_type="text/html",
        headers={"content-security-policy": POLICY, "referrer-policy": "no-referrer", "cache-control": "no-cache"},
    )


@router.get("/docs/docs.js")
async def script() -> FileResponse:
    return WholeFile(STATIC / "docs.js", media_type="text/javascript")


class WholeFile(FileResponse):
    """Always all of it: what Starlette says of a bad `Range` has not our one error shape."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await super().__call__(_without_range(scope), receive, send)


class WholeFiles:
    """Files as `WholeFile` gives them."""

    def __init__(self, files: ASGIApp) -> None:
        self._files = files

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._files(_without_range(scope), receive, send)


def _without_range(scope: Scope) -> Scope:
    return {**scope, "headers": [one for one in scope["headers"] if one[0] not in (b"range", b"if-range")]}


assets = Mount("/docs/swagger-ui", WholeFiles(StaticFiles(directory=STATIC / "swagger-ui")), name="swagger-ui")
