"""Whether an address can be listened on, asked before anything is made for it."""

from __future__ import annotations

import errno
import socket


class CannotListen(Exception):
    """The address cannot be listened on. The message says what to do."""


def check_can_listen(host: str, port: int, *, instead: str) -> None:
    """Raise CannotListen where somebody else has the port; `instead` says how to take another."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.create_server(address[:2], family=family):
            pass
    except OSError as trouble:
        raise cannot_listen(trouble, host, port, instead=instead) from None


def cannot_listen(trouble: OSError, host: str, port: int, *, instead: str) -> CannotListen:
    """Say what an attempt to listen met."""
    if trouble.errno == errno.EADDRINUSE:
        return CannotListen(f"port {port} is taken: choose another with {instead}")
    reason = (trouble.strerror or str(trouble)).lower()
    if trouble.errno == errno.EACCES:
        reason = f"this user may not, ports below 1024 are reserved; choose another with {instead}"
    return CannotListen(f"cannot listen on {host}, port {port}: {reason}")
