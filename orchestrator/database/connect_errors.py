"""The classes of a failed connection: cause, outlook, hint, by SQLSTATE and type, never by message. Pure: no I/O.

Messages are localised, change with versions, and may quote what the person typed.
"""

from __future__ import annotations

import socket
import ssl
from typing import Literal

import asyncpg
import msgspec

Outlook = Literal["transient", "ambiguous", "hopeless"]


class Failure(msgspec.Struct, frozen=True):
    """One failed try: `cause` is a stable word for logs, `outlook` whether waiting can help, `hint` where to look."""

    cause: str
    outlook: Outlook
    hint: str
    sqlstate: str | None = None


class StandbyError(Exception):
    """The server is a read-only standby while something must be written."""


_STOPPING = Failure("stopping", "transient", "The server is shutting down.")
_PARAMETER = Failure("parameter", "hopeless", "The server refuses a parameter of DATABASE_URL: remove it.")
_CREDENTIALS = Failure(
    "credentials",
    "ambiguous",
    "The server refuses this user or password, or pg_hba.conf has no line for it: check DATABASE_URL. A data volume"
    " that exists keeps the password it was made with, whatever POSTGRES_PASSWORD says now.",
)

# PostgreSQL manual, appendix A. By whole SQLSTATE, then by class (the first two characters).
_BY_SQLSTATE: dict[str, Failure] = {
    "57P03": Failure("starting_up", "transient", "The server is starting up or shutting down."),
    "57P01": _STOPPING,
    "57P02": _STOPPING,
    "57P05": _STOPPING,
    "53300": Failure(
        "too_many_connections", "transient", "Every connection slot is taken: raise max_connections or stop clients."
    ),
    "28000": _CREDENTIALS,
    "28P01": _CREDENTIALS,
    "3D000": Failure("no_database", "ambiguous", "The server has no such database: check its name, or create it."),
    "42501": Failure("not_permitted", "ambiguous", "The user may not connect: GRANT CONNECT ON DATABASE … TO …"),
    # A start-up parameter that is unknown, or has a value that is none.
    "42704": _PARAMETER,
    "22023": _PARAMETER,
    "42602": _PARAMETER,
    "55P02": _PARAMETER,
}
_POOLED = Failure(
    "shared_session",
    "transient",
    "A pooler in transaction mode gave the session to others: set MIGRATION_DATABASE_URL to the server itself.",
)
# invalid_sql_statement_name, duplicate_prepared_statement
POOLER_SQLSTATES = frozenset({"26000", "42P05"})
_BY_SQLSTATE |= dict.fromkeys(POOLER_SQLSTATES, _POOLED)
_BY_CLASS: dict[str, Failure] = {
    "53": Failure("out_of_resources", "transient", "The server is out of disk, memory or connections."),
    "08": Failure("closed", "transient", "The connection was closed while logging in: the server may be starting."),
}
_OTHER_SQLSTATE = Failure("server_error", "transient", "The server refused the login; its own log says more.")

_BY_TYPE: tuple[tuple[type[BaseException], Failure], ...] = (
    (
        asyncpg.TargetServerAttributeNotMatched,
        Failure("no_matching_host", "transient", "No host has the role that is needed (target_session_attrs) yet."),
    ),
    (
        asyncpg.ClientConfigurationError,
        Failure("configuration", "hopeless", "DATABASE_URL cannot be used as it is; see `orchestrator config`."),
    ),
    (
        socket.gaierror,
        Failure("name_not_resolved", "transient", "No address for this host: check its name, and the network of both."),
    ),
    (
        ssl.SSLCertVerificationError,
        Failure("certificate", "ambiguous", "The server's certificate is not trusted: check sslmode and sslrootcert."),
    ),
    (ssl.SSLError, Failure("tls", "ambiguous", "The TLS handshake failed: check sslmode.")),
    (
        ConnectionRefusedError,
        Failure("refused", "transient", "Nothing listens there yet: check that the server runs, and the port."),
    ),
    (
        FileNotFoundError,
        Failure("no_socket", "transient", "There is no such socket yet: check the server, and the directory."),
    ),
    (
        TimeoutError,
        Failure("timeout", "transient", "No answer within DB_CONNECT_TIMEOUT: check the network and firewalls."),
    ),
    (ConnectionResetError, _BY_CLASS["08"]),
    (ConnectionAbortedError, _BY_CLASS["08"]),
    (BrokenPipeError, _BY_CLASS["08"]),
    (
        # asyncpg's own, where the server answers the TLS request with no
        ConnectionError,
        Failure("tls_refused", "ambiguous", "The server speaks no TLS: enable ssl there, or set sslmode=prefer."),
    ),
    (asyncpg.InterfaceError, _BY_CLASS["08"]),
    (asyncpg.InternalClientError, _BY_CLASS["08"]),
)
_OTHER = Failure("unreachable", "transient", "Check host and port in DATABASE_URL, and that the server runs.")

# What a try to connect, or a session that is lost, may raise.
CONNECTION_ERRORS = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


def classify(error: BaseException) -> Failure:
    """Sort a failed try by SQLSTATE and type, never by message."""
    if isinstance(error, asyncpg.PostgresError):
        sqlstate = error.sqlstate or ""
        failure = _BY_SQLSTATE.get(sqlstate) or _BY_CLASS.get(sqlstate[:2]) or _OTHER_SQLSTATE
        return msgspec.structs.replace(failure, sqlstate=sqlstate)
    return next((failure for kind, failure in _BY_TYPE if isinstance(error, kind)), _OTHER)


def is_connection_loss(error: BaseException) -> bool:
    """Whether `error` means that the session is gone, rather than that a statement failed."""
    if isinstance(error, asyncpg.PostgresError):
        sqlstate = error.sqlstate or ""
        return sqlstate.startswith("08") or sqlstate in {"57P01", "57P02", "57P03", "57P05"}
    return isinstance(error, (*CONNECTION_ERRORS, EOFError))
