"""The data directory of the embedded server: its lock, and files of ours where others can put links.

Touches: the data directory; a child process that looks whether its user can reach a directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import pwd
import shutil
import stat
import tempfile
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.embedded.errors import DataDirectoryInUseError, EmbeddedServerError
from orchestrator.embedded.process import Account, output_of
from orchestrator.errors import ConfigurationError, Problem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

# Time for the processes of a killed predecessor to go.
_PREDECESSOR_TIMEOUT_S = 10.0
SOCKET_PREFIX = "orchestrator-pg-"
SOCKETS = Path("/tmp")  # noqa: S108  # mkdtemp makes the directory; TMPDIR may be too long for a socket's path


def make_data_dir(data_dir: Path) -> Path:
    """The directory as an absolute path, made where it is missing.

    Raises:
        ConfigurationError: it cannot be made, or not be written to.
    """
    data_dir = data_dir.expanduser().absolute()
    try:
        # As root others must pass through, to the server's own 0700 directory.
        data_dir.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=data_dir):
            pass
    except OSError as error:
        raise ConfigurationError(
            [
                Problem(
                    variable="--data-dir",
                    problem=f"{data_dir} cannot be written ({error.strerror})",
                    expected="a directory of yours, or one that can be made",
                    example="--data-dir ~/.local/share/orchestrator",
                )
            ]
        ) from error
    return data_dir


@asynccontextmanager
async def lock(data_dir: Path) -> AsyncIterator[int]:
    """Hold the data directory; yields the descriptor, which every child inherits.

    flock belongs to the open file, so it is free only when the last process that inherited it has gone: whoever gets it
    knows that no process of an earlier server is left, however that one ended.
    """
    path = data_dir / "embedded.lock"
    fd = open_own(path, os.O_RDWR | os.O_CREAT)
    try:
        deadline = time.monotonic() + _PREDECESSOR_TIMEOUT_S
        while not _try_flock(fd):
            holder = os.pread(fd, 32, 0).decode(errors="replace").strip()
            if _is_alive(holder) or time.monotonic() > deadline:
                raise DataDirectoryInUseError(
                    f"{data_dir} is in use by process {holder or 'unknown'}, which runs an embedded Postgres on it",
                    remedy=f"Stop process {holder or 'unknown'}, or give this one a directory of its own: --data-dir.",
                    facts={"data_dir": str(data_dir), "holder_pid": int(holder) if holder.isdigit() else None},
                )
            await asyncio.sleep(0.02)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield fd
    finally:
        os.close(fd)


def open_own(path: Path, flags: int) -> int:
    """Open a plain file of ours, made 0600 where it is missing. In a directory of others a link may stand in its place.

    Raises:
        EmbeddedServerError: it is a link, no plain file, has another name as well, or belongs to somebody else.
    """
    try:
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in {errno.ELOOP, errno.ENXIO}:
            raise
        raise _not_ours(path) from error
    found = os.fstat(fd)
    # Whoever owns the directory could make the file at any time: theirs is no worse than a new one.
    owners = {os.geteuid(), path.parent.stat().st_uid}
    if stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and found.st_uid in owners:
        return fd
    os.close(fd)
    raise _not_ours(path)


def write_own(path: Path, text: str, how: int = os.O_CREAT) -> None:
    """Write `text` into a file of ours in place of what it holds, with `O_APPEND` after it; raises as `open_own`."""
    with os.fdopen(open_own(path, os.O_WRONLY | how), "w", encoding="utf-8") as file:
        if not how & os.O_APPEND:
            file.truncate()
        file.write(text)


@contextlib.contextmanager
def held_directory(directory: Path) -> Iterator[Path]:
    """A name for `directory` that stays with it: whoever owns its parent can put another one, or a link, in its place.

    Raises:
        EmbeddedServerError: a link or something else stands there.
    """
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno not in {errno.ELOOP, errno.ENOTDIR}:
            raise
        raise _not_ours(directory) from error
    try:
        yield Path(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def _not_ours(path: Path) -> EmbeddedServerError:
    path = path.parent.resolve() / path.name  # a held directory by the name that people know
    return EmbeddedServerError(
        f"{path} is a link, no plain file, or belongs to another user: nothing was written to it",
        remedy="Look at who can write to that directory; then remove the file, or use another --data-dir.",
        facts={"file": str(path)},
    )


def _try_flock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_alive(pid: str) -> bool:
    """Whether the process lives; a zombie, which holds nothing, does not."""
    try:
        status = Path(f"/proc/{int(pid)}/stat").read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError):
        return False
    return status.rpartition(")")[2].split()[0] not in {"Z", "X"}


def account_for(data_dir: Path) -> Account:
    """Whom the server runs as: as we are, and as root the owner of the data, else `postgres`, else `nobody`.

    Raises:
        ConfigurationError: we are root, and there is nobody else.
    """
    if os.geteuid() != 0:
        return Account()
    for data in data_dir.glob("postgres-*/data"):
        owner = data.stat()
        if owner.st_uid != 0:
            return Account(owner.st_uid, owner.st_gid)
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return Account(entry.pw_uid, entry.pw_gid)
    raise ConfigurationError(
        [
            Problem(
                variable="--embedded",
                problem="Postgres refuses to run as root, and there is no other user to run it as",
                expected="a user named `postgres` or `nobody`, or to be started as an ordinary user",
                example="useradd --system postgres",
            )
        ]
    )


def remove_leftovers(data_dir: Path) -> None:
    """What a start that was killed left behind; the lock is held, so nobody is using it."""
    for link in (*data_dir.glob("postgres-*/socket"), *data_dir.glob(".unfinished-*/socket")):
        with contextlib.suppress(OSError):
            remove_socket_dir(link)
    for path in data_dir.glob(".unfinished-*"):
        shutil.rmtree(path, ignore_errors=True)
        with contextlib.suppress(OSError):
            path.unlink()  # the log of an upgrade


def remove_socket_dir(link: Path) -> None:
    """Remove the link and the socket's directory that it leads to, if that is one of ours."""
    target = link.readlink()
    link.unlink()
    if target.name.startswith(SOCKET_PREFIX) and target.parent == SOCKETS and not target.is_symlink():
        shutil.rmtree(target, ignore_errors=True)


@contextlib.contextmanager
def reach(path: Path, *, directly: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    """A name for the directory `path` that the server's user can open, and the descriptors that the name needs.

    Where a parent is closed to that user (/root is 0700), the directory is opened here and named by its descriptor:
    /proc/self/fd/N leads to it without a look at the parents.
    """
    if directly:
        yield str(path), ()
        return
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}", (fd,)
    finally:
        os.close(fd)


async def is_reachable(directory: Path, account: Account) -> bool:
    """Whether `account` can enter the directory by its path."""
    if account.uid < 0:
        return True
    code, _ = await output_of(["/bin/sh", "-c", 'test -x "$1"', "sh", str(directory)], account)
    return code == 0
