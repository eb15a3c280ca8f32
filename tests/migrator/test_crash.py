"""Killed at any instant, the next start ends in exactly the schema, data and ledger of a run that nobody disturbed.

Instants are drawn uniformly over the duration of an undisturbed run, from exec to exit. By default a few of each kind;
in full, with the seed of a failure to see it again:

    CRASH_KILLS=200 CRASH_SEED=1 python -m pytest tests/migrator/test_crash.py -s
"""

import asyncio
import contextlib
import functools
import json
import os
import random
import signal
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest

from orchestrator.embedded.errors import DataDirectoryInUseError
from orchestrator.embedded.server import embedded_postgres

BREAK = "\n--> statement-breakpoint\n"
# In full, the work takes most of a run, so that most instants fall into it.
KILLS = int(os.environ.get("CRASH_KILLS", "0"))
ROWS = 20_000 if KILLS else 3_000
SEED = int(os.environ.get("CRASH_SEED", "0")) or random.SystemRandom().randrange(1, 10**9)

# Transactional, CONCURRENTLY with and without a name, COMMIT in mid-file, a new enum value used by the next file, data,
# REINDEX, DETACH, VACUUM, and small ones that travel together.
FILES = [
    [
        "CREATE TYPE mood AS ENUM ('calm')",
        "CREATE TABLE a (id int PRIMARY KEY, mood mood, v int, t text)",
        f"INSERT INTO a SELECT g, 'calm', g % 97, repeat('x', 40) FROM generate_series(1, {ROWS}) g",
    ],
    ["ALTER TYPE mood ADD VALUE 'wild'"],
    ["UPDATE a SET mood = 'wild' WHERE id % 3 = 0", "ALTER TABLE a ADD COLUMN w int NOT NULL DEFAULT 7"],
    [
        "CREATE INDEX CONCURRENTLY a_v ON a (v)",
        "CREATE INDEX CONCURRENTLY ON a (w, v)",
        "CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS a_unique ON a (id, v)",
    ],
    *([f"CREATE TABLE small_{n} (id int PRIMARY KEY, a int REFERENCES a)"] for n in range(12)),
    [
        "CREATE TABLE b (id int PRIMARY KEY, at timestamptz)",
        "INSERT INTO b SELECT g FROM generate_series(1, 9000) g",
        "COMMIT",
        "SET lock_timeout = '3s'",
        "CREATE INDEX CONCURRENTLY IF NOT EXISTS b_at ON b (at)",
        "ALTER TABLE b ADD COLUMN c int",
        "UPDATE b SET c = id * 2",
        "BEGIN",
        "INSERT INTO b SELECT g FROM generate_series(9001, 9500) g",
        "DELETE FROM b WHERE id % 10 = 0",
        "COMMIT",
        "CREATE INDEX CONCURRENTLY ON b (c)",
        "SET lock_timeout = 0",
    ],
    [f"INSERT INTO small_0 VALUES ({n}, {n + 1})" for n in range(150)],
    [
        "CREATE TABLE p (id int, v int) PARTITION BY RANGE (id)",
        "CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100)",
        "CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (100) TO (200)",
        "INSERT INTO p SELECT g, g FROM generate_series(0, 199) g",
    ],
    [
        "REINDEX INDEX CONCURRENTLY a_v",
        "ALTER TABLE p DETACH PARTITION p1 CONCURRENTLY",
        "DROP INDEX CONCURRENTLY a_unique",
        "VACUUM a",
        "REINDEX TABLE CONCURRENTLY b",
    ],
    *(
        [f"ALTER TABLE small_{n} ADD COLUMN note text DEFAULT 'n{n}'", f"CREATE INDEX ON small_{n} (note)"]
        for n in range(12)
    ),
    ["CREATE VIEW wild AS SELECT id FROM a WHERE mood = 'wild'", "CREATE FUNCTION one() RETURNS int RETURN 1"],
    ["INSERT INTO b SELECT g FROM generate_series(10000, 10500) g"],
]

