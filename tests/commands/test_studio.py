"""`studio`: a real harlequin on a real terminal, on the configured database, and the server itself refuses to write."""

import asyncio
import fcntl
import os
import pty
import re
import struct
import sys
import termios
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from orchestrator import dsn
from orchestrator.commands.studio import studio_arguments, studio_environment

ROOT = Path(__file__).parents[2]
_ESCAPES = re.compile(rb"\x1b(\[[0-?]*[ -/]*[@-~]|[PX^_\]].*?(\x1b\\|\x07)|.)", re.DOTALL)


class Terminal:
    """A process on a terminal of its own: what it drew, and keys for it."""

    def __init__(self, process: asyncio.subprocess.Process, fd: int) -> None:
        self.process, self._fd, self._drawn = process, fd, b""
        asyncio.get_running_loop().add_reader(fd, self._read)

    def _read(self) -> None:
        try:
            self._drawn += os.read(self._fd, 65536)
        except OSError:
            asyncio.get_running_loop().remove_reader(self._fd)

    @property
    def text(self) -> str:
        return _ESCAPES.sub(b"", self._drawn).decode(errors="replace")

    def press(self, keys: str) -> None:
        os.write(self._fd, keys.encode())


@asynccontextmanager
async def terminal(*command: str, env: dict[str, str], cwd: Path) -> AsyncIterator[Terminal]:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 160, 0, 0))
    process = await asyncio.create_subprocess_exec(
        *command, stdin=theirs, stdout=theirs, stderr=theirs, env=env, cwd=cwd, start_new_session=True
    )
    os.close(theirs)
    on = Terminal(process, ours)
    try:
        yield on
    finally:
        asyncio.get_running_loop().remove_reader(ours)
        if process.returncode is None:
            process.kill()
        await process.wait()
        os.close(ours)


def environment(tmp_path: Path, url: str) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "TERM": "xterm-256color",
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(ROOT),
        "DATABASE_URL": url,
    }


async def test_it_opens_on_a_terminal_and_shows_a_table(database_url, admin, wait_until, server, tmp_path):
    await admin.script(database_url, "CREATE TABLE seen (word text); INSERT INTO seen VALUES ('here-it-is')")
    command = (sys.executable, "-m", "orchestrator", "studio")
    async with terminal(*command, env=environment(tmp_path, database_url), cwd=tmp_path) as screen:
        await wait_until(lambda: "Database Connected" in screen.text, 60, "harlequin is connected")
        # No password in argv, of the process that took ours' place.
        argv = Path(f"/proc/{screen.process.pid}/cmdline").read_bytes().split(b"\0")  # noqa: ASYNC240
        assert b"harlequin" in argv
        assert not [word for word in argv if server.password.encode() in word]
        asked_at = 0.0

        def is_drawn() -> bool:
            """Ask again every few seconds: keys that come before the editor has the focus are lost."""
            nonlocal asked_at
            if "here-it-is" not in screen.text and time.monotonic() - asked_at > 4:
                asked_at = time.monotonic()
                screen.press("\x01select word from seen")  # ctrl+a: in the place of what is there
                screen.press("\n")  # ctrl+j runs it
            return "here-it-is" in screen.text

        await wait_until(is_drawn, 60, "the row is drawn")


_INSERT = "import psycopg; c = psycopg.connect(); c.execute({!r}); c.execute('INSERT INTO t VALUES (1)'); c.commit()"


@pytest.mark.parametrize(
    ("first", "write", "rows"),
    [
        ("SELECT 1", False, 0),
        ("SELECT 1", True, 1),
        # Said in the help: it guards against slips; a role without the right to write is what guards against intent.
        ("SET TRANSACTION READ WRITE", False, 1),
    ],
)
async def test_the_server_itself_refuses_to_write_through_the_same_environment(database_url, admin, first, write, rows):
    await admin.script(database_url, "CREATE TABLE t (n int)")
    found = dsn.parse(f"{database_url}?options=-c%20search_path%3Dpublic&application_name=a%20b")
    variables = studio_environment({"PGOPTIONS": "-c x=y", "API_TOKEN": "t", "HOME": "/h"}, found, write=write)
    assert "API_TOKEN" not in variables
    assert variables["HOME"] == "/h"
    # libpq reads the environment of its process.
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _INSERT.format(first)), env=variables, stderr=asyncio.subprocess.PIPE
    )
    _, said = await process.communicate()
    assert (b"ReadOnlySqlTransaction" in said) == (rows == 0), said
    assert await admin.value(database_url, "SELECT count(*) FROM t") == rows


def test_the_arguments_name_the_place_and_never_a_password():
    found = dsn.parse("postgresql://u:s3cr3t-word@h1:1/d?sslmode=require&sslcert=/c&sslkey=/k")
    variables = studio_environment({}, found, write=False)
    assert variables["PGPASSWORD"] == "s3cr3t-word"
    assert variables["PGOPTIONS"] == "-c default_transaction_read_only=on"
    arguments = studio_arguments(variables, write=False)[4:]
    assert " ".join(arguments) == (
        "--profile None --adapter postgres --read-only --host h1 --port 1 --user u --dbname d"
        " --sslmode require --sslcert /c --sslkey /k"
    )
    assert "--read-only" not in studio_arguments(variables, write=True)


async def test_off_a_terminal_and_without_the_extra_one_line_says_what_to_do(orchestrator, tmp_path):
    env = {"DATABASE_URL": "postgresql://u@h/d"}
    done = await orchestrator("studio", env=env)
    assert (done.returncode, done.stderr) == (
        78,
        "studio needs a terminal; in a container: docker compose exec -it …\n",
    )
    hidden = "import importlib.util as u; f = u.find_spec; u.find_spec = lambda n: None if n == 'harlequin' else f(n)"
    (tmp_path / "sitecustomize.py").write_text(hidden)
    done = await orchestrator("studio", env=env | {"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    assert (done.returncode, done.stderr) == (78, "studio needs harlequin: pip install 'orchestrator[dev]'\n")


async def test_the_password_file_of_the_environment_is_used_as_by_every_command(database_url, tmp_path):
    place = dsn.parse(database_url)
    passfile = tmp_path / "pgpass"
    passfile.write_text(f"*:*:*:*:{place.password}\n")
    passfile.chmod(0o600)
    without = place.changed(password=None)
    inherited = {"PGPASSFILE": str(passfile), "PGHOST": "stray", "PGOPTIONS": "-c stray=1", "HOME": "/nowhere"}
    variables = studio_environment(inherited, without, write=False)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "import psycopg; print(psycopg.connect().info.dbname)"),
        env=variables,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, said = await process.communicate()
    assert out.decode().strip() == place.database, said
