"""Runs one Postgres and stops it when the engine that asked for it is gone.

Run by path in its own process, never imported, and with the standard library's small modules only,
because the engine waits for it:

    python -I -S embedded_watchdog.py FAST_S IMMEDIATE_S COMMAND [ARGUMENT ...]

Standard input is the read end of a pipe whose write end only the engine holds. The kernel closes
that end however the engine ends, also by `kill -9`, and end-of-file means: stop Postgres. First a
fast shutdown (SIGINT: roll back, checkpoint, exit); after FAST_S seconds an immediate one (SIGQUIT:
the next start recovers from the write-ahead log); after IMMEDIATE_S more, SIGKILL.

The watchdog is the parent of Postgres, so it can never signal a reused process id, and there is no
moment at which Postgres runs unwatched. It writes the process id of Postgres to standard output,
and ends when Postgres has ended, with its exit status (128 + n for a death by signal n).
"""

import contextlib
import os
import select
import signal
import sys
import time

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Child:
    """The process that is watched. Its id stays ours until `ended` has reaped it."""

    def __init__(self, command: list[str]) -> None:
        self.exit_code: int | None = None
        self.pid = _spawn(command)

    def ended(self) -> bool:
        """Whether the process is over; then `exit_code` is set (128 + n for signal n)."""
        if self.exit_code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                self.exit_code = code if code >= 0 else 128 - code
        return self.exit_code is not None


def main(argv: list[str]) -> int:
    """Run the command of `argv` until it ends; see the module for the arguments."""
    fast_s, immediate_s, command = float(argv[1]), float(argv[2]), argv[3:]
    signals = _signals_as_bytes()
    child = Child(command)
    # The engine may have died already; its end-of-file is seen below.
    with contextlib.suppress(OSError):
        os.write(1, b"%d\n" % child.pid)
    os.close(1)
    _wait_until_asked(child, signals)
    for stop_signal, patience_s in (
        (signal.SIGINT, fast_s),
        (signal.SIGQUIT, immediate_s),
        (signal.SIGKILL, None),
    ):
        if child.ended():
            break
        os.kill(child.pid, stop_signal)
        _wait_for_end(child, signals, patience_s)
    assert child.exit_code is not None
    return child.exit_code


def _signals_as_bytes() -> int:
    """A file descriptor on which every signal that matters arrives as one byte, its number."""
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, *STOP_SIGNALS):
        signal.signal(number, lambda *_: None)
    return read_end


def _spawn(command: list[str]) -> int:
    """Start the command with no standard input and its output on our standard error."""
    child = os.fork()
    if child:
        return child
    try:
        # Python ignores these two, and what is ignored stays so across an exec.
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)
        os.execv(command[0], command)  # noqa: S606  (a list of arguments, no shell is wanted)
    except OSError as error:
        os.write(2, f"cannot run {command[0]}: {error.strerror}\n".encode())
    os._exit(127)


def _wait_until_asked(child: Child, signals: int) -> None:
    """Return at end-of-file, at a signal to stop, or when the child has ended.

    A child that is stopped and continued also sends SIGCHLD, and that is no reason to return.
    """
    while not child.ended():
        readable, _, _ = select.select([0, signals], [], [])
        if signals in readable and set(os.read(signals, 64)).intersection(STOP_SIGNALS):
            return
        if 0 in readable and not os.read(0, 64):
            return


def _wait_for_end(child: Child, signals: int, patience_s: float | None) -> None:
    """Return when the child has ended, or after `patience_s` seconds."""
    deadline = None if patience_s is None else time.monotonic() + patience_s
    while not child.ended():
        left_s = None if deadline is None else deadline - time.monotonic()
        if left_s is not None and left_s <= 0:
            return
        if select.select([signals], [], [], left_s)[0]:
            os.read(signals, 64)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
