"""`/docs`: the API's pages, from files of this package alone, under a policy that forbids everything else."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from starlette.responses import FileResponse
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

STATIC = Path(__file__).parent.parent / "static"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

router = APIRouter(include_in_schema=False)


@router.get("/docs")
async def docs() -> FileResponse:
    return FileResponse(
        STATIC / "docs.html",
        media_type="text/html",
        headers={"content-security-policy": POLICY, "referrer-policy": "no-referrer", "cache-control": "no-cache"},
    )


@router.get("/docs/docs.js")
async def script() -> FileResponse:
    return FileResponse(STATIC / "docs.js", media_type="text/javascript")


assets = Mount("/docs/swagger-ui", StaticFiles(directory=STATIC / "swagger-ui"), name="swagger-ui")
