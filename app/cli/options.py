"""Options that several commands share, each written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_URL = "http://127.0.0.1:8000"

SERVICE = "The running service"

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
# Read from the command line by `run` itself, so that it also holds while the line is parsed; here for the help.
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Url = Annotated[
    str, typer.Option("--url", envvar="CHORUS_URL", help="Address of the service.", rich_help_panel=SERVICE)
]
Key = Annotated[
    str | None,
    typer.Option(
        "--key", envvar="CHORUS_API_KEY", help="Its key, if it wants one.", show_default=False, rich_help_panel=SERVICE
    ),
]

Host = Annotated[
    str | None,
    typer.Option("--host", help="Address to listen on. (CHORUS_HOST, else 127.0.0.1)", show_default=False),
]
Port = Annotated[
    int | None,
    typer.Option(
        "--port",
        min=0,
        max=65535,
        help="Port to listen on; 0: any free one. (CHORUS_PORT, else 8000)",
        show_default=False,
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir", help="Folder for all state. (CHORUS_DATA_DIR, else the user's data folder)", show_default=False
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="Backbone: `bundled`, a local folder, or a hub id. (CHORUS_MODEL, else bundled)",
        show_default=False,
    ),
]
