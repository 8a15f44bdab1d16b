"""The yardstick: a bare aiohttp JSON echo on uvloop, decoding and encoding with msgspec."""

from __future__ import annotations

import argparse

import msgspec
import uvloop
from aiohttp import web


async def echo(request: web.Request) -> web.Response:
    """Decode and encode, nothing else."""
    body = msgspec.json.encode(msgspec.json.decode(await request.read()))
    return web.Response(body=body, content_type="application/json")


def main() -> None:
    """Serve on loopback until ended."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    chosen = parser.parse_args()
    application = web.Application()
    application.router.add_post("/v1/payments/authorize", echo)
    uvloop.install()
    web.run_app(application, host="127.0.0.1", port=chosen.port, access_log=None, print=None)


if __name__ == "__main__":
    main()
