"""Settings: one Struct, read from a TOML file and `ENGINE_*` variables.

A variable wins over the file, the file over the default. What is wrong is refused before anything
starts, with the name of the source it came from. This module knows nothing of the engine.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

DATA_DIR_DEFAULT = ".data"
DEV_KEY = "sk_test_dev"
DEV_MERCHANT = "m_dev"


class SettingsRefused(Exception):
    """A setting cannot be used. The message names its source and what to do."""


class ApiKeySetting(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One API key. `sha256` is the hex digest of the whole key; the key itself is never stored.

    Make one with: `printf %s "$KEY" | sha256sum`.
    """

    sha256: str
    merchant: str
    livemode: bool = False
    scopes: tuple[str, ...] = ("merchant",)


class FeeSetting(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One rule of a merchant's fee schedule: rates in basis points, amounts in minor units."""

    valid_from: str
    merchant: str | None = None
    gateway: str | None = None
    method: str | None = None
    currency: str | None = None
    basis_points: int = 0
    fixed_minor: int = 0
    minimum_minor: int = 0
    maximum_minor: int | None = None
    tax_basis_points: int = 0


class SimulatorSetting(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The simulator gateway. With `url` it is a separate process, else it runs in this one."""

    url: str | None = None
    latency_ms: float = 0.0
    latency_sigma: float = 0.0
    webhook_secrets: tuple[str, ...] = ()
    inflight_max: int = 1_000
    lookup_lag_ms: int = 4_000
    deadline_ms: int = 6_000
    send_webhooks: bool = False
    seed: int = 0
    rates: dict[str, float] = {}
    """Share of calls by fault: unreachable, timeout_before, timeout_after, server_error,
    decline."""


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that may be set. Times in milliseconds, sizes in counts.

    `file` names the settings file that was read, for errors that are found later.
    """

    database_url: str | None = None
    host: str = "127.0.0.1"
    port: int = 8080
    data_dir: str = DATA_DIR_DEFAULT
    public_url: str | None = None
    shards: int = 2
    credits: int = 2_000
    wait_ms: int = 10_000
    log_file: str | None = None
    api_keys: tuple[ApiKeySetting, ...] = ()
    fees: tuple[FeeSetting, ...] = ()
    simulator: SimulatorSetting = SimulatorSetting()
    park_retry_s: float = 30.0
    connections_max: int = 4_000
    failpoint: str | None = None
    failpoints_allowed: bool = False
    file: str = "settings"


_VARIABLES: dict[str, tuple[str, type]] = {
    "ENGINE_HOST": ("host", str),
    "ENGINE_PORT": ("port", int),
    "ENGINE_DATA_DIR": ("data_dir", str),
    "ENGINE_PUBLIC_URL": ("public_url", str),
    "ENGINE_SHARDS": ("shards", int),
    "ENGINE_CREDITS": ("credits", int),
    "ENGINE_WAIT_MS": ("wait_ms", int),
    "ENGINE_LOG_FILE": ("log_file", str),
    "ENGINE_PARK_RETRY_S": ("park_retry_s", float),
    "ENGINE_CONNECTIONS_MAX": ("connections_max", int),
    "ENGINE_FAILPOINT": ("failpoint", str),
    "DATABASE_URL": ("database_url", str),
}
"""Variable -> (setting, type). What is a list or a table is set in the file only."""

_NOT_SETTINGS = frozenset({"ENGINE_CONFIG"})


def load_settings(
    *, file: Path | None, environ: Mapping[str, str], flags: Mapping[str, Any] | None = None
) -> Settings:
    """Read the settings; `flags` are what the command line gave. Raises SettingsRefused."""
    values: dict[str, Any] = {}
    if file is not None:
        values = {**_from_file(file), "file": str(file)}
    for name in sorted(environ):
        if name in _VARIABLES:
            field, kind = _VARIABLES[name]
            values[field] = _from_variable(name, environ[name], kind)
        elif name.startswith("ENGINE_") and name not in _NOT_SETTINGS:
            known = ", ".join(sorted(_VARIABLES))
            raise SettingsRefused(f"{name}: there is no such setting. Known are {known}.")
    values.update({name: value for name, value in (flags or {}).items() if value is not None})
    try:
        settings = msgspec.convert(values, Settings)
    except msgspec.ValidationError as wrong:
        raise SettingsRefused(f"command line: {wrong}") from None
    _check(settings)
    return settings


def _from_file(file: Path) -> dict[str, Any]:
    try:
        raw = file.read_bytes()
    except OSError as trouble:
        raise SettingsRefused(f"{file}: cannot be read ({trouble.strerror}).") from None
    try:
        values = tomllib.loads(raw.decode())
        msgspec.convert(values, Settings)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as wrong:
        raise SettingsRefused(f"{file}: {wrong}") from None
    return values


def _from_variable(name: str, text: str, kind: type) -> Any:
    try:
        return msgspec.convert(text, kind, strict=False)
    except msgspec.ValidationError:
        raise SettingsRefused(f"{name}: {text!r} is not {_KIND_NAMES[kind]}.") from None


_KIND_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def _check(settings: Settings) -> None:
    """The limits, cross-checked."""
    problems = {
        "port": not 0 <= settings.port <= 65_535,
        "shards": not 1 <= settings.shards <= 64,
        "credits": not 1 <= settings.credits <= 100_000,
        "wait_ms": not 1 <= settings.wait_ms <= 600_000,
        "park_retry_s": not settings.park_retry_s > 0,
        "connections_max": not 1 <= settings.connections_max <= 1_000_000,
    }
    for name, is_wrong in problems.items():
        if is_wrong:
            raise SettingsRefused(
                f"{name} (ENGINE_{name.upper()}): {getattr(settings, name)} is out of range."
            )
    for key in settings.api_keys:
        if len(key.sha256) != 64 or set(key.sha256) - set("0123456789abcdef"):
            raise SettingsRefused("api_keys: sha256 must be 64 lower-case hexadecimal digits.")
