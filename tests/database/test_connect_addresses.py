"""Each address of each host has a time limit of its own, and what a peer sends, we live and say who it was."""

import asyncio
import contextlib
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from orchestrator import dsn as dsns
from orchestrator.database.connect import connect_once, open_pool
from orchestrator.database.connect_errors import CONNECTION_ERRORS, classify

ERROR = b"SFATAL\0VFATAL\0C%s\0M%s\0\0"


def message(kind, body):
    return kind + (len(body) + 4).to_bytes(4, "big") + body


@asynccontextmanager
async def answering(*answers):
    """A server that sends the next answer each time something comes (None: nothing, ever); yields its port."""

    async def serve(reader, writer):
        with contextlib.suppress(OSError):
            for answer in answers:
                if not await reader.read(65536):
                    break
                if answer is None:
                    continue
                writer.write(answer)
                await writer.drain()
            if None in answers:
                await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def with_hosts(url, *ports, **options):
    """The same database with other servers tried before it."""
    parts = urlsplit(url)
    login, _, place = parts.netloc.rpartition("@")
    hosts = ",".join([*(f"127.0.0.1:{port}" for port in ports), place])
    query = "&".join(f"{name}={value}" for name, value in options.items())
    return dsns.parse(f"postgresql://{login}@{hosts}{parts.path}?{query}")


async def test_a_first_host_that_accepts_and_is_silent_hides_the_second_for_its_own_time_alone(database_url):
    async with answering(None) as port:
        dsn = with_hosts(database_url, port, sslmode="disable")
        began = time.monotonic()
        connection = await connect_once(dsn, timeout_s=0.5, application_name="test")
        assert 0.5 <= time.monotonic() - began < 2
        assert await connection.fetchval("SELECT 1") == 1
        await connection.close()
        pool = await open_pool(dsn, kind="ours", max_size=1, application_name="test")
        assert await pool.fetchval("SELECT 1") == 1
        await pool.close()


async def test_every_address_of_a_name_is_tried_in_its_own_time(database_url, server, monkeypatch):
    async with answering(None) as port:
        silent = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]
        real = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (server.host, server.port))]
        odd = [(socket.AF_APPLETALK, socket.SOCK_STREAM, 6, "", ("::1", 1, 0, 0))]  # a family that is off here
        asked = socket.getaddrinfo

        def answer(host, *arguments, **options):
            if host != "db.test":
                return asked(host, *arguments, **options)
            if options.get("flags"):
                raise socket.gaierror(socket.EAI_NONAME, "a name")
            return [*odd, *silent, *real]

        monkeypatch.setattr(socket, "getaddrinfo", answer)
        parts = urlsplit(database_url)
        login = parts.netloc.rpartition("@")[0]
        dsn = dsns.parse(f"postgresql://{login}@db.test:{server.port}{parts.path}?sslmode=disable")
        connection = await connect_once(dsn, timeout_s=0.5, application_name="test")
        assert await connection.fetchval("SELECT 1") == 1
        await connection.close()


async def test_a_name_server_that_is_silent_is_waited_for_as_long_as_an_address_and_once(monkeypatch, database_url):
    looked_up, over, asked = [], threading.Event(), socket.getaddrinfo

    def silent(host, *arguments, **options):
        if host != "silent.test":
            return asked(host, *arguments, **options)
        if options.get("flags"):
            raise socket.gaierror(socket.EAI_NONAME, "a name")
        looked_up.append(host)
        over.wait(20)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    parts = urlsplit(database_url)
    login, _, place = parts.netloc.rpartition("@")
    dsn = dsns.parse(f"postgresql://{login}@silent.test:5432,{place}{parts.path}")
    for _ in range(2):
        connection = await connect_once(dsn, timeout_s=0.3, application_name="test")
        await connection.close()
    assert looked_up == ["silent.test"]
    over.set()


async def test_a_statement_is_cancelled_at_the_address_of_its_connection(database_url):
    async with answering(None) as port:
        connection = await connect_once(
            with_hosts(database_url, port, sslmode="disable"), timeout_s=0.3, application_name="test"
        )
        with pytest.raises(TimeoutError):
            await connection.execute("SELECT pg_catalog.pg_sleep(30)", timeout=0.2)
        began = time.monotonic()
        assert await connection.fetchval("SELECT 1") == 1
        assert time.monotonic() - began < 5
        await connection.close()