# Everything that a dump of the schema tells, and the rows; numbers that a rolled back try burns are no part of it.
STATE = """
WITH ours AS (SELECT oid, nspname FROM pg_namespace WHERE nspname IN ('public', 'drizzle', 'orchestrator'))
SELECT line FROM (
  SELECT concat_ws(' ', 'relation', n.nspname, c.relname, c.relkind, c.relispartition) FROM pg_class c
    JOIN ours n ON n.oid = c.relnamespace
  UNION ALL SELECT concat_ws(' ', 'column', a.attrelid::regclass, a.attnum, a.attname,
      format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid))
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN ours n ON n.oid = c.relnamespace
    LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE c.relkind IN ('r', 'p', 'v') AND a.attnum > 0
  UNION ALL SELECT concat_ws(' ', 'constraint', conrelid::regclass, conname, convalidated, pg_get_constraintdef(k.oid))
    FROM pg_constraint k JOIN ours n ON n.oid = k.connamespace
  UNION ALL SELECT concat_ws(' ', 'index', pg_get_indexdef(indexrelid), indisvalid, indisready, indislive, indisunique)
    FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN ours n ON n.oid = c.relnamespace
  UNION ALL SELECT concat_ws(' ', 'enum', enumtypid::regtype, string_agg(enumlabel, ',' ORDER BY enumsortorder))
    FROM pg_enum GROUP BY enumtypid
  UNION ALL SELECT concat_ws(' ', 'inherits', inhrelid::regclass, inhparent::regclass, inhdetachpending)
    FROM pg_inherits
  UNION ALL SELECT concat_ws(' ', 'function', pg_get_functiondef(p.oid)) FROM pg_proc p
    JOIN ours n ON n.oid = p.pronamespace
  UNION ALL SELECT concat_ws(' ', 'view', viewname, definition) FROM pg_views WHERE schemaname = 'public'
) AS lines (line) ORDER BY 1
"""
ROWS = """
SELECT 'ledger' AS what, string_agg(hash || created_at, ' ' ORDER BY id) AS rows FROM drizzle.__drizzle_migrations
UNION ALL SELECT 'own ledger', string_agg(hash || created_at, ' ' ORDER BY id) FROM orchestrator.__drizzle_migrations
UNION ALL SELECT 'records', string_agg(ledger || name || hash, ' ' ORDER BY id) FROM orchestrator.migration_records
UNION ALL SELECT 'unfinished', string_agg(name, ' ') FROM orchestrator.unfinished_migrations
UNION ALL SELECT 'a', md5(string_agg(a::text, ',' ORDER BY id)) FROM a
UNION ALL SELECT 'b', md5(string_agg(b::text, ',' ORDER BY id)) FROM b
UNION ALL SELECT 'p', md5(string_agg(p::text, ',' ORDER BY id)) FROM p
UNION ALL SELECT 'p1', md5(string_agg(p1::text, ',' ORDER BY id)) FROM p1
UNION ALL SELECT 'small_0', md5(string_agg(small_0::text, ',' ORDER BY id)) FROM small_0
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    path: Path = tmp_path_factory.mktemp("mixed")
    (path / "meta").mkdir()
    entries = []
    for number, statements in enumerate(FILES):
        (path / f"{number:04}_m.sql").write_text(BREAK.join(f"{s};" for s in statements))
        entries.append({"idx": number, "when": 1716000000000 + number, "tag": f"{number:04}_m", "breakpoints": True})
    (path / "meta" / "_journal.json").write_text(json.dumps({"entries": entries}))
    return str(path)


async def state_of(admin, url: str) -> list[str]:
    lines = [row["line"] for row in await admin(url, STATE)]
    return lines + [f"rows {row['what']} {row['rows']}" for row in await admin(url, ROWS)]


def assert_same(state: list[str], undisturbed: list[str], what: str) -> None:
    more, less = sorted(set(state) - set(undisturbed)), sorted(set(undisturbed) - set(state))
    assert (more, less, len(state)) == ([], [], len(undisturbed)), what


class Undisturbed:
    """What a run ends in, and how long it takes."""

    def __init__(self, state: list[str], duration_s: float) -> None:
        self.state, self.duration_s = state, duration_s
        self.random = random.Random(SEED)
        self.hit: Counter[str] = Counter()

    def instant_s(self) -> float:
        return self.random.uniform(0, self.duration_s)

    def saw(self, process) -> None:
        """Count where the process was when it was struck."""
        phases = [event["phase"] for event in process.events if event["event"] == "phase.entered"]
        self.hit["ended" if process.returncode is not None else phases[-1] if phases else "starting"] += 1

    def told(self) -> str:
        return f"seed {SEED}, a run takes {self.duration_s:.2f} s, struck while: {dict(self.hit)}"


async def undisturbed(orchestrator, admin, urls: list[str], folder: str) -> Undisturbed:
    durations = []
    for url in urls:
        result = await orchestrator("migrate", env={"DATABASE_URL": url, "MIGRATIONS_DIR": folder})
        assert result.returncode == 0, result.stderr
        durations.append(result.duration_s)
    return Undisturbed(await state_of(admin, urls[0]), sum(durations) / len(durations))


async def test_the_process_killed_at_any_instant(orchestrator, admin, make_database, folder):
    one = await undisturbed(orchestrator, admin, [await make_database() for _ in range(2)], folder)
    for number in range(KILLS or 6):
        url, instant_s = await make_database(), one.instant_s()
        env = {"DATABASE_URL": url, "MIGRATIONS_DIR": folder}
        async with orchestrator.running("migrate", env=env) as process:
            await asyncio.sleep(instant_s)
            one.saw(process)
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
            await process.wait()
        result = await orchestrator("migrate", env=env)
        what = f"kill {number} at {instant_s:.3f} s; {one.told()}\n{result.stderr}"
        assert result.returncode == 0, what
        assert_same(await state_of(admin, url), one.state, what)
        await admin(urlunsplit(urlsplit(url)._replace(path="/postgres")), f"DROP DATABASE {urlsplit(url).path[1:]}")
    print(f"process: {KILLS or 6} kills, {one.told()}")


async def test_the_connection_cut_at_any_instant(orchestrator, admin, make_database, folder, tcp_proxy):
    first = [tcp_proxy.dsn(await make_database()) for _ in range(2)]
    one = await undisturbed(orchestrator, admin, first, folder)
    for number in range(KILLS or 5):
        url, instant_s = await make_database(), one.instant_s()
        env = {"DATABASE_URL": tcp_proxy.dsn(url), "MIGRATIONS_DIR": folder}
        async with orchestrator.running("migrate", env=env) as process:
            await asyncio.sleep(instant_s)
            one.saw(process)
            await tcp_proxy.cut()
            code = await process.wait()
        what = f"cut {number} at {instant_s:.3f} s; {one.told()}\n{process.stderr}"
        assert code == 0, what
        assert_same(await state_of(admin, url), one.state, what)
        await admin(urlunsplit(urlsplit(url)._replace(path="/postgres")), f"DROP DATABASE {urlsplit(url).path[1:]}")
    print(f"connection: {KILLS or 5} cuts, {one.told()}")


def children(pid: int) -> dict[int, str]:
    """The server's processes and what they call themselves."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found[int(stat.parent.name)] = (stat.parent / "cmdline").read_text().replace("\0", " ")
    return found


