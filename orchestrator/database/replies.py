"""Count the commands that the server says are complete, of a message that holds several. Touches the transport.

The answer to a message of several statements is one error or one tag, and an error that occurs while a statement runs
names no position. How many commands were complete before it is what tells whose it is, without running any of them
again. asyncpg reads these answers and keeps none, so this stands between the transport and asyncpg's protocol, and
hands everything on (PostgreSQL manual, "Message Flow" and "Message Formats").
"""

from __future__ import annotations

import asyncio
from typing import Any

_COMMAND_COMPLETE = 0x43  # 'C'
_ERROR_RESPONSE = 0x45  # 'E'
_CODE = b"C"  # in an error's fields: the SQLSTATE
_HEADER_BYTES = 5  # the type, and a length that counts itself and what follows


class Replies(asyncio.Protocol):
    """`completed` is how many commands have ended since it was last set to 0; `sqlstate` that of the last error.

    Where the server says why it ends a session, asyncpg tells no more than that the connection was closed.
    """

    def __init__(self, protocol: Any) -> None:
        self._protocol = protocol
        self._header = b""
        self._skip = 0
        self.completed = 0
        self.sqlstate: str | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        """As asyncio's, handed on."""
        self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        """As asyncio's, handed on."""
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """As asyncio's, handed on."""
        self._protocol.resume_writing()

    def eof_received(self) -> bool | None:
        """As asyncio's, handed on."""
        answer: bool | None = self._protocol.eof_received()
        return answer

    def data_received(self, data: bytes) -> None:
        """Count, then hand on: whoever is woken by the answer finds the count complete."""
        self._count(data)
        self._protocol.data_received(data)

    def _count(self, data: bytes) -> None:
        at, size = self._skip, len(data)
        if self._header and at < size:
            data = self._header + data
            size += len(self._header)
            self._header = b""
        while at + _HEADER_BYTES <= size:
            if data[at] == _COMMAND_COMPLETE:
                self.completed += 1
            end = at + 1 + int.from_bytes(data[at + 1 : at + _HEADER_BYTES])
            if data[at] == _ERROR_RESPONSE:
                fields = bytes(data[at + _HEADER_BYTES : end]).split(b"\0")
                self.sqlstate = next((one[1:].decode() for one in fields if one.startswith(_CODE)), None)
            at = end
        if at < size:
            self._header, self._skip = bytes(data[at:]), 0
        else:
            self._skip = at - size


def count_replies(connection: Any) -> Replies | None:
    """Count the answers on an asyncpg connection from now on, once; None where its transport is out of reach.

    Call it while nothing is under way. It stays for as long as the connection lives.
    """
    transport = getattr(connection, "_transport", None)
    if transport is None:
        return None
    protocol = transport.get_protocol()
    if isinstance(protocol, Replies):
        return protocol
    replies = Replies(protocol)
    transport.set_protocol(replies)
    return replies
