"""The command line: `engine dev | serve | migrate | verify | gateway-simulator | simulate`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from engine import __version__
from engine.config import DATA_DIR_DEFAULT, Settings, SettingsRefused, load_settings

USAGE_ERROR = 2


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns its exit status: 0 done, 1 not, 2 it was asked wrongly."""
    chosen = _parser().parse_args(arguments)
    try:
        run: Callable[[argparse.Namespace, Settings], int] = chosen.run
        return run(chosen, _settings(chosen))
    except SettingsRefused as refused:
        print(f"engine: {refused}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="engine", description="A payment processing engine with a double-entry ledger."
    )
    parser.add_argument("--version", action="version", version=f"engine {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[..., int], summary: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=summary, description=summary)
        sub.add_argument("--config", metavar="FILE", help="settings in TOML (or ENGINE_CONFIG)")
        sub.set_defaults(run=run)
        return sub

    def data_dir(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--data",
            metavar="DIR",
            help=f"the data directory (or ENGINE_DATA_DIR; default {DATA_DIR_DEFAULT})",
        )

    dev = command("dev", _dev, "Run everything here: embedded Postgres and simulator gateway.")
    data_dir(dev)
    dev.add_argument("--port", type=int, help="the port on 127.0.0.1 (default 8080; 0: any)")

    serve = command("serve", _serve, "Serve on the Postgres of DATABASE_URL.")
    serve.add_argument("--host", help="the address to bind (default 127.0.0.1)")
    serve.add_argument("--port", type=int, help="the port (default 8080)")
    data_dir(serve)

    migrate = command("migrate", _migrate, "Bring the database's schema up to date.")
    data_dir(migrate)

    verify = command("verify", _verify, "Prove the books; exit status 0 when everything holds.")
    data_dir(verify)
    verify.add_argument(
        "--books",
        metavar="FOLDER",
        help="compare with the books of a simulator that runs by itself: its --data folder",
    )
    verify.add_argument("--json", action="store_true", help="the report as JSON")

    simulator = command(
        "gateway-simulator", _gateway_simulator, "Run the simulator gateway as its own process."
    )
    data_dir(simulator)
    simulator.add_argument("--host", help="the address to bind (default 127.0.0.1)")
    simulator.add_argument("--port", type=int, help="the port (default 8090)")
    simulator.add_argument("--latency-ms", type=float, help="added to every reply")
    simulator.add_argument(
        "--rate",
        action="append",
        default=[],
        metavar="FAULT=SHARE",
        help="share of calls (0 to 1) that meet a fault: unreachable, timeout_before, "
        "timeout_after, server_error, decline; may be repeated",
    )
    simulator.add_argument("--webhook-url", metavar="URL", help="where webhooks are sent")

    _simulate_options(
        command("simulate", _simulate, "Run the whole engine on seeds, under every fault.")
    )
    return parser


def _simulate_options(simulate: argparse.ArgumentParser) -> None:
    which = simulate.add_mutually_exclusive_group()
    which.add_argument("--seed", type=int, help="replay one seed and print what happened")
    which.add_argument("--seeds", type=int, default=100, help="run so many (default 100)")
    simulate.add_argument("--first", type=int, default=0, help="the first of them (default 0)")
    simulate.add_argument(
        "--without", default="", metavar="KIND,...", help="kinds of faults to leave out of --seed"
    )
    simulate.add_argument("--clients", type=int, help="at most so many clients, for --seed")
    simulate.add_argument("--requests", type=int, help="at most so many requests of each")
    simulate.add_argument("--report", metavar="FILE", help="write the report as JSON as well")
    simulate.add_argument("--processes", type=int, help="how many cores to use (default all)")


def _settings(chosen: argparse.Namespace) -> Settings:
    file = chosen.config or os.environ.get("ENGINE_CONFIG")
    flags = {
        "host": getattr(chosen, "host", None),
        "port": getattr(chosen, "port", None),
        "data_dir": getattr(chosen, "data", None),
    }
    return load_settings(file=Path(file) if file else None, environ=os.environ, flags=flags)


def _fail(message: object) -> int:
    print(f"engine: {message}", file=sys.stderr)
    return 1


# Imports stand in the commands: `engine --help` and refused settings need none of the weight.


def _dev(chosen: argparse.Namespace, settings: Settings) -> int:
    from engine.app.commands import dev

    return dev(settings, _fail)


def _serve(chosen: argparse.Namespace, settings: Settings) -> int:
    from engine.app.commands import serve

    return serve(settings, _fail)


def _migrate(chosen: argparse.Namespace, settings: Settings) -> int:
    from engine.app.commands import migrate

    return migrate(settings, _fail)


def _verify(chosen: argparse.Namespace, settings: Settings) -> int:
    from engine.app.commands import verify

    return verify(
        settings,
        _fail,
        as_json=chosen.json,
        now_ms=time.time_ns() // 1_000_000,
        books_folder=chosen.books,
    )


def _rates(given: list[str]) -> dict[str, float]:
    rates = {}
    for text in given:
        name, _, share = text.partition("=")
        try:
            rates[name] = float(share)
        except ValueError:
            raise SettingsRefused(f"--rate {text}: write FAULT=SHARE, as decline=0.05.") from None
    return rates


def _gateway_simulator(chosen: argparse.Namespace, settings: Settings) -> int:
    from engine.app.commands import gateway_simulator

    return gateway_simulator(
        settings,
        _fail,
        port=8090 if chosen.port is None else chosen.port,
        latency_ms=chosen.latency_ms,
        rates=_rates(chosen.rate),
        webhook_url=chosen.webhook_url,
    )


def _simulate(chosen: argparse.Namespace, settings: Settings) -> int:
    from engine.app.simulating import simulate_one, simulate_seeds

    if chosen.seed is not None:
        return simulate_one(
            chosen.seed,
            _fail,
            without=tuple(kind for kind in chosen.without.split(",") if kind),
            clients=chosen.clients,
            requests=chosen.requests,
        )
    if chosen.seeds < 1:
        raise SettingsRefused("--seeds must be at least 1.")
    return simulate_seeds(
        chosen.first,
        chosen.seeds,
        _fail,
        report_file=Path(chosen.report) if chosen.report else None,
        processes=chosen.processes,
    )


if __name__ == "__main__":
    sys.exit(main())
