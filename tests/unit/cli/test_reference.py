"""The pages about commands and settings say what the code says."""

from pathlib import Path

import pytest

from app.cli.reference import all_commands, cli_page, settings_page
from app.cli.run import build
from app.settings import Settings

DOCS = Path(__file__).parents[3] / "docs"


@pytest.mark.parametrize(("name", "page"), [("cli.md", cli_page), ("settings.md", settings_page)])
def test_page_is_what_the_code_says(name: str, page: object) -> None:
    assert callable(page)
    assert (DOCS / name).read_text(encoding="utf-8") == page(), "run `make docs`"


def test_cli_page_names_every_command_and_option() -> None:
    page = (DOCS / "cli.md").read_text(encoding="utf-8")
    for name, command in all_commands(build()):
        section = page.partition(f"## `chorus {name}")[2].partition("\n## ")[0]
        for param in command.params:
            for option in param.opts if param.param_type_name == "option" else ():
                assert f"`{option}`" in section, f"{name} {option}"


def test_settings_page_names_every_variable_with_its_meaning() -> None:
    page = (DOCS / "settings.md").read_text(encoding="utf-8")
    for name, field in Settings.model_fields.items():
        assert f"`CHORUS_{name.upper()}`" in page
        assert field.description, f"{name} has no description"
