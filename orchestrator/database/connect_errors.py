"""The classes of a failed connection: cause, outlook, hint, by SQLSTATE and type, never by message. Pure: no I/O.

Messages are localised and change with versions: they are shown beside the cause, and nothing is decided by them.
"""

from __future__ import annotations

import errno
import socket
import ssl
from typing import Literal

import asyncpg
import msgspec

Outlook = Literal["transient", "ambiguous", "hopeless"]


class Failure(msgspec.Struct, frozen=True):
    """One failed try: `cause` is a stable word for logs, `outlook` whether waiting can help, `hint` where to look.

    `words` are what the other side said, in one line of at most 300 characters. They may hold what a person typed: they
    go where secrets are taken out (the log, `/health`), and nowhere else. `tried` are addresses, each with its cause.
    """

    cause: str
    outlook: Outlook
    hint: str
    sqlstate: str | None = None
    words: str | None = None
    tried: tuple[str, ...] = ()

    def told(self) -> dict[str, object]:
        """What the other side said, and what was tried where, as facts; empty where there is neither."""
        told: dict[str, object] = {} if self.words is None else {"words": self.words}
        return told if not self.tried else {**told, "tried": list(self.tried)}


class StandbyError(Exception):
    """The server is a read-only standby while something must be written."""


class PeerError(ConnectionError):
    """Whoever answered could not log us in: no Postgres, a way to log in that we lack, an answer without sense.

    `cause` and `hint` as in `Failure`, `words` what the peer sent.
    """

    def __init__(self, cause: str, hint: str, words: str = "") -> None:
        super().__init__(words or hint)
        self.cause, self.hint, self.words = cause, hint, words


class UnreachableError(ConnectionError):
    """The system could not open a connection to this address; `cause` and `hint` as in `Failure`."""

    def __init__(self, cause: str, hint: str) -> None:
        super().__init__(hint)
        self.cause, self.hint = cause, hint


class NoAnswerError(TimeoutError):
    """Nothing came within the time limit; `stage` says what was awaited."""

    def __init__(self, stage: str, cause: str, hint: str) -> None:
        super().__init__(f"no answer: {stage}")
        self.stage, self.cause, self.hint = stage, cause, hint


class OwnFaultError(Exception):
    """Something of this machine's own is missing or broken: a file, a user, the descriptors.

    Waiting does not help. `cause` and `hint` as in `Failure`; the message names the path where there is one.
    """

    def __init__(self, cause: str, message: str, hint: str) -> None:
        super().__init__(message)
        self.cause, self.hint = cause, hint


_STOPPING = Failure("stopping", "transient", "The server is shutting down.")
_PARAMETER = Failure("parameter", "hopeless", "The server refuses a parameter of DATABASE_URL: correct or remove it.")
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
    "42601": _PARAMETER,  # `options` that are no options
    "55P02": _PARAMETER,
    "08P01": Failure(
        "refused_by_peer",
        "ambiguous",
        "The server, or a pooler before it, refuses the connection: its message says why.",
    ),
}
_POOLED = Failure(
    "shared_session",
    "transient",
    "A pooler in transaction mode gave the session to others: set MIGRATION_DATABASE_URL to the server itself.",
)
# invalid_sql_statement_name, duplicate_prepared_statement
POOLER_SQLSTATES = frozenset({"26000", "42P05"})
_BY_SQLSTATE |= dict.fromkeys(POOLER_SQLSTATES, _POOLED)
_CLOSED = Failure("closed", "transient", "The connection was closed while logging in: the server may be starting.")
_BY_CLASS: dict[str, Failure] = {
    "53": Failure("out_of_resources", "transient", "The server is out of disk, memory or connections."),
    "08": _CLOSED,
}
_OTHER_SQLSTATE = Failure("server_error", "ambiguous", "The server refused the login: its message and its log say why.")

