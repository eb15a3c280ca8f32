"""One attempt to log in: each address of each host with a time limit of its own, as libpq has it. Touches the network.

Every connection of this program is made here, but for the first one of an embedded server: at the start, for the pool,
for the workers, for the monitor and for commands.
"""

from __future__ import annotations

import asyncio
import errno
import getpass
import os
import socket
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg

from orchestrator.database.addresses import Address, hosts_in_order, look_up
from orchestrator.database.connect_errors import (
    CONNECTION_ERRORS,
    NoAnswerError,
    OwnFaultError,
    PeerError,
    UnreachableError,
    classify,
)
from orchestrator.database.peer import Dialed, Peer
from orchestrator.database.sessions import (
    KEEP_ALIVE_COUNT,
    KEEP_ALIVE_IDLE_S,
    KEEP_ALIVE_INTERVAL_S,
    USER_TIMEOUT_MS,
    Connection,
)
from orchestrator.errors import OrchestratorError

if TYPE_CHECKING:
    from orchestrator.dsn import Dsn

_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE})
# Of several addresses that failed, the one that tells most is the cause: the others stand in the error's notes.
_TELLS_LEAST = ("name_not_resolved", "unreachable", "no_socket", "refused", "timeout", "closed", "no_matching_host")
# SQLSTATEs by which a server says that another one may do: not yet, or no longer, or not at all (libpq, fe-connect.c).
_NEXT_HOST = frozenset({"57P03"})


async def dial(dsn: Dsn, *, limit_s: float, application_name: str, prepares: bool, silence_s: float) -> Any:
    """Log in at the first address that takes us and has the role that `target_session_attrs` asks for.

    Each address has `limit_s` for all of it: the connection, TLS, the login and its role. A server that refuses the
    user, the database or a parameter ends the attempt, as with libpq; everything else goes on to the next address.
    Cancelling closes the socket.

    Raises:
        CONNECTION_ERRORS: of all that failed the error that tells most; its notes name each address and cause.
    """
    wanted = dsn.options.get("target_session_attrs", "any")
    failed: list[tuple[str, Exception]] = []
    for role in ("standby", "any") if wanted == "prefer-standby" else (wanted,):
        for host, port in hosts_in_order(dsn):
            try:
                shuffled = dsn.options.get("load_balance_hosts") == "random"
                found = await look_up(host, port, limit_s=limit_s, shuffled=shuffled)
            except (socket.gaierror, NoAnswerError) as error:
                failed.append((f"{host}:{port}", error))
                continue
            for address in found:
                attempt = _Attempt(dsn, address, application_name, prepares=prepares, silence_s=silence_s)
                try:
                    return await attempt.logged_in(role, limit_s)
                except CONNECTION_ERRORS as error:
                    failed.append((str(address), error))
                    if _ends_the_attempt(error):
                        raise _telling_most(failed) from None
    raise _telling_most(failed) from None


def _ends_the_attempt(error: Exception) -> bool:
    if isinstance(error, OwnFaultError):
        return True
    of_server = isinstance(error, asyncpg.PostgresError) and bool(getattr(error, "severity", None))
    return of_server and getattr(error, "sqlstate", "") not in _NEXT_HOST


def _telling_most(failed: list[tuple[str, Exception]]) -> Exception:
    def rank(entry: tuple[str, Exception]) -> int:
        cause = classify(entry[1]).cause
        return _TELLS_LEAST.index(cause) if cause in _TELLS_LEAST else len(_TELLS_LEAST)

    _, error = max(failed, key=rank)
    if len(failed) > 1:
        for address, each in failed:
            error.add_note(f"{address}: {classify(each).cause}")
    return error


