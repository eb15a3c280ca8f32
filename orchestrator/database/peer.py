"""What a peer says until we are logged in, looked at before asyncpg sees it. Touches one connection.

asyncpg trusts what comes: a message of SASL that nobody asked for ends the process with SIGSEGV, an odd length or a
length of gigabytes is waited for, and HTTP, SSH or MySQL on the port is "connection closed". Here each message of the
login is checked against the protocol (PostgreSQL manual, 55.2.1 and 55.7), and whoever speaks another one is named.

How it gets between the two: asyncpg makes its transports through the loop that it is given. `Dialed` is that loop, but
for the calls that open a connection: these use the socket that is connected already, to one address of one host, and
put a `Guard` before asyncpg's protocol, which leaves when the login is over. So a request to cancel a statement goes to
the same address as well.
"""

from __future__ import annotations

import asyncio
import codecs
import re
from typing import TYPE_CHECKING, Any

from orchestrator.database.connect_errors import PeerError
from orchestrator.database.scram import MECHANISM, Exchange, ScramError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable

    from orchestrator.database.addresses import Address

_KINDS = b"RSKENZvA"
_MESSAGE_MAX = 1 << 20
_ERROR_LENGTH_LEAST = 8
_ERROR_LENGTH_MAX = 30_000
_HEAD = 5
_SHOWN_BYTES = 80
_FOREIGN: tuple[tuple[re.Pattern[bytes], str], ...] = (
    (re.compile(rb"HTTP/|<!doctype|<html", re.IGNORECASE), "a web server"),
    (re.compile(rb"SSH-"), "an SSH server"),
    (re.compile(rb"...\x00\x0a[0-9]|...\x00\xff", re.DOTALL), "MySQL or MariaDB"),
    (re.compile(rb"-ERR|-NOAUTH|-DENIED|\+OK|\+PONG"), "Redis"),
    (re.compile(rb"\x15\x03[\x00-\x04]\x00\x02"), "a server that speaks TLS from the first byte"),
    (re.compile(rb"220[ -]"), "a mail or FTP server"),
    (re.compile(rb"\* OK"), "a mail server"),
)
_OK, _CLEARTEXT, _MD5, _GSS, _GSS_CONTINUE, _SSPI, _SASL, _SASL_CONTINUE, _SASL_FINAL = 0, 3, 5, 7, 8, 9, 10, 11, 12
# What Postgres calls by names that Python has not; the others of its names Python knows.
_ENCODINGS = {"SQL_ASCII": "ascii", "UNICODE": "utf-8"}
_NO_PLUS = "channel_binding=require needs TLS, and a server that offers SCRAM-SHA-256-PLUS"
_NO_GSS = "The server asks for Kerberos (GSSAPI), which is not supported here: let pg_hba.conf ask for scram-sha-256."


class Peer:
    """What is known of who answered at one address: the stage of the login, and what is wrong with it."""

    def __init__(self, address: Address, *, password: str | None, binding: bool) -> None:
        self.address, self.password, self.binding = address, password, binding
        self.stage = "a connection"
        self.error: PeerError | None = None
        self.fields: dict[str, str] | None = None

    def refuse(self, cause: str, hint: str, words: str = "") -> None:
        """Remember the first thing that is wrong."""
        if self.error is None:
            self.error = PeerError(cause, hint, words)


class Dialed:
    """The running loop as asyncpg sees it for one connection: see the module's text."""

    def __init__(self, peer: Peer, dial: Callable[[Address], Awaitable[Any]]) -> None:
        self._loop = loop = asyncio.get_running_loop()
        self._peer, self._dial = peer, dial
        # What asyncpg calls for every statement: found without `__getattr__`.
        self.call_later, self.call_soon, self.time = loop.call_later, loop.call_soon, loop.time
        self.create_future, self.create_task = loop.create_future, loop.create_task

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    # asyncpg looks for its tasks by loop.
    def __eq__(self, other: object) -> bool:
        return other is self or other is self._loop

    def __hash__(self) -> int:
        return hash(self._loop)

    async def create_connection(
        self, factory: Callable[[], Any], host: str, _port: int, *, ssl: Any = None
    ) -> tuple[Any, Any]:
        """In place of the loop's: the socket is connected already, or for a request to cancel connected anew."""
        guard = Guard(factory(), self._peer)
        raw = await self._dial(self._peer.address)
        try:
            transport, _ = await self._loop.create_connection(
                lambda: guard, sock=raw, ssl=ssl, server_hostname=host if ssl is not None else None
            )
        except BaseException:
            raw.close()
            raise
        return transport, guard.inner

    async def create_unix_connection(self, factory: Callable[[], Any], _path: str) -> tuple[Any, Any]:
        """In place of the loop's."""
        guard = Guard(factory(), self._peer)
        raw = await self._dial(self._peer.address)
        try:
            transport, _ = await self._loop.create_unix_connection(lambda: guard, sock=raw)
        except BaseException:
            raw.close()
            raise
        return transport, guard.inner

    async def start_tls(self, transport: Any, protocol: Any, context: Any, *, server_hostname: str) -> Any:
        """In place of the loop's: asyncpg sets its own protocol at once, and the guard steps before it."""
        self._peer.stage = "the TLS handshake"
        encrypted = await self._loop.start_tls(transport, protocol, context, server_hostname=server_hostname)
        self._loop.call_soon(_step_before, encrypted, self._peer)
        return encrypted