@pytest.mark.parametrize(
    ("answer", "cause", "told"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "not_postgres", "a web server"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "not_postgres", "an SSH server"),
        (b"J\0\0\0\n8.0.36\0\x0b\0\0\0", "not_postgres", "MySQL"),
        (b"-ERR unknown command\r\n", "not_postgres", "Redis"),
        (b"\x99" * 40, "not_postgres", "not Postgres"),
        (message(b"R", (12).to_bytes(4, "big") + b"v=abc"), "protocol", "nobody asked for"),
        (message(b"R", (11).to_bytes(4, "big") + b"r=abc"), "protocol", "nobody asked for"),
        (message(b"R", (7).to_bytes(4, "big")), "unsupported_login", "GSSAPI"),
        (message(b"R", (10).to_bytes(4, "big") + b"OAUTHBEARER\0\0"), "unsupported_login", "OAUTHBEARER"),
        (message(b"R", (10).to_bytes(4, "big") + b"SCRAM-SHA-256\0\0") * 2, "protocol", "nobody asked for"),
        (message(b"E", ERROR % (b"08P01", b"unsupported startup parameter: x")), "refused_by_peer", "parameter: x"),
        (message(b"E", ERROR % (b"XX000", b"Tenant or user not found")), "server_error", "Tenant or user not found"),
        (message(b"E", ERROR % (b"XX000", b"Zugriff verweigert f\xfcr \xdf")), "server_error", "Zugriff verweigert"),
        (b"Ecould not fork new process for connection\n\0", "server_error", "could not fork"),
        (message(b"R", b"\0" * 4) + message(b"S", b"server_version\0x\0") + message(b"Z", b"I"), "protocol", ""),
        (message(b"R", b"\0" * 4) + message(b"S", b"client_encoding\0KLINGON\0"), "protocol", "KLINGON"),
    ],
)
@pytest.mark.parametrize("sslmode", ["disable", "prefer"])
async def test_whatever_a_peer_sends_we_live_and_say_what_it_was(database_url, answer, cause, told, sslmode):
    is_foreign = cause == "not_postgres"
    answers = [answer] if sslmode == "disable" or is_foreign else [b"N", answer]
    async with answering(*answers, None) as port:
        parts = urlsplit(database_url)
        login = parts.netloc.rpartition("@")[0]
        dsn = dsns.parse(f"postgresql://{login}@127.0.0.1:{port}{parts.path}?sslmode={sslmode}")
        with pytest.raises(CONNECTION_ERRORS) as raised:
            await connect_once(dsn, timeout_s=1, application_name="test")
        failure = classify(raised.value)
        assert failure.cause == cause
        assert told in f"{failure.hint} {failure.words}"


async def test_bytes_at_random_end_no_process(database_url):
    """In a process of its own: what went wrong was SIGSEGV."""
    code = f"""
import asyncio, random
from orchestrator import dsn as dsns
from orchestrator.database.connect import connect_once
from orchestrator.database.connect_errors import CONNECTION_ERRORS

async def serve(reader, writer):
    try:
        await reader.read(65536)
        for _ in range(random.randrange(1, 6)):
            kind = random.choice([b"R", b"S", b"K", b"E", b"N", b"Z", b"v", b"A", b"D", b"T", b"\\\\xff"])
            body = random.randbytes(random.randrange(0, 40))
            if kind == b"R":
                body = random.randrange(0, 14).to_bytes(4, "big") + body
            length = len(body) + 4 + random.choice([0, 0, 0, 0, -6, 9, 1 << 31])
            writer.write(kind + (length % (1 << 32)).to_bytes(4, "big") + body)
        await writer.drain()
    except OSError:
        pass
    writer.close()

async def main():
    random.seed({random.randrange(1 << 30)})
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    dsn = dsns.parse(f"postgresql://u:pw@127.0.0.1:{{port}}/d?sslmode=disable")
    for _ in range(400):
        try:
            (await connect_once(dsn, timeout_s=0.3, application_name="test")).terminate()
        except CONNECTION_ERRORS:
            pass
    print("alive")

asyncio.run(main())
"""
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=False
    )
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr[-3000:]


