"""Settings: one Struct, read from a TOML file and `ENGINE_*` variables.

A variable wins over the file, the file over the default. What is wrong is refused before anything
starts, with the name of the source it came from and what is allowed. This module knows nothing of
the engine.
"""

from __future__ import annotations

import re
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

    Make one with: `printf %s "$KEY" | sha256sum | cut -d' ' -f1`.
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
    sources: dict[str, str] = {}
    if file is not None:
        values = _from_file(file)
        sources = {name: f"{file}: `{name}`" for name in values}
        values["file"] = str(file)
    for name in sorted(environ):
        if name in _VARIABLES:
            field, kind = _VARIABLES[name]
            values[field] = _from_variable(name, environ[name], kind)
            sources[field] = name
        elif name.startswith("ENGINE_") and name not in _NOT_SETTINGS:
            known = ", ".join(sorted(_VARIABLES))
            raise SettingsRefused(f"{name}: there is no such setting. Known are {known}.")
    for name, value in (flags or {}).items():
        if value is not None:
            values[name] = value
            sources[name] = _FLAGS.get(name, f"--{name}")
    try:
        settings = msgspec.convert(values, Settings)
    except msgspec.ValidationError as wrong:
        raise SettingsRefused(f"command line: {_explained(str(wrong))}") from None
    _check_ranges(settings, sources)
    for number, key in enumerate(settings.api_keys, 1):
        _check_api_key(key, f"{settings.file}: [[api_keys]] number {number}")
    return settings


def _from_file(file: Path) -> dict[str, Any]:
    try:
        raw = file.read_bytes()
    except OSError as trouble:
        raise SettingsRefused(f"{file}: cannot be read ({trouble.strerror}).") from None
    try:
        values = tomllib.loads(raw.decode())
        msgspec.convert(values, Settings)
    except UnicodeDecodeError as wrong:
        raise SettingsRefused(f"{file}: it must be UTF-8; byte {wrong.start} is not.") from None
    except tomllib.TOMLDecodeError as wrong:
        raise SettingsRefused(f"{file}: this is not valid TOML: {wrong}.") from None
    except msgspec.ValidationError as wrong:
        raise SettingsRefused(f"{file}: {_explained(str(wrong))}") from None
    if "file" in values:
        raise SettingsRefused(f"{file}: {_not_a_setting('', 'file')}")
    return values


def _from_variable(name: str, text: str, kind: type) -> Any:
    try:
        return msgspec.convert(text, kind, strict=False)
    except msgspec.ValidationError:
        raise SettingsRefused(f"{name}: {text!r} is not {_KIND_NAMES[kind]}.") from None


_KIND_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


_FLAGS = {"data_dir": "--data"}
"""Settings whose option has another name."""

_RANGES: dict[str, tuple[float, float]] = {
    "port": (0, 65_535),
    "shards": (1, 64),
    "credits": (1, 100_000),
    "wait_ms": (1, 600_000),
    "park_retry_s": (0.001, 86_400),
    "connections_max": (1, 1_000_000),
}
"""The lowest and the highest value of a setting."""

_SCOPES = ("merchant", "operator")


def _check_ranges(settings: Settings, sources: Mapping[str, str]) -> None:
    for name, (low, high) in _RANGES.items():
        value = getattr(settings, name)
        if not low <= value <= high:
            raise SettingsRefused(
                f"{sources.get(name, name)}: {value} is out of range, allowed is {low} to {high}."
            )


def _check_api_key(key: ApiKeySetting, where: str) -> None:
    """`where` names the file and the entry. What was given is never repeated."""
    if len(key.sha256) != 64 or set(key.sha256) - set("0123456789abcdef"):
        raise SettingsRefused(
            f"{where}: `sha256` must be 64 lower-case hexadecimal digits and nothing else, as "
            f"printf %s \"$KEY\" | sha256sum | cut -d' ' -f1 prints them."
        )
    if not key.scopes or set(key.scopes) - set(_SCOPES):
        raise SettingsRefused(f"{where}: `scopes` may hold {' and '.join(_SCOPES)}.")


# --- what msgspec says, in words of a settings file ---------------------------------------------

_TABLES: dict[str, type[msgspec.Struct]] = {
    "": Settings,
    "api_keys": ApiKeySetting,
    "fees": FeeSetting,
    "simulator": SimulatorSetting,
}

_WHERE = re.compile(r" - at `\$([^`]*)`$")
_STEP = re.compile(r"^\.?(\w+)(?:\[(\d+)\])?")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`$", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*)`$")
_TYPE = re.compile(r"Expected `([^`]*)`, got `([^`]*)`$")

_TOML_NAMES = {
    "int": "a whole number",
    "float": "a number",
    "str": "a text in quotes",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
    "date": "a date without quotes",
    "datetime": "a time without quotes",
}


def _explained(message: str) -> str:
    """What is wrong and what is allowed, in place of the library's words."""
    found = _WHERE.search(message)
    path = found[1] if found else ""
    text = message[: found.start()] if found else message
    if unknown := _UNKNOWN.match(text):
        return _not_a_setting(path, unknown[1])
    if missing := _MISSING.match(text):
        return f"{_place(path)}: `{missing[1]}` is missing."
    if wrong := _TYPE.match(text):
        allowed = " or ".join(
            _TOML_NAMES.get(kind, kind) for kind in wrong[1].split(" | ") if kind != "null"
        )
        return f"{_place(path)} must be {allowed}, not {_TOML_NAMES.get(wrong[2], wrong[2])}."
    return f"{_place(path)}: {text}." if path else f"{text}."


def _not_a_setting(path: str, name: str) -> str:
    step = _STEP.match(path)
    table = step[1] if step else ""
    known = ", ".join(
        field.name
        for field in msgspec.structs.fields(_TABLES.get(table, Settings))
        if table or field.name != "file"
    )
    where = "" if step is None else _place(path) if step[2] else f"[{table}]"
    where = where and f"{where}: "
    return f"{where}there is no setting `{name}`. Known are {known}."


def _place(path: str) -> str:
    """`.api_keys[0].sha256` as a person finds it: entries of a list count from 1."""
    step = _STEP.match(path)
    if step is None:
        return "the file"
    rest = path[step.end() :].lstrip(".").replace("[...]", "")
    if step[2] is not None and _TABLES.get(step[1]) is not None:
        table = f"[[{step[1]}]] number {int(step[2]) + 1}"
    elif rest:
        table = f"[{step[1]}]"
    else:
        return f"`{step[1]}`"
    return f"{table}, `{rest}`" if rest else table
