"""Settings that are refused: the source, what is wrong, and what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.__main__ import USAGE_ERROR, main
from engine.config import Settings, SettingsRefused, load_settings

SHA256 = "0" * 64
KEY = f'[[api_keys]]\nsha256 = "{SHA256}"\nmerchant = "m_acme"\n'


def refused(
    tmp_path: Path,
    text: str = "",
    environ: dict[str, str] | None = None,
    **flags: object,
) -> str:
    file = tmp_path / "settings.toml"
    file.write_text(text, "utf-8")
    with pytest.raises(SettingsRefused) as caught:
        load_settings(file=file, environ=environ or {}, flags=flags)
    return str(caught.value).replace(str(tmp_path), "…")


def test_a_value_out_of_range_is_refused_with_its_source_and_the_range(tmp_path: Path) -> None:
    wrong = "99999 is out of range, allowed is 0 to 65535."
    assert refused(tmp_path, port=99_999) == f"--port: {wrong}"
    assert refused(tmp_path, environ={"ENGINE_PORT": "99999"}) == f"ENGINE_PORT: {wrong}"
    assert refused(tmp_path, "port = 99999") == f"…/settings.toml: `port`: {wrong}"
    assert refused(tmp_path, "port = 1", {"ENGINE_PORT": "99999"}) == f"ENGINE_PORT: {wrong}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prot = 1", "there is no setting `prot`. Known are database_url, host, port, "),
        ('file = "x"', "there is no setting `file`. Known are database_url, "),
        ('port = "80"', "`port` must be a whole number, not a text in quotes."),
        ("host = 1", "`host` must be a text in quotes, not a whole number."),
        ("[simulator]\nurl = 1", "[simulator], `url` must be a text in quotes, not a whole "),
        ("[simulator]\nlatency = 1", "[simulator]: there is no setting `latency`. Known are url, "),
        ("[simulator.rates]\ndecline = 'x'", "[simulator], `rates` must be a number, not a text"),
        ("[[fees]]\ncurrency = 'USD'", "[[fees]] number 1: `valid_from` is missing."),
        ("[[fees]]\nvalid_from = 2026-01-01", "`valid_from` must be a text in quotes, not a date"),
        (KEY + "[[api_keys]]\nmerchant = 'm'", "[[api_keys]] number 2: `sha256` is missing."),
        (KEY + "scope = []", "number 1: there is no setting `scope`. Known are sha256, merchant, "),
        (KEY + "scopes = ['admin']", "[[api_keys]] number 1: `scopes` may hold merchant and op"),
        ("port = ", "this is not valid TOML: Invalid value (at end of document)."),
    ],
)
def test_what_is_wrong_in_the_file_is_said_in_its_own_words(
    tmp_path: Path, text: str, said: str
) -> None:
    message = refused(tmp_path, text)
    assert message.startswith("…/settings.toml: ")
    assert said in message


def test_a_digest_with_the_dash_of_sha256sum_is_refused_with_a_command_that_works(
    tmp_path: Path,
) -> None:
    message = refused(tmp_path, KEY + KEY.replace(SHA256, SHA256 + "  -"))
    assert message.startswith("…/settings.toml: [[api_keys]] number 2: `sha256` must be 64 ")
    assert "sha256sum | cut -d' ' -f1" in message
    assert SHA256 not in message


def test_good_settings_are_taken(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(f"port = 1\n{KEY}")
    settings = load_settings(file=file, environ={}, flags={"port": None})
    assert (settings.port, settings.api_keys[0].merchant) == (1, "m_acme")
    assert load_settings(file=None, environ={}) == Settings()


@pytest.fixture
def _no_settings_around(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("DATABASE_URL", "ENGINE_HOST", "ENGINE_PORT", "ENGINE_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("_no_settings_around")
@pytest.mark.parametrize("command", ["serve", "migrate", "verify"])
def test_without_a_database_every_command_says_the_same(
    command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main([command, "--data", str(tmp_path / "data")]) == USAGE_ERROR
    assert "engine: DATABASE_URL is not set: name the Postgres to use" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


@pytest.mark.usefixtures("_no_settings_around")
def test_a_fee_without_a_date_is_a_wrong_setting_and_nothing_is_made(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('[[fees]]\nvalid_from = "soon"\n')
    data = tmp_path / "data"
    assert main(["dev", "--config", str(file), "--data", str(data), "--port", "0"]) == USAGE_ERROR
    said = capsys.readouterr().err
    assert f"{file}: [[fees]] number 1: `valid_from` must be a date like 2026-01-31" in said
    assert not data.exists()


@pytest.mark.usefixtures("_no_settings_around")
def test_books_that_are_not_there_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["verify", "--books", str(tmp_path)]) == USAGE_ERROR
    said = f"--books: there is no simulator-books.jsonl in {tmp_path}"
    assert said in capsys.readouterr().err
