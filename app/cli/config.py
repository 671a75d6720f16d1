"""Settings for a command: the environment, with the command's own options before it. Errors name the variable."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from app.cli.errors import CliError, Exit

if TYPE_CHECKING:
    from app.settings import Settings


def load_settings(**given: Any) -> Settings:
    """Read the settings; options that were not given (None) do not count. Raises CliError."""
    from pydantic import ValidationError

    from app.settings import Settings

    chosen = {name: value for name, value in given.items() if value is not None}
    if chosen.get("data_dir") is not None:
        chosen["data_dir"] = chosen["data_dir"].expanduser().absolute()
    try:
        return Settings(**chosen)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        name = str(problem["loc"][0]) if problem["loc"] else ""
        source = f"--{name.replace('_', '-')}" if name in chosen else f"CHORUS_{name.upper()}"
        message = problem["msg"].removeprefix("Value error, ")
        raise CliError(f"{source}: {message}", Exit.USAGE, fix="docs/settings.md lists every setting") from None