@contextlib.asynccontextmanager
async def server_that_may_die(data_dir: Path, known):
    """Embedded, durable, and started again when it was ended from outside."""
    stack = contextlib.AsyncExitStack()

    async def start():
        server = await stack.enter_async_context(embedded_postgres(data_dir, lambda *_, **__: None))
        known.secrets.add(server.dsn.split(":")[2].split("@")[0])
        return server

    async def again():
        await stack.aclose()
        for _ in range(200):
            # Its other processes notice that the postmaster is gone when they next wait for something.
            with contextlib.suppress(DataDirectoryInUseError):
                return await start()
            await asyncio.sleep(0.1)
        raise AssertionError("the processes of the killed server have not gone in 20 s")

    try:
        yield await start(), again
    finally:
        await stack.aclose()


async def test_the_server_killed_at_any_instant(orchestrator, admin, folder, tmp_path, known, wait_until):
    """A backend by SIGKILL (the server recovers by itself), all by immediate shutdown, the postmaster by SIGKILL."""
    async with server_that_may_die(tmp_path / "server", known) as (first, again):
        server, made = first, 0

        async def make() -> str:
            nonlocal made
            made += 1
            await admin(server.dsn, f"CREATE DATABASE crash_{made}")
            return urlunsplit(urlsplit(server.dsn)._replace(path=f"/crash_{made}"))

        one = await undisturbed(orchestrator, admin, [await make() for _ in range(2)], folder)
        ways = ("backend", "immediate", "postmaster")
        for number in range(KILLS or 3):
            way, url, instant_s = ways[number % 3], await make(), one.instant_s()
            env = {"DATABASE_URL": url, "MIGRATIONS_DIR": folder}
            async with orchestrator.running("migrate", env=env) as process:
                await asyncio.sleep(instant_s)
                one.saw(process)
                if way == "backend":
                    processes = children(server.pid)
                    ours = [pid for pid, title in processes.items() if f" crash_{made} " in title]
                    # Before it has logged in, or after it has gone, any process of the server will do.
                    os.kill(one.random.choice(ours or list(processes)), signal.SIGKILL)
                else:
                    os.kill(server.pid, signal.SIGQUIT if way == "immediate" else signal.SIGKILL)
                    server = await again()
                code = await process.wait()
            what = f"{way} killed ({number}) at {instant_s:.3f} s; {one.told()}\n{process.stderr}"
            assert code == 0, what
            await wait_until(functools.partial(answers, admin, url), timeout_s=20, what="the server is back")
            if one.random.random() < 0.5:  # what was said to be there is there for the next start, too
                assert (await orchestrator("migrate", env=env)).returncode == 0, what
            assert_same(await state_of(admin, url), one.state, what)
            await admin(server.dsn, f"DROP DATABASE crash_{made}")
    print(f"server: {KILLS or 3} kills, {one.told()}")


async def answers(admin, url: str) -> bool:
    with contextlib.suppress(Exception):
        return await admin.value(url, "SELECT true")
    return False
