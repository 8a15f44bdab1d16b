"""The lock that makes one process the holder of a data directory."""

import fcntl
import os
import shlex
import sys
import time
from pathlib import Path

from engine.ledger.embedded_account import EmbeddedPostgresError


class DataDirectoryInUseError(EmbeddedPostgresError):
    """Another process holds the data directory. `pid` is its process id, when known."""

    def __init__(self, data_dir: Path, holder: str) -> None:
        pid, _, command = holder.partition("\n")
        self.pid = int(pid) if pid.isdigit() else None
        who = f"process {pid} ({command.strip()})" if self.pid else "another process"
        super().__init__(
            f"the data directory {data_dir} is in use by {who}: stop it, or name another directory"
        )


class DirectoryLock:
    """The kernel lock that says whose data directory it is; its file names the holder."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._descriptor: int | None = None

    @property
    def held(self) -> bool:
        """Whether this process has the lock."""
        return self._descriptor is not None

    def acquire(self, *, patience_s: float) -> None:
        """Take the lock, or keep it. DataDirectoryInUseError if another has it for `patience_s`."""
        if self.held:
            return
        try:
            self._data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self._data_dir / "engine.lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise EmbeddedPostgresError(
                f"cannot write to the data directory {self._data_dir} ({error.strerror}): give "
                f"this user access to it, or name another data directory"
            ) from error
        try:
            self._lock(descriptor, time.monotonic() + patience_s)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n{shlex.join(sys.argv)}\n".encode(), 0)

    def release(self) -> None:
        """Give the lock back. The file stays: removing it would let two processes hold a lock."""
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None

    def _lock(self, descriptor: int, deadline: float) -> None:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    holder = os.pread(descriptor, 4096, 0).decode(errors="replace")
                    raise DataDirectoryInUseError(self._data_dir, holder) from None
            else:
                return
            time.sleep(0.01)
