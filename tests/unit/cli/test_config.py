"""Promises about settings on the command line."""

from pathlib import Path

import pytest

from app.cli.config import load_settings
from app.cli.errors import CliError, Exit


def test_load_settings_options_go_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHORUS_PORT", "9001")
    monkeypatch.setenv("CHORUS_HOST", "::1")
    settings = load_settings(port=9002, host=None)
    assert (settings.port, settings.host) == (9002, "::1")


def test_load_settings_when_a_variable_is_wrong_names_it_and_not_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHORUS_MAX_ROWS", "many")
    with pytest.raises(CliError, match="CHORUS_MAX_ROWS") as caught:
        load_settings()
    assert caught.value.exit_code == Exit.USAGE
    assert "many" not in caught.value.message


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis+sentinel://:secret@one", "redis+sentinel:// wants HOST"),
        ("redis+sentinel://:secret@:1/chorus", "is no host"),
        ("http://me:secret@one/0", "schemes"),
        ("", "schemes"),
    ],
)
def test_load_settings_when_the_address_of_redis_is_of_no_form_says_which_there_are(
    monkeypatch: pytest.MonkeyPatch, url: str, said: str
) -> None:
    monkeypatch.setenv("CHORUS_REDIS_URL", url)
    with pytest.raises(CliError) as caught:
        load_settings()
    assert caught.value.message.startswith("CHORUS_REDIS_URL: ")
    assert said in caught.value.message
    assert "secret" not in caught.value.message
    assert "Value error" not in caught.value.message


def test_load_settings_makes_the_data_folder_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_settings(data_dir=Path("state")).data_dir == tmp_path / "state"
