"""A port that is taken is found before anything is made, and another one is suggested."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.__main__ import main

SETTINGS = """
database_url = "postgresql://nobody@127.0.0.1:1/none"
[simulator]
url = "http://127.0.0.1:1"
[[api_keys]]
sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
merchant = "m_acme"
"""


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        yield holder.getsockname()[1]


@pytest.mark.parametrize("command", ["dev", "serve", "gateway-simulator"])
def test_a_taken_port_is_said_before_anything_is_made(
    command: str,
    taken: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("DATABASE_URL", "ENGINE_HOST", "ENGINE_PORT", "ENGINE_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    file, data = tmp_path / "settings.toml", tmp_path / "data"
    file.write_text(SETTINGS)
    options = ["--config", str(file)] if command == "serve" else []
    assert main([command, *options, "--port", str(taken), "--data", str(data)]) == 1
    said = capsys.readouterr().err
    hint = "--port N (make run PORT=N)" if command == "dev" else "--port N"
    assert said == f"engine: port {taken} is taken: choose another with {hint}\n"
    assert not data.exists()


def test_dev_says_that_it_ignores_another_address(
    taken: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENGINE_HOST", "0.0.0.0")
    monkeypatch.setenv("DATABASE_URL", "postgresql://db.example.com/engine")
    assert main(["dev", "--port", str(taken)]) == 1
    said = capsys.readouterr().err
    assert "host (ENGINE_HOST) 0.0.0.0 is ignored" in said
    assert "database_url (DATABASE_URL) is ignored" in said
    assert "db.example.com" not in said
