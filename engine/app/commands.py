"""What each command of the command line does, once its settings are known."""

from __future__ import annotations

import functools
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import anyio
import msgspec

from engine.app import run as running
from engine.app.listening import CannotListen, check_can_listen
from engine.app.parts import DEV_FEES, VERIFICATION, fee_schedules, simulator_config
from engine.app.telemetry import StructlogTelemetry
from engine.config import Settings, SettingsRefused
from engine.failpoints import FailpointRefused, arm
from engine.gateways.simulator_books import BooksCorrupt, BooksInUse
from engine.ledger import migrate as migrating
from engine.ledger.embedded import EmbeddedPostgres, EmbeddedPostgresError, attached
from engine.ports import LedgerError
from engine.supervisor.errors import MaxIntensityReached

Fail = Callable[[object], int]
BOOKS = "simulator-books.jsonl"
LOOPBACK = "127.0.0.1"
ANOTHER_PORT = "--port N"
ANOTHER_DEV_PORT = "--port N (make run PORT=N)"
NO_DATABASE = "DATABASE_URL is not set: name the Postgres to use, or run `engine dev`."


def _run_async(main: Callable[[], object]) -> None:
    anyio.run(main, backend="asyncio", backend_options={"use_uvloop": True})  # type: ignore[arg-type]


def _telemetry(settings: Settings) -> StructlogTelemetry:
    try:
        return StructlogTelemetry.to(settings.log_file)
    except OSError as trouble:
        raise SettingsRefused(
            f"log_file (ENGINE_LOG_FILE): {settings.log_file}: {trouble.strerror}."
        ) from None


def _run(main: Callable[[], object], fail: Fail) -> int:
    """Run to the end, and say in one line what ended it if that was trouble."""
    ended_by: BaseException | None = None
    try:
        _run_async(main)
    except* (
        LedgerError,
        MaxIntensityReached,
        SettingsRefused,
        BooksInUse,
        BooksCorrupt,
        OSError,
    ) as trouble:
        ended_by = _innermost(trouble)
    if isinstance(ended_by, SettingsRefused):
        raise ended_by
    return 0 if ended_by is None else fail(ended_by)


def _innermost(group: BaseException) -> BaseException:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group


def _arm(settings: Settings, *, allowed: bool) -> None:
    """Arm the failpoint of the settings, if there is one. Raises SettingsRefused."""
    if settings.failpoint is not None and not allowed:
        raise SettingsRefused(
            "failpoint (ENGINE_FAILPOINT): refused, since it ends the engine on purpose. For a "
            "rehearsal put failpoints_allowed = true into the settings file."
        )
    try:
        arm(settings.failpoint)
    except FailpointRefused as refused:
        raise SettingsRefused(f"failpoint (ENGINE_FAILPOINT): {refused}.") from None


def dev(settings: Settings, fail: Fail) -> int:
    """Everything in one process and on loopback: the first minute, and every day after."""
    _arm(settings, allowed=True)
    _say_what_dev_ignores(settings)
    settings = msgspec.structs.replace(
        settings,
        host=LOOPBACK,
        # The simulator's pages name the port, so it is chosen before anything is built.
        port=settings.port or _free_port(),
        fees=settings.fees or DEV_FEES,
        database_url=None,
    )
    _check(settings)
    try:
        check_can_listen(LOOPBACK, settings.port, instead=ANOTHER_DEV_PORT)
    except CannotListen as trouble:
        return fail(trouble)
    data_dir = Path(settings.data_dir)
    postgres = EmbeddedPostgres(data_dir, lay_wal=True)
    try:
        postgres.start()
    except EmbeddedPostgresError as trouble:
        return fail(trouble)

    def ready(port: int) -> None:
        running.say(running.banner(settings, port, data_dir))

    try:
        return _run(
            functools.partial(
                running.run_engine,
                settings,
                dsn=postgres.dsn,
                dev=True,
                telemetry=_telemetry(settings),
                books=data_dir / BOOKS,
                ready=ready,
            ),
            fail,
        )
    finally:
        postgres.stop()


def _check(settings: Settings) -> None:
    """Refuse now what the parts would refuse once a database runs. Raises SettingsRefused."""
    fee_schedules(settings)
    simulator_config(settings)


def _say_what_dev_ignores(settings: Settings) -> None:
    if settings.host != LOOPBACK:
        _note(
            f"host (ENGINE_HOST) {settings.host} is ignored: `engine dev` has a well-known key and "
            f"binds {LOOPBACK} only. Other addresses are for `engine serve`."
        )
    if settings.database_url is not None:
        _note(
            "database_url (DATABASE_URL) is ignored: `engine dev` brings its own Postgres. Yours "
            "is for `engine serve`."
        )


def _note(text: str) -> None:
    sys.stderr.write(f"engine: {text}\n")


def _free_port() -> int:
    with socket.create_server((LOOPBACK, 0)) as probe:
        return int(probe.getsockname()[1])


