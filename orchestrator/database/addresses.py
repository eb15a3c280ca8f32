"""Where a DSN's hosts are: each address of each host, in the order in which they are tried. Touches name servers.

As libpq has it (PostgreSQL manual, 34.1.1.3 and `load_balance_hosts`): hosts in their order, of each host every address
in the order that the system gives; with `load_balance_hosts=random` both are shuffled.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
import socket
from typing import TYPE_CHECKING, Any, NamedTuple

from orchestrator.database.connect_errors import NoAnswerError
from orchestrator.threads import DaemonThreads

if TYPE_CHECKING:
    from orchestrator.dsn import Dsn


_NUMERIC = socket.AI_NUMERICHOST


class Address(NamedTuple):
    """One way to a server: the host as it was given, and what the system connects to. A socket's is a path."""

    host: str
    port: int
    family: int
    at: Any

    def __str__(self) -> str:
        if self.family == socket.AF_UNIX:
            return str(self.at)
        shown = f"[{self.at[0]}]" if self.family == socket.AF_INET6 else self.at[0]
        return f"{shown}:{self.port}" if self.at[0] == self.host else f"{self.host}:{self.port} ({self.at[0]})"


def hosts_in_order(dsn: Dsn) -> list[tuple[str, int]]:
    """The hosts in the order in which they are tried."""
    hosts = list(dsn.hosts)
    if dsn.options.get("load_balance_hosts") == "random":
        random.shuffle(hosts)
    return hosts


# A look-up that runs, by name: one that gets no answer holds a thread for half a minute, and there are 32.
_running: dict[tuple[asyncio.AbstractEventLoop, str, int], asyncio.Task[list[Any]]] = {}


async def look_up(host: str, port: int, *, limit_s: float, shuffled: bool = False) -> list[Address]:
    """Every address of one host. Cancelled or late, the look-up goes on in its thread, and whoever asks next shares it.

    Raises:
        socket.gaierror: there is no such name, or nobody knows.
        NoAnswerError: no name server answered within `limit_s`.
    """
    if host.startswith("/"):
        path = host if ".s.PGSQL." in host else f"{host}/.s.PGSQL.{port}"
        return [Address(host, port, socket.AF_UNIX, path)]
    with contextlib.suppress(socket.gaierror, UnicodeError):  # an address needs no name server
        return _addresses(host, port, socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=_NUMERIC))
    loop = asyncio.get_running_loop()
    key = (loop, host, port)
    running = _running.get(key)
    if running is None:
        running = _running[key] = loop.create_task(_asked(host, port), name=f"look-up of {host}")
        running.add_done_callback(lambda done: (_running.pop(key, None), done.cancelled() or done.exception()))
    done, _ = await asyncio.wait([running], timeout=limit_s)
    if not done:
        raise NoAnswerError(
            f"the address of {host}", "name_not_resolved", "No name server answers: check the network of this machine."
        )
    found = _addresses(host, port, running.result())
    if shuffled:
        random.shuffle(found)
    return found


@functools.cache
def _threads() -> DaemonThreads:
    """Threads for names alone, of all loops: a look-up waits for no other work, and holds up no stop."""
    return DaemonThreads()


async def _asked(host: str, port: int) -> list[Any]:
    """What the system knows. A name that no name server takes (an overlong label) is an unknown one."""
    ask = functools.partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    try:
        return list(await asyncio.get_running_loop().run_in_executor(_threads(), ask))
    except UnicodeError as error:
        raise socket.gaierror(socket.EAI_NONAME, "no name that a name server takes") from error


def _addresses(host: str, port: int, found: list[Any]) -> list[Address]:
    return [Address(host, port, family, at) for family, _, _, _, at in found]
