"""The pages `docs/cli.md` and `docs/settings.md`, written from the code: `python -m app.cli.reference docs`.

A test compares them with what the code says, so they cannot go stale.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from app.cli.errors import MEANING

CLI_INTRO = """# Command line

Written by `make docs` from the program itself; `chorus COMMAND --help` says the same.

`--json` prints JSON only, errors included: `{"error": {"code", "message", "param", …, "fix"}}`. No traceback is shown
without `--debug`. `--url` and `--key` (or `CHORUS_URL`, `CHORUS_API_KEY`) say which service a command talks to.
"""

SETTINGS_INTRO = """# Settings

Written by `make docs` from `app/settings.py`. Every setting is an environment variable, read once when a process
starts; `chorus up`, `serve` and `worker` have options for the usual ones. A value that cannot be used stops the start
and is named.

| variable | default | what it is |
|---|---|---|
"""
DATA_DIR = "`~/.local/share/chorus`, or below `XDG_DATA_HOME`; on macOS `~/Library/Application Support/chorus`"


def cli_page() -> str:
    """The text of docs/cli.md."""
    from app.cli.run import build

    parts = [CLI_INTRO]
    for name, command in all_commands(build()):
        parts.append("\n".join(_command(name, command)))
    parts.append("\n".join(_exit_codes()))
    return "\n".join(parts)


def settings_page() -> str:
    """The text of docs/settings.md."""
    from app.settings import Settings

    rows = []
    for name, field in Settings.model_fields.items():
        default = DATA_DIR if name == "data_dir" else _value(field.default)
        choices = _choices(field.annotation)
        about = _cell(field.description or "") + (f" One of {choices}." if choices else "")
        rows.append(f"| `CHORUS_{name.upper()}` | {default} | {about} |")
    return SETTINGS_INTRO + "\n".join(rows) + "\n"


def all_commands(group: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """Every command with its whole name, those of groups too."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from all_commands(command, f"{above}{name} ")
        else:
            yield above + name, command


def _command(name: str, command: Any) -> Iterator[str]:
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    options = [one for one in command.params if one.param_type_name == "option"]
    words = " ".join(one.metavar if one.required else f"[{one.metavar.strip('[]')}]" for one in arguments)
    yield f"## `chorus {name}{' ' if words else ''}{words}`"
    yield ""
    yield inspect.cleandoc(command.help or "").strip()
    yield ""
    yield "| | |"
    yield "|---|---|"
    for one in arguments:
        yield f"| `{one.metavar.strip('[]')}` | {_cell(one.help)} |"
    for one in options:
        names = ", ".join(f"`{opt}`" for opt in (*one.opts, *one.secondary_opts))
        names += f" `{one.metavar}`" if one.metavar else ""
        notes = _takes(one)
        notes += [f"default {_value(one.default)}"] if one.show_default and one.default not in (None, False) else []
        notes += [f"`{one.envvar}`"] if one.envvar else []
        notes += ["required"] if one.required else []
        yield f"| {names} | {_cell(one.help)}{_notes(notes)} |"
    yield ""


def _exit_codes() -> Iterator[str]:
    yield "## Exit status"
    yield ""
    yield "| | |"
    yield "|---|---|"
    for code, meaning in MEANING.items():
        yield f"| {int(code)} | {meaning} |"
    yield ""


def _takes(option: Any) -> list[str]:
    """The values that an option takes, where not all of its type."""
    choices = _choices(option.type_descriptor.annotation)
    notes = [choices] if choices else []
    least, most = option.min, option.max
    if least is not None and most is not None:
        notes.append(f"{least} to {most}")
    elif least is not None:
        notes.append(f"{least} or more")
    elif most is not None:
        notes.append(f"{most} or less")
    return notes


def _choices(annotation: Any) -> str:
    """The values of a `Literal`, as Markdown; nothing for other types."""
    if get_origin(annotation) is not Literal:
        return next(filter(None, map(_choices, get_args(annotation))), "")
    return ", ".join(f"`{value}`" for value in get_args(annotation))


def _notes(notes: list[str]) -> str:
    return f" ({', '.join(notes)})" if notes else ""


def _value(value: Any) -> str:
    return "unset" if value is None else f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    (folder / "cli.md").write_text(cli_page(), encoding="utf-8")
    (folder / "settings.md").write_text(settings_page(), encoding="utf-8")