_BY_TYPE: tuple[tuple[type[BaseException], Failure], ...] = (
    (
        asyncpg.TargetServerAttributeNotMatched,
        Failure(
            "no_matching_host",
            "transient",
            "None of the hosts is suitable yet: jobs need a primary, or what target_session_attrs asks for.",
        ),
    ),
    (
        asyncpg.ClientConfigurationError,
        Failure("configuration", "hopeless", "DATABASE_URL cannot be used as it is; see `orchestrator config`."),
    ),
    (
        socket.gaierror,
        Failure("name_not_resolved", "transient", "This host name has no address: check the name, and the network."),
    ),
    (
        ssl.SSLCertVerificationError,
        Failure("certificate", "ambiguous", "The server's certificate is not trusted: check sslmode and sslrootcert."),
    ),
    (ssl.SSLError, Failure("tls", "ambiguous", "The TLS handshake failed: check sslmode.")),
    (
        ConnectionRefusedError,
        Failure(
            "refused",
            "transient",
            "Nothing listens at this address yet: check that the server is running, and the port.",
        ),
    ),
    (
        FileNotFoundError,
        Failure("no_socket", "transient", "There is no such socket yet: check the server, and the directory."),
    ),
    (
        TimeoutError,
        Failure("timeout", "transient", "No answer within DB_CONNECT_TIMEOUT: check the network and firewalls."),
    ),
    (ConnectionResetError, _CLOSED),
    (ConnectionAbortedError, _CLOSED),
    (BrokenPipeError, _CLOSED),
    (
        # asyncpg's own, where the server answers the TLS request with no
        ConnectionError,
        Failure("tls_refused", "ambiguous", "The server speaks no TLS: enable ssl there, or set sslmode=prefer."),
    ),
    (asyncpg.InterfaceError, _CLOSED),
    (asyncpg.InternalClientError, _CLOSED),
)
_OTHER = Failure("unreachable", "transient", "Check host and port in DATABASE_URL, and that the server runs.")

# What a try to connect, or a session that is lost, may raise. `dial` makes these of every OSError of the network, so
# that a file of our own that is missing is none of them.
CONNECTION_ERRORS = (
    ConnectionError,
    TimeoutError,
    socket.gaierror,
    ssl.SSLError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OwnFaultError,
)
_OF_THE_NETWORK = frozenset(
    {
        *(errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN, errno.ETIMEDOUT, errno.ENETRESET),
        *(errno.ECONNRESET, errno.ECONNABORTED, errno.ECONNREFUSED, errno.EPIPE, errno.ENOTCONN),
    }
)
_WORDS_MAX = 300
_TRIED_MAX = 10


def classify(error: BaseException) -> Failure:
    """Sort a failed try by SQLSTATE and type, never by message."""
    failure = _classify(error)
    notes = tuple(map(bounded, getattr(error, "__notes__", ())[:_TRIED_MAX]))
    return msgspec.structs.replace(failure, tried=notes) if notes else failure


def _classify(error: BaseException) -> Failure:
    if isinstance(error, asyncpg.PostgresError):
        sqlstate = error.sqlstate or ""
        failure = _BY_SQLSTATE.get(sqlstate) or _BY_CLASS.get(sqlstate[:2]) or _OTHER_SQLSTATE
        # What asyncpg itself makes of a closed connection has no severity, and says nothing that the cause does not.
        words = bounded(str(error)) if getattr(error, "severity", None) else None
        return msgspec.structs.replace(failure, sqlstate=sqlstate, words=words)
    if isinstance(error, PeerError):
        return Failure(error.cause, "ambiguous", error.hint, words=bounded(error.words) or None)
    if isinstance(error, (UnreachableError, NoAnswerError)):
        return Failure(error.cause, "transient", error.hint)
    if isinstance(error, OwnFaultError):
        return Failure(error.cause, "hopeless", error.hint, words=bounded(str(error)))
    failure = next((failure for kind, failure in _BY_TYPE if isinstance(error, kind)), _OTHER)
    if isinstance(error, ssl.SSLError):
        return msgspec.structs.replace(failure, words=bounded(str(error)))
    return failure


def bounded(text: str) -> str:
    """The text in one line of at most 300 characters, without control characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: 8 * _WORDS_MAX]).split())
    return line if len(line) <= _WORDS_MAX else f"{line[: _WORDS_MAX - 1]}…"


def is_connection_loss(error: BaseException) -> bool:
    """Whether `error` means that the session is gone, rather than that a statement failed or something of ours is."""
    if isinstance(error, asyncpg.PostgresError):
        sqlstate = error.sqlstate or ""
        return sqlstate.startswith("08") or sqlstate in {"57P01", "57P02", "57P03", "57P05"}
    if isinstance(error, OwnFaultError):
        return False
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _OF_THE_NETWORK or isinstance(error, (ConnectionError, ssl.SSLError, socket.gaierror))
    return isinstance(error, (*CONNECTION_ERRORS, EOFError))
