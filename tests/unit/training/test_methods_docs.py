"""docs/methods.md has a section for every method, with its options and their defaults as the code has them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from app.training.methods import METHODS

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "methods.md").read_text(encoding="utf-8")
SECTIONS: dict[str, str] = dict(re.findall(r"^## `(\w+)`\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))
_OPTION = re.compile(r"^\| `(\w+)` \| (?:`(.*?)`)? ?\| .*\|$", re.M)


def documented(kind: str) -> dict[str, Any]:
    _, _, table = SECTIONS[kind].partition("| option | default | |\n|---|---|---|\n")
    table = table.partition("\n\n")[0]
    rows = [match for line in table.splitlines() if (match := _OPTION.match(line))]
    assert len(rows) == len(table.splitlines()), table
    return {row[1]: json.loads(row[2]) if row[2] else None for row in rows}


def test_every_method_has_a_section_and_no_other_has() -> None:
    assert list(SECTIONS) == list(METHODS)


@pytest.mark.parametrize("kind", METHODS)
def test_options_and_defaults_are_those_of_the_configuration(kind: str) -> None:
    fields = METHODS[kind].config.model_fields
    assert documented(kind) == {name: field.default for name, field in fields.items() if name != "type"}


@pytest.mark.parametrize("kind", METHODS)
def test_every_section_says_what_is_stored(kind: str) -> None:
    assert re.search(r"^Stored: ", SECTIONS[kind], re.M)


def test_links_to_pages_and_guides_lead_somewhere() -> None:
    folder = Path(__file__).resolve().parents[3] / "docs"
    links = [link for link in re.findall(r"\]\(([\w./-]+\.md)\)", PAGE) if not link.startswith("results/")]
    assert links
    assert [link for link in links if not (folder / link).is_file()] == []