def _step_before(transport: Any, peer: Peer) -> None:
    """Put a guard before the protocol that asyncpg has just set, before anything can have arrived for it."""
    inner = transport.get_protocol()
    if isinstance(inner, Guard) or transport.is_closing() or not hasattr(inner, "is_in_transaction"):
        return
    guard = Guard(inner, peer)
    guard.transport = transport
    transport.set_protocol(guard)


class Guard(asyncio.Protocol):
    """Hands on what is right, until the login is over; at the first thing that is not, ends the connection."""

    def __init__(self, inner: Any, peer: Peer) -> None:
        self.inner, self._peer = inner, peer
        self.transport: Any = None
        # asyncpg's protocol of the TLS request, and of a request to cancel, await no message.
        self._in_login = hasattr(inner, "is_in_transaction")
        self._buffer = bytearray()
        self._awaits: frozenset[int] = frozenset({_OK, _CLEARTEXT, _MD5, _SASL, _GSS, _SSPI})
        self._exchange: Exchange | None = None

    def connection_made(self, transport: Any) -> None:
        """As asyncpg's: it sends the first message."""
        self.transport = transport
        self._peer.stage = "an answer to the login" if self._in_login else "an answer to the request for TLS"
        self.inner.connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        """As asyncpg's."""
        self.inner.connection_lost(error)

    def eof_received(self) -> bool | None:
        """As asyncpg's; what came before the end may tell who it was."""
        if self._in_login and self._buffer:
            self._name_foreigner(is_whole=True)
        received = getattr(self.inner, "eof_received", None)
        return received() if received is not None else None

    def pause_writing(self) -> None:
        """As asyncpg's."""
        self.inner.pause_writing()

    def resume_writing(self) -> None:
        """As asyncpg's."""
        self.inner.resume_writing()

    def data_received(self, data: bytes) -> None:
        """Take one piece of what the peer sent."""
        if self._peer.error is not None:
            return
        if not self._in_login:
            self._answer_to_tls_request(data)
            return
        self._buffer += data
        while (message := self._next_message()) is not None:
            if self._take(message):
                # The login is over: what came with its end is asyncpg's, and so is all that follows.
                self._in_login = False
                self.transport.set_protocol(self.inner)
                self.inner.data_received(message + bytes(self._buffer))
                return

    def _answer_to_tls_request(self, data: bytes) -> None:
        """One byte, S or N (PostgreSQL manual, 55.2.11): more would be injected before TLS (CVE-2021-23222)."""
        if data not in {b"S", b"N"} and not data.startswith(b"E"):
            self._buffer += data
            self._name_foreigner(is_whole=True)
            return
        self.inner.data_received(data)
        if data == b"N" and hasattr(self.transport, "get_protocol"):
            asyncio.get_running_loop().call_soon(self._hand_over)

    def _hand_over(self) -> None:
        if self.transport.get_protocol() is not self:
            _step_before(self.transport, self._peer)

    def _next_message(self) -> bytes | None:
        """The next whole message; None where it has not come yet, or is no message at all."""
        buffer = self._buffer
        if not buffer or self._peer.error is not None:
            return None
        length = int.from_bytes(buffer[1:_HEAD], "big")
        if buffer[0] == ord("E") and len(buffer) >= _HEAD and not _ERROR_LENGTH_LEAST <= length <= _ERROR_LENGTH_MAX:
            # As before protocol 3: a server that cannot even start a process for us says so in plain text.
            self._peer.refuse(
                "server_error",
                "The server cannot serve this connection: its message and its log say why.",
                bytes(buffer[1:]).partition(b"\0")[0].decode("utf-8", "replace"),
            )
            self.transport.abort()
            return None
        if buffer[0] not in _KINDS or (len(buffer) >= _HEAD and not 4 <= length <= _MESSAGE_MAX):  # noqa: PLR2004 its own
            self._name_foreigner(is_whole=len(buffer) >= _HEAD)
            return None
        if len(buffer) < max(_HEAD, length + 1):
            return None
        message = bytes(buffer[: length + 1])
        del buffer[: length + 1]
        return message

    def _name_foreigner(self, *, is_whole: bool) -> None:
        """Say who speaks, as far as the first bytes tell."""
        shown = bytes(self._buffer[:_SHOWN_BYTES])
        named = next((name for pattern, name in _FOREIGN if pattern.match(shown)), None)
        if named is None and not is_whole:
            return  # a few bytes more may tell
        words = shown.decode("ascii", "replace").replace("\N{REPLACEMENT CHARACTER}", "?")
        if named is None:
            self._peer.refuse("not_postgres", "What answers at this port is not Postgres: check host and port.", words)
        else:
            self._peer.refuse(
                "not_postgres", f"What answers at this port is {named}, not Postgres: check host and port.", words
            )
        self.transport.abort()

    def _take(self, message: bytes) -> bool:
        """Hand the message on where it is in order; True where it ends the login, and is not handed on yet."""
        kind, body = message[:1], message[_HEAD:]
        if kind == b"Z":
            return True
        if kind == b"E":
            # Before a client's encoding is agreed on it may be in any; asyncpg takes nothing but UTF-8.
            text = body.decode("utf-8", "replace")
            self._peer.fields = {field[0]: field[1:] for field in text.split("\0") if field}
            message = _message(kind, text.encode())
        elif kind == b"S" and not _is_status(body):
            self._peer.refuse(
                "protocol",
                "This program does not understand what the server says about itself: is it Postgres, and which"
                " version?",
                body[:_SHOWN_BYTES].decode("utf-8", "replace"),
            )
            self.transport.abort()
            return False
        if kind != b"R" or self._is_in_order(body):
            self.inner.data_received(message)
        return False

    def _is_in_order(self, body: bytes) -> bool:
        """Whether asyncpg should see this step of the authentication."""
        code = int.from_bytes(body[:4], "big") if len(body) >= 4 else -1  # noqa: PLR2004 an int32
        if code in {_GSS, _SSPI}:
            self._peer.refuse("unsupported_login", _NO_GSS)
        elif code not in self._awaits:
            self._peer.refuse(
                "protocol",
                "The peer sends a step of the login that nobody asked for: what answers at this port is not Postgres.",
                f"authentication message {code}",
            )
        elif code == _SASL:
            return self._begin_sasl(body[4:])
        elif self._exchange is not None and code in {_SASL_CONTINUE, _SASL_FINAL}:
            return self._go_on_with_sasl(code, body[4:])
        elif code == _SASL_CONTINUE:
            self._awaits = frozenset({_SASL_FINAL})
        elif self._peer.binding and self._exchange is None:
            # As libpq: whoever asks for less than was demanded gets nothing, and above all no password.
            self._peer.refuse(
                "unsupported_login",
                "channel_binding=require is set, and the server asks for no SCRAM-SHA-256-PLUS: set its"
                " password_encryption and pg_hba.conf to scram-sha-256, or write channel_binding=prefer.",
            )
        else:
            self._awaits = frozenset({_OK})
        if self._peer.error is not None:
            self.transport.abort()
        return self._peer.error is None

    def _begin_sasl(self, offered: bytes) -> bool:
        mechanisms = [name for name in offered.split(b"\0") if name]
        self._awaits = frozenset({_SASL_CONTINUE})
        if self._peer.binding:
            return self._begin_plus(mechanisms)
        if b"SCRAM-SHA-256" in mechanisms and offered.endswith(b"\0\0"):
            return True
        names = b", ".join(mechanisms).decode("ascii", "replace")
        self._peer.refuse(
            "unsupported_login",
            f"The server asks for {names or 'SASL without a mechanism'}, which is not supported here: let pg_hba.conf"
            " ask for scram-sha-256.",
        )
        self.transport.abort()
        return False

    def _begin_plus(self, mechanisms: list[bytes]) -> bool:
        """Begin the exchange that asyncpg cannot do; it sees nothing of it but that the login has succeeded."""
        encrypted: ssl.SSLObject | None = self.transport.get_extra_info("ssl_object")
        certificate = encrypted.getpeercert(binary_form=True) if encrypted is not None else None
        try:
            if certificate is None or MECHANISM not in mechanisms:
                raise ScramError(_NO_PLUS)  # noqa: TRY301 told in one place
            self._exchange = Exchange(self._peer.password or "", certificate)
        except ScramError as error:
            self._peer.refuse("unsupported_login", f"{error}.")
            self.transport.abort()
            return False
        first = self._exchange.first()
        self._send(MECHANISM + b"\0" + len(first).to_bytes(4, "big") + first)
        return False

    def _go_on_with_sasl(self, code: int, answer: bytes) -> bool:
        assert self._exchange is not None, "only an exchange of ours gets here"  # noqa: S101
        try:
            if code == _SASL_CONTINUE:
                self._awaits = frozenset({_SASL_FINAL})
                self._send(self._exchange.final(answer))
            else:
                self._exchange.check(answer)
                self._awaits = frozenset({_OK})
        except ScramError as error:
            self._peer.refuse("protocol", f"SCRAM-SHA-256-PLUS failed: {error}.")
            self.transport.abort()
        return False

    def _send(self, content: bytes) -> None:
        self.transport.write(_message(b"p", content))


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + (len(body) + 4).to_bytes(4, "big") + body


def _is_status(body: bytes) -> bool:
    """Whether asyncpg can take in this ParameterStatus: text, a version with a number, an encoding that Python has."""
    try:
        name, value, *_ = body.decode().split("\0")
        if name == "client_encoding":
            codecs.lookup(_ENCODINGS.get(value, value))
    except (ValueError, LookupError):
        return False
    return name != "server_version" or any(c.isdecimal() for c in value)
