"""A timer finer than the event loop's, which rounds to milliseconds: the kernel's timerfd."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import time
from collections.abc import Callable

_CLOCK_MONOTONIC = 1


class _Timespec(ctypes.Structure):
    _fields_ = (("s", ctypes.c_long), ("ns", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class PreciseTimer:
    """Calls back at a time of `time.perf_counter`, some tens of microseconds late at most.

    Where the system has no timerfd, the event loop's own timers have to do.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, wake: Callable[[], None]) -> None:
        self._loop = loop
        self._wake = wake
        self._libc = ctypes.CDLL(None, use_errno=True)
        create = getattr(self._libc, "timerfd_create", None)
        self._file = -1 if create is None else create(_CLOCK_MONOTONIC, os.O_NONBLOCK)
        if self._file >= 0:
            loop.add_reader(self._file, self._expired)

    def call_at(self, at: float) -> None:
        """Wake once at this time, or at once where it has passed; replaces an earlier call."""
        wait_s = max(at - time.perf_counter(), 0.000001)
        if self._file < 0:
            self._loop.call_later(wait_s, self._wake)
            return
        whole = int(wait_s)
        value = _Timespec(whole, int((wait_s - whole) * 1e9))
        spec = _Itimerspec(_Timespec(0, 0), value)
        self._libc.timerfd_settime(self._file, 0, ctypes.byref(spec), None)

    def _expired(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._file, 8)
        self._wake()

    def close(self) -> None:
        """Give the file back."""
        if self._file >= 0:
            self._loop.remove_reader(self._file)
            os.close(self._file)
            self._file = -1