class _Attempt:
    """One login at one address."""

    def __init__(self, dsn: Dsn, address: Address, application_name: str, *, prepares: bool, silence_s: float) -> None:
        self._silence_s = silence_s
        self._dsn, self._address, self._application_name = dsn, address, application_name
        self._prepares = prepares
        binding = dsn.options.get("channel_binding") == "require"
        self._peer = Peer(address, password=dsn.password or os.environ.get("PGPASSWORD"), binding=binding)
        self._has_dialed = False

    async def logged_in(self, role: str, limit_s: float) -> Any:
        connection: Any = None
        try:
            async with asyncio.timeout(limit_s):
                connection = await self._login(limit_s)
                self._peer.stage = "an answer to the first query"
                if not await _has_role(connection, role):
                    raise asyncpg.TargetServerAttributeNotMatched(f"the server is not {role}")  # noqa: TRY301
        except TimeoutError:
            _terminate(connection)
            if self._peer.error is not None:
                raise self._peer.error from None
            raise self._no_answer() from None
        except BaseException:
            _terminate(connection)
            raise
        return connection

    def _no_answer(self) -> NoAnswerError:
        stage = self._peer.stage
        if stage == "a connection":
            hint = "No answer within DB_CONNECT_TIMEOUT: check the network and firewalls."
            return NoAnswerError(stage, "timeout", hint)
        return NoAnswerError(
            stage,
            "no_answer",
            f"The connection was accepted, and then {stage} did not come within DB_CONNECT_TIMEOUT: a pooler that is"
            " paused, a server that is frozen, or something other than Postgres.",
        )

    async def _login(self, limit_s: float) -> Any:
        arguments = self._arguments()
        try:
            return await asyncpg.connect(
                **arguments, loop=Dialed(self._peer, self._dialed), connection_class=Connection, timeout=limit_s + 1
            )
        except (OrchestratorError, OwnFaultError, UnreachableError):
            raise
        except Exception as error:
            raise self._explained(error) from error

    def _arguments(self) -> dict[str, Any]:
        arguments = self._dsn.connect_arguments()
        arguments["host"], arguments["port"] = [self._address.host], [self._address.port]
        arguments["target_session_attrs"] = "any"
        settings = {"application_name": self._application_name, **arguments.pop("server_settings", {})}
        arguments["server_settings"] = settings
        if not self._prepares:
            arguments["statement_cache_size"] = 0
        if self._dsn.user is None and not os.environ.get("PGUSER"):
            try:
                getpass.getuser()
            except (KeyError, OSError):
                raise OwnFaultError(
                    "no_user",
                    f"DATABASE_URL does not name a user, and the user id {os.getuid()} of this process has no name",
                    "Write the user into DATABASE_URL, or set PGUSER.",
                ) from None
        return arguments

    async def _dialed(self, address: Address) -> socket.socket:
        """A socket that is connected, with keep-alive."""
        self._has_dialed = True
        raw: socket.socket | None = None
        try:
            raw = socket.socket(address.family, socket.SOCK_STREAM)
            raw.setblocking(False)  # noqa: FBT003 the standard library's signature
            if address.family != socket.AF_UNIX:
                _keep_alive(raw, self._silence_s)
            await asyncio.get_running_loop().sock_connect(raw, address.at)
        except (TimeoutError, ConnectionError, asyncio.CancelledError):
            _close(raw)
            raise
        except OSError as error:
            _close(raw)
            raise _of_the_system(error, address) from error
        return raw

    def _explained(self, error: Exception) -> Exception:  # noqa: PLR0911 a table of causes
        """What asyncpg raised, as one of CONNECTION_ERRORS that says whose fault it is."""
        if not self._has_dialed:
            return self._own_fault(error)
        if self._peer.error is not None:
            return self._peer.error
        said = self._peer.fields
        if said is not None and not (isinstance(error, asyncpg.PostgresError) and getattr(error, "severity", None)):
            # The server's own words, where asyncpg could not read them, or the connection was closed behind them.
            words = said.get("M", "")
            return PeerError("server_error", "The server refused the login: its message and its log say why.", words)
        if isinstance(error, asyncpg.PostgresError) or (
            isinstance(error, (OSError, asyncpg.TargetServerAttributeNotMatched))
            and isinstance(error, CONNECTION_ERRORS)
        ):
            return error
        if isinstance(error, OSError):
            return _of_the_system(error, self._address)
        if isinstance(error, asyncpg.InterfaceError):
            return PeerError(
                "unsupported_login",
                "The login that the server asks for is not supported here, or has failed.",
                str(error),
            )
        return PeerError(
            "protocol",
            "This program does not understand the server's answer: is it Postgres, and which version?",
            f"{type(error).__name__}: {error}",
        )

    def _own_fault(self, error: Exception) -> Exception:
        """What was wrong before anything was sent: files, users, parameters of our own."""
        if isinstance(error, (asyncpg.ClientConfigurationError, asyncpg.InterfaceError)):
            return OwnFaultError("configuration", str(error), "Correct what it names, then start again.")
        if isinstance(error, OSError) and error.errno in _DESCRIPTORS:
            return _of_the_system(error, self._address)
        named = _unreadable_file(self._dsn)
        if named is not None:
            path, why = named
            return OwnFaultError(
                "file", f"{path}: {why}", "Mount the file where it is named, let this user read it, or set HOME."
            )
        if isinstance(error, ssl.SSLError):
            files = ", ".join(str(path) for path in _files(self._dsn))
            return OwnFaultError(
                "file",
                f"the TLS files cannot be used ({files}): {error}",
                "Check that each is in PEM form, and that sslcert and sslkey belong together.",
            )
        return OwnFaultError("configuration", f"{type(error).__name__}: {error}", "See `orchestrator config`.")


