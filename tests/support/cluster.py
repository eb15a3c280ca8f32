"""A primary and its streaming standby on loopback: real servers that are killed, frozen, promoted and made again."""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg

from orchestrator.embedded.binaries import Binaries, find_bin_dir, runnable
from orchestrator.embedded.directory import account_for
from orchestrator.embedded.process import Account, launch, output_of
from support.command import free_port
from support.waiting import until

_DATABASE = "service"
_SETTINGS = {
    "fsync": "off",  # processes are killed here, not machines
    "full_page_writes": "off",
    "max_connections": "150",
    "shared_buffers": "32MB",
    "wal_level": "replica",
    "hot_standby": "on",
    "wal_receiver_status_interval": "1s",
    "wal_retrieve_retry_interval": "200ms",
    "dynamic_shared_memory_type": "mmap",  # in the data directory: a killed server leaves nothing in /dev/shm
    "unix_socket_directories": "",
    "logging_collector": "off",
    "lc_messages": "C",
}
_NOT_YET = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError)


class Node:
    """One server. Its port stays the same, whatever becomes of it."""

    def __init__(self, name: str, directory: Path, binaries: Binaries, account: Account) -> None:
        self.name, self.directory, self.port = name, directory, free_port()
        self._binaries, self._account = binaries, account
        self._process: asyncio.subprocess.Process | None = None
        self._conf: dict[str, str] = {}

    @property
    def data(self) -> Path:
        return self.directory / self.name

    def dsn(self, database: str = _DATABASE) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    async def connect(self, database: str = _DATABASE, *, timeout_s: float = 30.0) -> asyncpg.Connection:
        """A connection, as soon as there is one."""
        async with asyncio.timeout(timeout_s):
            while True:
                with contextlib.suppress(*_NOT_YET):
                    return await asyncpg.connect(self.dsn(database), timeout=5)
                await asyncio.sleep(0.02)

    async def value(self, text: str, *arguments: object, database: str = _DATABASE) -> object:
        connection = await self.connect(database)
        try:
            return await connection.fetchval(text, *arguments)
        finally:
            connection.terminate()

    # ------------------------------------------------------------------------------------------------- how it is made

    async def initialize(self) -> None:
        self._make_room()
        await self._run(
            "initdb", f"--pgdata={self.data}", "--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-sync"
        )

    async def copy(self, source: "Node") -> None:
        """Become a standby of `source`, by pg_basebackup, whatever was here before."""
        self._make_room()
        way = ("-h", "127.0.0.1", "-p", str(source.port), "-U", "postgres")
        await self._run("pg_basebackup", "-D", str(self.data), *way, "-c", "fast", "-X", "stream", "--no-sync")
        (self.data / "standby.signal").touch()
        self.write(primary_conninfo=self.conninfo(source))

    def conninfo(self, source: "Node") -> str:
        return f"host=127.0.0.1 port={source.port} user=postgres application_name={self.name}"

    def _make_room(self) -> None:
        self.remove()
        self.data.mkdir(mode=0o700)
        self._account.own(self.data)

    async def _run(self, program: str, *arguments: str) -> None:
        code, output = await output_of([str(self._binaries.bin / program), *arguments], self._account)
        assert code == 0, output

    def write(self, **settings: str) -> None:
        """Settings for the next start, or, after a `reload`, for this one."""
        self._conf |= settings
        lines = [f"{name} = '{value}'" for name, value in self._conf.items()]
        path = self.data / "postgresql.auto.conf"
        path.write_text("\n".join(lines) + "\n")
        for made in (path, *self.data.glob("standby.signal")):
            self._account.own(made)

    async def reload(self, **settings: str) -> None:
        """Write the settings, and wait until the server has them."""
        self.write(**settings)
        self._process.send_signal(signal.SIGHUP)
        now = "SELECT array_agg(current_setting(n) ORDER BY o) FROM unnest($1::text[]) WITH ORDINALITY AS s(n, o)"
        await until(lambda: self._has(now, settings), 20, f"the server has {settings}")

    async def _has(self, text: str, settings: dict[str, str]) -> bool:
        return await self.value(text, list(settings), database="postgres") == list(settings.values())

    # ------------------------------------------------------------------------------------------ how it lives, and ends

    async def start(self) -> None:
        """Start, and wait for a login (of a standby as well)."""
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        command = [str(self._binaries.bin / "postgres"), "-D", str(self.data)]
        for name, value in {**_SETTINGS, "listen_addresses": "127.0.0.1", "port": str(self.port)}.items():
            command += ["-c", f"{name}={value}"]
        with (self.directory / f"{self.name}.log").open("ab") as log:
            self._process = await launch(command, self._account, signal.SIGQUIT, (), log.fileno())
        (await self.connect("postgres")).terminate()

    def _processes(self) -> list[int]:
        """The postmaster first, then its children."""
        found = [self._process.pid]
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                pid, _, rest = stat.read_text(errors="replace").partition(" ")
                if int(rest.rpartition(")")[2].split()[1]) == self._process.pid:
                    found.append(int(pid))
        return found

    def freeze(self) -> None:
        """Stop every process, as a machine that hangs: the kernel still accepts connections, and nobody answers."""
        os.kill(self._process.pid, signal.SIGSTOP)
        for pid in self._processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        for pid in self._processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    async def kill(self) -> None:
        """End every process at one moment."""
        if self._process is None or self._process.returncode is not None:
            return
        self.freeze()  # nobody does anything between the first death and the last
        for pid in reversed(self._processes()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await self._process.wait()

    async def restart(self) -> None:
        """Stop as an administrator in a hurry does (`pg_ctl stop -m fast`), and start again."""
        self._process.send_signal(signal.SIGINT)
        await self._process.wait()
        await self.start()

    async def promote(self) -> None:
        """Make the standby the primary, and wait until it is."""
        assert await self.value("SELECT pg_promote(wait_seconds => 30)", database="postgres")
        self._conf.pop("primary_conninfo", None)

    def remove(self) -> None:
        """Delete it, and the shared memory that a killed server leaves behind."""
        with contextlib.suppress(OSError, IndexError):
            identity = (self.data / "postmaster.pid").read_text().splitlines()[6].split()[1]
            subprocess.run(["ipcrm", "-m", identity], check=False, capture_output=True)
        shutil.rmtree(self.data, ignore_errors=True)
        self._conf = {}


class Cluster:
    """Two nodes: `primary` and `standby` say which is which; `standby` is None from a fail-over until `rebuild`."""

    def __init__(self, nodes: tuple[Node, Node]) -> None:
        self.nodes = nodes
        self.primary: Node = nodes[0]
        self.standby: Node | None = None

    @property
    def dsn(self) -> str:
        """The URL with both hosts, in the order in which they were made."""
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)
        return f"postgresql://postgres@{hosts}/{_DATABASE}"

    async def rebuild(self, *, synchronous: bool) -> None:
        """Make the node that is not the primary a standby that streams; commits wait for it where `synchronous`."""
        (other,) = (node for node in self.nodes if node is not self.primary)
        await other.copy(self.primary)
        await other.start()
        self.standby = other
        streaming = "SELECT count(*) = 1 FROM pg_stat_replication WHERE state = 'streaming'"
        await until(lambda: self.primary.value(streaming), 30, "the standby streams")
        if synchronous:
            await self.primary.reload(synchronous_standby_names="*")

    async def fail_over(self, *, fence: bool = True) -> None:
        """Promote the standby. The old primary is killed first, unless it is to stay as it is, frozen for good."""
        old, new = self.primary, self.standby
        if fence:
            await old.kill()
        await new.promote()
        self.primary, self.standby = new, None


@asynccontextmanager
async def cluster(*, synchronous: bool = True) -> AsyncIterator[Cluster]:
    """A primary with the empty database `service`, and a standby that streams from it, in a directory of their own."""
    # As root the servers run as somebody else, who cannot enter the directories that pytest makes.
    with tempfile.TemporaryDirectory(prefix="orchestrator-cluster-") as name:
        os.chmod(name, 0o711)  # noqa: PTH101 once, and at once
        async with _cluster(Path(name), synchronous=synchronous) as pair:
            yield pair


@asynccontextmanager
async def _cluster(directory: Path, *, synchronous: bool) -> AsyncIterator[Cluster]:
    account = account_for(directory)
    binaries = await runnable(find_bin_dir(), directory, account)
    nodes = (Node("a", directory, binaries, account), Node("b", directory, binaries, account))
    pair = Cluster(nodes)
    try:
        await pair.primary.initialize()
        await pair.primary.start()
        await pair.primary.value(f"CREATE DATABASE {_DATABASE}", database="postgres")
        await pair.rebuild(synchronous=synchronous)
        yield pair
    finally:
        for node in nodes:
            await node.kill()
            node.remove()
