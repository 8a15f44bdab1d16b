"""The system account the embedded Postgres runs as, and what it may reach.

Postgres refuses to run as root. A normal user runs it as itself and nothing here happens. Root runs
it as the owner of the data, or, for new data, as the system user `pgserver`, which is made when it
is missing. The permissions of folders above the data are never changed; where that user cannot
pass through them (a project below a folder of mode 0700), Postgres gets the one Linux capability
that lets it read and pass.
"""

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep

SYSTEM_USER = "pgserver"
USERADD_PATIENCE_S = 5.0

# The least first. Container runtimes often withhold the first of the two and grant the second.
_CAPABILITIES = ("dac_read_search", "dac_override")


class EmbeddedPostgresError(Exception):
    """The embedded Postgres cannot do what was asked; the message says what to do about it."""


@dataclass(frozen=True, slots=True)
class Account:
    """Who runs Postgres. `prefix` goes before a command that is to run as that user."""

    uid: int
    gid: int
    prefix: tuple[str, ...] = ()

    def own(self, path: Path) -> None:
        """Give one folder to this account, and all that is in it; only root needs to."""
        if os.geteuid() != 0:
            return
        for entry in _tree(path):
            os.chown(entry, self.uid, self.gid, follow_symlinks=False)


def choose_account(cluster: Path, *, enter: Sequence[Path], read: Sequence[Path]) -> Account:
    """The account for the database in `cluster`, able to `enter` folders and `read` files.

    Raises EmbeddedPostgresError when the data belong to somebody else, when the system user cannot
    be made, or when no permission at hand opens the way to the data and the binaries.
    """
    owner = cluster.stat() if cluster.exists() else None
    if os.geteuid() != 0:
        if owner is not None and owner.st_uid != os.geteuid():
            raise EmbeddedPostgresError(
                f"{cluster} belongs to {_name_of(owner.st_uid)}, and Postgres only runs as the "
                f"owner of its data: run the engine as that user, or name another data directory"
            )
        return Account(os.geteuid(), os.getegid())
    if owner is None or owner.st_uid == 0:
        entry = _system_user()
        uid, gid = entry.pw_uid, entry.pw_gid
    else:
        uid, gid = owner.st_uid, owner.st_gid
    return Account(uid, gid, _prefix_that_reaches(uid, gid, enter, read))


def _prefix_that_reaches(
    uid: int, gid: int, enter: Sequence[Path], read: Sequence[Path]
) -> tuple[str, ...]:
    setpriv = _find_tool("setpriv")
    if setpriv is None:
        raise EmbeddedPostgresError(
            "Postgres refuses to run as root, and the command setpriv (package util-linux), which "
            "switches to another user, is missing: install it, or run the engine as a normal user"
        )
    switch = (setpriv, f"--reuid={uid}", f"--regid={gid}", "--clear-groups", "--no-new-privs")
    # Postgres checks its own files with access(2), which drops the capabilities of a process that
    # is not root unless this bit is set; without it the capability has no effect there.
    fixed = (*switch, "--securebits=+no_setuid_fixup")
    raised = [(*fixed, f"--inh-caps=+{c}", f"--ambient-caps=+{c}", "--") for c in _CAPABILITIES]
    script = (
        'n=$1; shift; while [ "$n" -gt 0 ]; do cd "$1" || exit 1; shift; n=$((n - 1)); done; '
        'for file; do [ -r "$file" ] || exit 1; done'
    )
    probe = ("/bin/sh", "-c", script, "sh", str(len(enter)), *map(str, enter), *map(str, read))
    for prefix in ((*switch, "--"), *raised):
        tried = subprocess.run((*prefix, *probe), check=False, cwd="/", capture_output=True)  # noqa: S603
        if tried.returncode == 0:
            return prefix
    places = ", ".join(str(p) for p in (*enter, *read))
    raise EmbeddedPostgresError(
        f"the user {_name_of(uid)}, as whom root runs Postgres, cannot reach one of: {places}. Run "
        f"the engine as a normal user, or move it to a folder that others may pass through"
    )


def _system_user() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        pass
    useradd = _find_tool("useradd")
    if useradd is None:
        raise EmbeddedPostgresError(
            f"Postgres refuses to run as root, and there is no useradd to make the system user "
            f"{SYSTEM_USER}: make that user by hand, or run the engine as a normal user"
        )
    command = (useradd, "--system", "--user-group", "--no-create-home", "--home-dir=/nonexistent")
    made = subprocess.run(  # noqa: S603  (a list of constants)
        (*command, "--shell=/usr/sbin/nologin", SYSTEM_USER),
        check=False,
        capture_output=True,
        text=True,
    )
    # Another process may be making the same user at this moment and hold the lock of useradd.
    deadline = monotonic() + (0.0 if made.returncode == 0 else USERADD_PATIENCE_S)
    while True:
        try:
            return pwd.getpwnam(SYSTEM_USER)
        except KeyError:
            if monotonic() >= deadline:
                break
        sleep(0.05)
    raise EmbeddedPostgresError(
        f"Postgres refuses to run as root, and the system user {SYSTEM_USER} cannot be made "
        f"({made.stderr.strip()}): make it by hand, or run the engine as a normal user"
    )


def _find_tool(name: str) -> str | None:
    # Root's path often lacks the folders for administration.
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin:/sbin:/bin")


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user id {uid}"


def _tree(path: Path) -> Iterator[str]:
    yield str(path)
    for folder, folders, files in os.walk(path):
        yield from (os.path.join(folder, name) for name in (*folders, *files))