async def test_a_login_that_succeeds_and_a_first_query_without_an_answer_is_told(orchestrator, database_url):
    greeting = message(b"R", b"\0" * 4) + message(b"S", b"server_version\x0017.0\0") + message(b"Z", b"I")
    async with answering(greeting, None) as port:
        url = f"postgresql://u:pw@127.0.0.1:{port}/d?sslmode=disable"
        env = {"DATABASE_URL": url, "DB_WAIT_TIMEOUT": "2", "DB_CONNECT_TIMEOUT": "500ms"}
        result = await orchestrator("wait", env=env, timeout_s=20)
        assert result.returncode == 69, result.stderr
        assert result.duration_s < 8
        (told, *_) = result.named("database.connect_failed")
        assert (told["cause"], "first query" in told["hint"]) == ("no_answer", True)


async def test_what_is_our_own_is_told_as_that_with_its_path(orchestrator, database_url, tmp_path):
    missing = tmp_path / "root.crt"
    env = {"DATABASE_URL": f"{database_url}?sslmode=verify-full&sslrootcert={missing}"}
    result = await orchestrator("wait", env=env)
    assert result.returncode == 78, result.stderr
    assert str(missing) in result.events[-1]["error"]
    mine, theirs = tmp_path / "a.crt", tmp_path / "b.key"
    mine.write_text("no certificate")
    theirs.write_text("no key")
    env = {"DATABASE_URL": f"{database_url}?sslmode=require&sslcert={mine}&sslkey={theirs}"}
    result = await orchestrator("wait", env=env)
    assert result.returncode == 78, result.stderr
    assert str(mine) in result.events[-1]["error"]


async def test_a_secret_that_is_rotated_while_we_wait_is_used(orchestrator, database_url, tmp_path):
    file = tmp_path / "url"
    parts = urlsplit(database_url)
    user, _, _ = parts.netloc.partition(":")
    place = parts.netloc.rpartition("@")[2]
    file.write_text(f"postgresql://{user}:wrong-password@{place}{parts.path}")
    async with orchestrator.running("wait", env={"DATABASE_URL_FILE": str(file)}) as run:
        await run.event("database.connect_failed", cause="credentials")
        file.write_text(database_url)
        assert await run.wait() == 0, run.output


BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


@pytest.fixture
def tls_server():
    """A server of the system's PostgreSQL, which has TLS (the embedded one has none); yields its port and password."""
    program = BINARIES[-1]
    place = Path(tempfile.mkdtemp(prefix="orchestrator-tls-"))
    as_owner = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    if as_owner:
        shutil.chown(place, "postgres")

    def run(*command):
        subprocess.run([*as_owner, *map(str, command)], check=True, capture_output=True, cwd=place)

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (place / "password").write_text("s3cr3t-of-tls\n")
    (place / "password").chmod(0o644)
    data = place / "data"
    run(program / "initdb", "-D", data, "-U", "app", "-A", "scram-sha-256", f"--pwfile={place / 'password'}", "-N")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    run(*command, "-keyout", data / "server.key", "-out", data / "server.crt")
    options = f"-p {port} -c ssl=on -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
    run(program / "pg_ctl", "-D", data, "-w", "-l", place / "log", "-o", options, "start")
    yield port, "s3cr3t-of-tls"
    run(program / "pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")
    shutil.rmtree(place)


@pytest.mark.skipif(not BINARIES and not os.environ.get("CI"), reason="needs an installed PostgreSQL, which has TLS")
async def test_channel_binding_is_done_where_it_is_required(tls_server):
    port, password = tls_server
    wanted = f"postgresql://app:{password}@127.0.0.1:{port}/postgres?sslmode=require&channel_binding=require"
    connection = await connect_once(dsns.parse(wanted), timeout_s=5, application_name="test")
    is_encrypted = "SELECT ssl FROM pg_catalog.pg_stat_ssl WHERE pid = pg_catalog.pg_backend_pid()"
    assert await connection.fetchval(is_encrypted)
    await connection.close()
    plain = wanted.replace("sslmode=require", "sslmode=disable")
    with pytest.raises(ConnectionError) as raised:
        await connect_once(dsns.parse(plain), timeout_s=5, application_name="test")
    assert classify(raised.value).cause == "unsupported_login"
    wrong = dsns.parse(wanted).changed(password="wrong-password")
    with pytest.raises(asyncpg.InvalidPasswordError):
        await connect_once(wrong, timeout_s=5, application_name="test")