def _terminate(connection: Any) -> None:
    if connection is not None:
        connection.terminate()


def _close(raw: socket.socket | None) -> None:
    if raw is not None:
        raw.close()


def _keep_alive(raw: socket.socket, silence_s: float) -> None:
    """Notice a peer that vanished without a word (a pulled cable, a lost node) after `silence_s`, not in hours."""
    share = min(1.0, silence_s * 1000 / USER_TIMEOUT_MS)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", max(1, int(KEEP_ALIVE_IDLE_S * share))),
        ("TCP_KEEPINTVL", max(1, int(KEEP_ALIVE_INTERVAL_S * share))),
        ("TCP_KEEPCNT", KEEP_ALIVE_COUNT),
        ("TCP_USER_TIMEOUT", max(1000, int(USER_TIMEOUT_MS * share))),
    ):
        if hasattr(socket, name):  # not on every system
            raw.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _of_the_system(error: OSError, address: Address) -> Exception:
    """An OSError of a socket: descriptors and files are ours, everything else is the network."""
    if error.errno in _DESCRIPTORS:
        return OwnFaultError(
            "descriptors",
            "this process has no file descriptor left for a connection",
            "Raise the limit (ulimit -n, or nofile of the container).",
        )
    if error.errno == errno.EAFNOSUPPORT:
        return UnreachableError(
            "unreachable", f"This machine cannot reach the address {address}: the address family is off."
        )
    if address.family == socket.AF_UNIX and error.errno in {errno.ENOENT, errno.ENOTDIR}:
        return UnreachableError("no_socket", f"There is no socket {address} yet: check the server, and the directory.")
    if address.family == socket.AF_UNIX and error.errno in {errno.EACCES, errno.EPERM}:
        return OwnFaultError("file", f"{address}: this user may not open the socket", "Grant it, or change the user.")
    return UnreachableError("unreachable", f"{address} cannot be reached: {error.strerror}.")


_VARIABLES_OF_FILES = (
    ("sslrootcert", "PGSSLROOTCERT", "root.crt"),
    ("sslcert", "PGSSLCERT", "postgresql.crt"),
    ("sslkey", "PGSSLKEY", "postgresql.key"),
    ("sslcrl", "PGSSLCRL", "root.crl"),
)


def _files(dsn: Dsn) -> list[Path]:
    """The files that the login reads, where they are named."""
    named = (dsn.options.get(keyword) or os.environ.get(variable) for keyword, variable, _ in _VARIABLES_OF_FILES)
    return [Path(path) for path in named if path and path != "system"]


def _unreadable_file(dsn: Dsn) -> tuple[Path, str] | None:
    """The first file that is named and cannot be read, or a default one that is there and may not be."""
    for path in _files(dsn):
        try:
            path.open("rb").close()
        except OSError as error:
            return path, error.strerror or type(error).__name__
    try:
        home = Path.home()
    except RuntimeError:
        return None
    for path in (home / ".pgpass", *(home / ".postgresql" / name for *_, name in _VARIABLES_OF_FILES)):
        try:
            path.open("rb").close()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            return path, error.strerror or type(error).__name__
    return None


async def _has_role(connection: Any, role: str) -> bool:
    """Whether the server is what `target_session_attrs` asks for; told at the login, but by poolers (libpq's rules)."""
    if role == "any":
        return True
    settings = connection.get_settings()
    standby = getattr(settings, "in_hot_standby", None)
    read_only = getattr(settings, "default_transaction_read_only", None)
    if standby is None or read_only is None:
        # By simple queries: through a pooler a prepared statement may be gone before it is executed.
        is_standby = await _is_true(connection, "pg_catalog.pg_is_in_recovery()")
        is_read_only = await _is_true(
            connection, "pg_catalog.current_setting('transaction_read_only') OPERATOR(pg_catalog.=) 'on'"
        )
    else:
        is_standby, is_read_only = standby == "on", read_only == "on"
    if role in {"primary", "standby"}:
        return is_standby is (role == "standby")
    return (is_standby or is_read_only) is (role == "read-only")


async def _is_true(connection: Any, condition: str) -> bool:
    return bool(await connection.execute(f"SELECT 1 WHERE {condition}") == "SELECT 1")