def serve(settings: Settings, fail: Fail) -> int:
    """Serve on somebody else's Postgres."""
    _arm(settings, allowed=settings.failpoints_allowed)
    if settings.database_url is None:
        raise SettingsRefused(NO_DATABASE)
    if not settings.api_keys:
        raise SettingsRefused(
            "no API keys: add [[api_keys]] with sha256 and merchant to the settings file "
            "(--config or ENGINE_CONFIG)."
        )
    if settings.simulator.url is None:
        raise SettingsRefused(
            "no gateway: set `url` under [simulator] in the settings file to the address of "
            "`engine gateway-simulator`."
        )
    _check(settings)
    try:
        check_can_listen(settings.host, settings.port, instead=ANOTHER_PORT)
    except CannotListen as trouble:
        return fail(trouble)
    telemetry = _telemetry(settings)
    return _run(
        functools.partial(
            running.run_engine,
            settings,
            dsn=settings.database_url,
            dev=False,
            telemetry=telemetry,
            books=None,
            ready=lambda port: telemetry.log("serving", host=settings.host, port=port),
        ),
        fail,
    )


def _with_database(settings: Settings, fail: Fail, use: Callable[[str], int]) -> int:
    """Call `use` with the address of the database: DATABASE_URL's, or the embedded one's."""
    try:
        if settings.database_url is not None:
            return use(settings.database_url)
        data_dir = Path(settings.data_dir).expanduser()
        # The second is there first: an engine that is only starting is waited for.
        if not any((data_dir / name).exists() for name in ("postgres", "engine.lock")):
            raise SettingsRefused(
                f"{NO_DATABASE} (There is no database of `engine dev` in "
                f"{settings.data_dir}; where it was told another folder, add --data FOLDER.)"
            )
        with attached(Path(settings.data_dir)) as dsn:
            return use(dsn)
    except EmbeddedPostgresError as trouble:
        return fail(trouble)


def migrate(settings: Settings, fail: Fail) -> int:
    """Apply what is missing, and say what was applied."""

    def use(dsn: str) -> int:
        async def main() -> None:
            applied = await migrating.migrate(dsn)
            for migration in applied:
                running.say(f"applied {migration.name}\n")
            if not applied:
                running.say("the schema is up to date\n")

        return _run(main, fail)

    return _with_database(settings, fail, use)


def _books_of_the_gateway(settings: Settings, folder: str | None) -> Path | None:
    """The simulator's books in the folder that was named, or in development in our own."""
    if folder is not None:
        books = Path(folder) / BOOKS
        if not books.is_file():
            raise SettingsRefused(f"--books: there is no {BOOKS} in {folder}.")
        return books
    books = Path(settings.data_dir) / BOOKS
    return books if settings.database_url is None and books.exists() else None


def _keep_report(data_dir: Path, encoded: bytes) -> None:
    """Where the engine finds it that answers `GET /v1/ledger/verify`."""
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        (data_dir / VERIFICATION).write_bytes(encoded)
    except OSError as trouble:
        _note(
            f"the report was not kept for GET /v1/ledger/verify: "
            f"{data_dir / VERIFICATION}: {trouble.strerror}"
        )


def verify(
    settings: Settings, fail: Fail, *, as_json: bool, now_ms: int, books_folder: str | None = None
) -> int:
    """Prove the books, and compare them with the gateway's where those are at hand."""
    from engine.app.witness import simulator_witness
    from engine.ledger.verify import render
    from engine.ledger.verify import verify as verify_ledger

    books = _books_of_the_gateway(settings, books_folder)
    witness = None if books is None else simulator_witness(books)

    def use(dsn: str) -> int:
        holds = False
        encoded = b""

        async def main() -> None:
            nonlocal holds, encoded

            def progress(check: str, rows: int) -> None:
                if not as_json and sys.stderr.isatty():
                    sys.stderr.write(f"\r{check}: {rows:,} rows\x1b[K")

            report = await verify_ledger(dsn, witness=witness, now_ms=now_ms, progress=progress)
            if not as_json and sys.stderr.isatty():
                sys.stderr.write("\r\x1b[K")
            holds = report.holds
            encoded = msgspec.json.encode(report)
            text = encoded.decode() if as_json else render(report)
            running.say(f"{text}\n")

        status = _run(main, fail)
        if encoded:
            _keep_report(Path(settings.data_dir), encoded)
        return status or (0 if holds else 1)

    return _with_database(settings, fail, use)


def gateway_simulator(
    settings: Settings,
    fail: Fail,
    *,
    port: int,
    latency_ms: float | None,
    rates: dict[str, float],
    webhook_url: str | None,
) -> int:
    """The simulator as a process of its own, with its own books in the data directory."""
    from engine.gateways.simulator_http import serve_simulator

    try:
        check_can_listen(settings.host, port, instead=ANOTHER_PORT)
    except CannotListen as trouble:
        return fail(trouble)
    data_dir = Path(settings.data_dir)
    data_dir.mkdir(parents=True, exist_ok=True)
    config = simulator_config(
        msgspec.structs.replace(
            settings,
            public_url=f"http://{settings.host}:{port}",
            simulator=msgspec.structs.replace(
                settings.simulator,
                latency_ms=latency_ms if latency_ms is not None else settings.simulator.latency_ms,
                rates={**settings.simulator.rates, **rates},
            ),
        )
    )

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            serving = functools.partial(
                serve_simulator,
                settings.host,
                port,
                books_path=data_dir / BOOKS,
                config=config,
                webhook_url=webhook_url,
                say=_note,
            )
            bound = await tasks.start(serving)
            running.say(f"The simulator gateway listens on http://{settings.host}:{bound}\n")
            await running.wait_signal()
            tasks.cancel_scope.cancel()

    return _run(main, fail)
