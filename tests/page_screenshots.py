"""Screenshots of the status page, from real servers with realistic content: `python tests/page_screenshots.py [name…]`.

Writes tests/screenshots/<state>-<scheme>.png for the states starting, ready, failed (and others by name), or into OUT;
ALL_VIEWS=1 adds the views behind ready, PHONE=1 is narrow. Needs the
packages of the extra `test`, Debian's chromium, and for the look of most desktops fonts-inter and fonts-jetbrains-mono.
"""

import asyncio
import json
import os
import re
import struct
import sys
import tempfile
import time
import zlib
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
from playwright.async_api import async_playwright

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from orchestrator.embedded.server import embedded_postgres  # noqa: E402 the tree beside this file is meant

OUT = Path(os.environ.get("OUT", ROOT / "tests" / "screenshots"))
OUT.mkdir(exist_ok=True)
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--font-render-hinting=none"),
]
PORT = 3987

TABLES = [
    "servers", "users", "items", "sessions", "libraries", "activities", "hidden_recommendations", "people",
    "item_people", "job_results", "server_settings", "embeddings", "watch_time", "anomalies", "user_settings",
]  # fmt: skip


def folder(path: Path, *last: tuple[str, str]) -> str:
    """A project of 44 migrations that looks like one that grew, and `last`."""
    files = []
    for number, table in enumerate(TABLES):
        sql = (
            f'CREATE TABLE "{table}" (id bigint PRIMARY KEY, name text, server_id bigint, data jsonb,'
            " created_at timestamptz DEFAULT now());\n"
            f'INSERT INTO "{table}" (id, name, server_id) SELECT n, md5(n::text), n % 7'
            f" FROM generate_series(1, {500 * (number % 4) ** 3 + 50}) n;"
        )
        files.append((f"{number:04d}_create_{table}", sql))
    for number in range(len(TABLES), 43):
        table = TABLES[number % len(TABLES)]
        kind = number % 3
        sql = [
            f'CREATE INDEX "{table}_name_{number}" ON "{table}" (name);',
            f'ALTER TABLE "{table}" ADD COLUMN "field_{number}" text DEFAULT \'\' NOT NULL;',
            f"UPDATE \"{table}\" SET data = jsonb_build_object('n', id, 'at', created_at);",
        ][kind]
        name = ["index", "add_field", "backfill"][kind]
        files.append((f"{number:04d}_{table}_{name}", sql))
    files += last
    (path / "meta").mkdir(parents=True)
    entries = []
    for number, (tag, sql) in enumerate(files):
        (path / f"{tag}.sql").write_text(sql)
        entries.append({"idx": number, "when": 1716000000000 + number * 86_400_000, "tag": tag, "breakpoints": True})
    (path / "meta" / "_journal.json").write_text(json.dumps({"version": "7", "entries": entries}))
    return str(path)


@asynccontextmanager
async def database(dsn: str, name: str):
    connection = await asyncpg.connect(dsn)
    await connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
    await connection.execute(f'CREATE DATABASE "{name}"')
    try:
        yield dsn.replace("/postgres?", f"/{name}?") if "/postgres?" in dsn else dsn.rsplit("/", 1)[0] + f"/{name}"
    finally:
        await connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        await connection.close()


@asynccontextmanager
async def serving(dsn: str, command: str = "serve", **env: str):
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "orchestrator", command),
        env={
            "PATH": os.environ["PATH"],
            "HOME": os.environ.get("HOME", "/root"),
            "DATABASE_URL": dsn,
            "HOST": "127.0.0.1",
            "PORT": str(PORT),
            "LOG_FORMAT": "json",
            "PYTHONPATH": str(ROOT),
            **env,
        },
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE if not os.environ.get("VERBOSE") else None,
        cwd=ROOT,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def failed(work: Path, dsn: str, look):
    broken = (
        'ALTER TABLE "sessions" ADD COLUMN "play_range" tstzrange;\n--> statement-breakpoint\n'
        'UPDATE "sessions" SET "play_range" = tstzrange(created_at, created_at + interval \'1 hour\');\n'
        "--> statement-breakpoint\n"
        'CREATE UNIQUE INDEX "sessions_one_per_server" ON "sessions" ("server_id") WHERE "name" IS NOT NULL;'
    )
    wait = ("0043_sessions_reindex", "SELECT pg_sleep(2);")
    directory = folder(work / "drizzle", wait, ("0044_playback_ranges", broken))
    async with database(dsn, "shot_failed") as own, look.open(PORT):
        async with serving(own, MIGRATIONS_DIR=directory, EXTENSIONS="vector") as process:
            await process.wait()
        await look.until("The start failed")
        await look.take("failed")


async def starting(work: Path, dsn: str, look):
    slow = (
        "INSERT INTO \"embeddings\" (id, name, data) SELECT n, md5(n::text), jsonb_build_object('n', n)"
        " FROM generate_series(100000, 1900000) n;\n--> statement-breakpoint\n"
        'CREATE INDEX "embeddings_by_name" ON "embeddings"\n  USING btree (("data" ->> \'n\'), "name",'
        " created_at DESC)\n  WHERE name IS NOT NULL;"
    )
    view = "SELECT pg_sleep(30);"
    more = (("0043_embedding_index", slow), ("0044_watch_time_view", view), ("0045_people_search", "SELECT 1;"))
    async with database(dsn, "shot_starting") as own:
        directory = folder(work / "starting", *more)
        async with look.open(PORT), serving(own, MIGRATIONS_DIR=directory, EXTENSIONS="vector,pg_trgm"):
            await look.until("Applying migrations")
            await look.until_text(re.compile(r"[2-9]\d %"))
            await look.take("starting")


async def waiting(work: Path, dsn: str, look):
    async with look.open(PORT), serving("postgresql://app:secret@127.0.0.1:1/jellystats"):
        await look.until("Waiting for the database")
        await asyncio.sleep(1)
        await look.take("waiting")


async def locked(work: Path, dsn: str, look):
    async with database(dsn, "shot_locked") as own:
        holder = await asyncpg.connect(own, server_settings={"application_name": "orchestrator serve"})
        from orchestrator.database.lock import LOCK_KEY

        await holder.execute(f"SELECT pg_advisory_lock({LOCK_KEY})")
        async with look.open(PORT), serving(own):
            await look.until("Waiting for another migrator")
            await asyncio.sleep(1)
            await look.take("locked")
        await holder.close()


HANDLERS = '''
import asyncio
from orchestrator.jobs import Context, job

async def work(ctx: Context, payload: dict) -> None:
    total, note = payload.get("total", 100), payload.get("note", "")
    for done in range(payload.get("done", 0), total + 1):
        await ctx.progress(done, total, note)
        await asyncio.sleep(payload.get("pace_s", 0.01))

@job("library.sync", schedule="*/20 * * * *")
async def sync(ctx: Context, payload: dict) -> None:
    """Bring a library up to date with its server."""
    await work(ctx, payload)

@job("embeddings.generate", queue="embeddings", concurrency=2, retries=3, schedule="15 2 * * *", timezone="Asia/Tokyo")
async def embed(ctx: Context, payload: dict) -> None:
    """Vectors for what has none yet."""
    if payload.get("model") == "gone":
        raise_for_status(404, payload)
    await work(ctx, payload)

def raise_for_status(status: int, payload: dict) -> None:
    raise RuntimeError(f"the model {payload['model']!r} is not there: the server answered {status}")

@job("sessions.poll", queue="polling", schedule="* * * * *")
async def poll(ctx: Context, payload: dict) -> None:
    """Who watches what, now."""

@job("posters.fetch")
async def posters(ctx: Context, payload: dict) -> None:
    """Pictures of new items."""
    raise ConnectionRefusedError(111, "Connect call failed ('10.0.4.18', 8096)")

@job("report.weekly", schedule="0 8 * * 1", timezone="Asia/Tokyo")
async def report(ctx: Context, payload: dict) -> None:
    """The mail on Mondays."""
'''

# What a day leaves behind: ended jobs for the charts, starts for the bars.
PAST = """
DELETE FROM orchestrator.starts;
INSERT INTO orchestrator.jobs (name, queue, state, attempt, run_at, created_at, started_at, finished_at)
SELECT name, queue, 'succeeded', 1, t, t, t, t FROM (
    SELECT name, queue, now() - (m * 60 + 20 + n % 30) * interval '1 second' AS t
    FROM (VALUES ('library.sync', 'default', 9.0, 0.35), ('embeddings.generate', 'embeddings', 34.0, 0.21),
        ('sessions.poll', 'polling', 6.0, 0.9)) AS of (name, queue, most, wave),
        generate_series(0, 29) m,
        generate_series(1, (most * (1.15 + sin(m * wave) + 0.5 * sin(m * 2.3 + most)))::int) n
) past;
INSERT INTO orchestrator.starts (started_at, version, host, pid, command, phases, migrations_applied, outcome, error)
SELECT now() - age::interval, version, 'job-server', 1, 'serve', phases::jsonb, applied, outcome, error::jsonb FROM (VALUES
    ('9 days', '0.0.9', '{"starting":0.2,"connecting":2.7,"locking":0.01,"extensions":0.4,"migrating":4.8,"launching":0.04}', 38, 'ready', NULL),
    ('6 days', '0.0.9', '{"starting":0.2,"connecting":3.4,"locking":8.2,"extensions":0.02,"migrating":0.05,"launching":0.04}', 0, 'ready', NULL),
    ('25 hours', '0.1.0', '{"starting":0.2,"connecting":0.05,"locking":0.01,"extensions":0.02,"migrating":6.1}', 2, 'failed', '{"message": "0041_play_ranges.sql:12: column \\"range\\" already exists"}'),
    ('1 day', '0.1.0', '{"starting":0.2,"connecting":0.05,"locking":0.01,"extensions":0.02,"migrating":14.3,"launching":0.06}', 3, 'ready', NULL),
    ('2 hours', '0.1.0', '{"starting":0.2,"connecting":1.9,"locking":0.01,"extensions":0.02,"migrating":0.06,"launching":0.05}', 0, 'ready', NULL)
) AS past (age, version, phases, applied, outcome, error);
"""  # noqa: E501 a table is a table


async def ready(work: Path, dsn: str, look):
    (work / "jellystats_jobs.py").write_text(HANDLERS)
    sys.path.insert(0, str(work))
    import jellystats_jobs  # noqa: F401 declares the handlers for `enqueue` below

    from orchestrator.jobs import enqueue

    async with database(dsn, "shot_ready") as own:
        env = {
            "MIGRATIONS_DIR": folder(work / "ready"),
            "EXTENSIONS": "vector,pg_trgm",
            "JOBS": "jellystats_jobs",
            "PYTHONPATH": f"{ROOT}:{work}",
            "API_TOKEN": "a-token-for-the-screenshot",
            "INSTANCE_NAME": "jellystats",
        }
        async with serving(own, "migrate", **env) as process:
            await process.wait()
        connection = await asyncpg.connect(own)
        await connection.execute(PAST)
        async with look.open(PORT), serving(own, **env):
            await look.until("Ready")
            # as if it had run for days
            await connection.execute(
                "UPDATE orchestrator.schedules SET last_run_at = next_run_at - CASE name"
                " WHEN 'report.weekly' THEN interval '7 days' WHEN 'embeddings.generate' THEN interval '1 day'"
                " WHEN 'library.sync' THEN interval '20 minutes' ELSE interval '1 minute' END"
            )
            slow = {"pace_s": 2}
            await enqueue(
                connection,
                "embeddings.generate",
                {**slow, "done": 1241, "total": 1800, "note": "Movies: batch 13 of 18, bge-small"},
            )
            await enqueue(
                connection, "embeddings.generate", {**slow, "done": 310, "total": 2200, "note": "Shows: batch 4 of 22"}
            )
            for number in range(7):
                await enqueue(connection, "embeddings.generate", {"library": number})
            await enqueue(
                connection, "library.sync", {**slow, "done": 88, "total": 96, "note": "Reading Concerts from server 2"}
            )
            await enqueue(connection, "posters.fetch", {})
            await enqueue(connection, "embeddings.generate", {"model": "gone"}, max_attempts=1, priority=5)
            await enqueue(connection, "library.sync", {}, delay_s=5000)
            await look.give_token("a-token-for-the-screenshot")
            await look.until_text("batch 13 of 18")
            await asyncio.sleep(6)
            await look.take("ready")
            if os.environ.get("ALL_VIEWS"):
                number = await connection.fetchval("SELECT max(id) FROM orchestrator.jobs WHERE state = 'failed'")
                for name, address, text in (
                    ("jobs", "#/jobs?state=failed", "posters.fetch"),
                    ("job", f"#/jobs/{number}", "Attempt 1"),
                    ("schedules", "#/schedules", "library.sync"),
                    ("schedule", "#/schedules/embeddings.generate", "Last runs"),
                    ("migrations", "#/migrations", "Your migrations"),
                    ("migration", "#/migrations/user/0003_create_sessions", "Statements"),
                    ("starts", "#/starts", "mostly"),
                    ("start", "#/starts/3", "Host"),
                    ("add", "#/add?name=embeddings.generate", "Vectors"),
                    ("failures", "#/failures", "given up"),
                ):
                    await look.go(address, text)
                    await asyncio.sleep(0.5)
                    await look.take(name)
        await connection.close()


STATES = {f.__name__: f for f in (starting, ready, failed, waiting, locked)}


class Look:
    """Two pages on one server, light and dark, that are told apart by nothing else."""

    def __init__(self, browser, *, width: int = 1180, height: int = 860, full: bool = True) -> None:
        self._browser, self._size, self._full, self._pages = browser, {"width": width, "height": height}, full, {}

    @asynccontextmanager
    async def open(self, port: int):
        # The page is there before the server is: it needs one to be loaded from.
        async with serving("postgresql://u:p@127.0.0.1:1/none"):
            for scheme in ("light", "dark"):
                context = await self._browser.new_context(
                    color_scheme=scheme, viewport=self._size, device_scale_factor=1, locale="en-GB"
                )
                page = self._pages[scheme] = await context.new_page()
                page.on("pageerror", lambda error: print("pageerror:", error))
                for _ in range(100):
                    try:
                        await page.goto(f"http://127.0.0.1:{port}/")
                        break
                    except Exception:  # noqa: BLE001 not up yet
                        await asyncio.sleep(0.1)
                await page.get_by_role("heading", name="database").first.wait_for()
        try:
            yield
        finally:
            for page in self._pages.values():
                await page.context.close()

    async def until(self, title: str) -> None:
        for page in self._pages.values():
            await page.get_by_role("heading", level=1, name=title).wait_for(timeout=60_000)

    async def until_text(self, text: str | re.Pattern[str]) -> None:
        for page in self._pages.values():
            await page.get_by_text(text).first.wait_for(timeout=60_000)

    async def give_token(self, token: str) -> None:
        for page in self._pages.values():
            await page.get_by_role("button", name="Enter the token").click()
            await page.get_by_role("textbox", name="Token").fill(token)
            await page.keyboard.press("Enter")

    async def go(self, address: str, text: str) -> None:
        """Open a view, and wait for a text in it."""
        for page in self._pages.values():
            await page.evaluate("address => { location.hash = address }", address)
            await page.locator("main").get_by_text(text).locator("visible=true").first.wait_for(timeout=30_000)

    async def take(self, name: str) -> None:
        shots = [page.screenshot(full_page=self._full, animations="disabled") for page in self._pages.values()]
        for scheme, png in zip(self._pages, await asyncio.gather(*shots), strict=True):
            path = OUT / f"{name}-{scheme}.png"
            path.write_bytes(quantised(png))
            print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


def quantised(png: bytes) -> bytes:
    """The same picture with a palette of at most 256 colours, where that is smaller (8-bit RGB or RGBA in)."""
    width, height, _, kind = struct.unpack(">IIBB", png[16:26])
    data, at = b"", 8
    while at < len(png):
        size = int.from_bytes(png[at : at + 4], "big")
        if png[at + 4 : at + 8] == b"IDAT":
            data += png[at + 8 : at + 8 + size]
        at += size + 12
    step = {2: 3, 6: 4}[kind]
    raw = zlib.decompress(data)
    rows, before, stride = [], bytearray(width * step), width * step
    for y in range(height):
        line = raw[y * (stride + 1) : (y + 1) * (stride + 1)]
        rows.append(before := unfiltered(line[0], bytearray(line[1:]), before, step))
    counts: dict[bytes, int] = {}
    for row in rows:
        for x in range(0, stride, step):
            colour = bytes(row[x : x + 3])
            counts[colour] = counts.get(colour, 0) + 1
    palette, index = _palette(counts)
    body = b"".join(b"\0" + bytes(index[bytes(row[x : x + 3])] for x in range(0, stride, step)) for row in rows)

    def chunk(name: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")

    head = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    small = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"PLTE", b"".join(palette))
    small += chunk(b"IDAT", zlib.compress(body, 9)) + chunk(b"IEND", b"")
    return min(small, png, key=len)


def _palette(counts: dict[bytes, int]) -> tuple[list[bytes], dict[bytes, int]]:
    """256 colours, and the one for each: the most frequent, then those that are farthest from what is there.

    A small green dot is a few pixels of a colour that nothing else has: by frequency alone it would turn grey.
    """

    def distance(a: bytes, b: bytes) -> int:
        return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))

    ordered = sorted(counts, key=lambda colour: -counts[colour])
    palette, rest = ordered[:160], ordered[160:]
    nearest = {c: min((distance(c, p), n) for n, p in enumerate(palette)) for c in rest}
    while rest and len(palette) < 256:
        farthest = max(rest, key=lambda c: nearest[c][0])
        rest.remove(farthest)
        palette.append(farthest)
        for c in rest:
            nearest[c] = min(nearest[c], (distance(c, farthest), len(palette) - 1))
    return palette, {**{c: n for n, c in enumerate(palette)}, **{c: nearest[c][1] for c in rest}}


def unfiltered(kind: int, line: bytearray, before: bytearray, step: int) -> bytearray:
    """One row of a PNG without its filter (PNG specification, 9.2)."""
    for x in range(len(line)):
        left = line[x - step] if x >= step else 0
        up, corner = before[x], before[x - step] if x >= step else 0
        if kind == 1:
            line[x] = (line[x] + left) & 255
        elif kind == 2:
            line[x] = (line[x] + up) & 255
        elif kind == 3:
            line[x] = (line[x] + (left + up) // 2) & 255
        elif kind == 4:
            a, b, c = abs(up - corner), abs(left - corner), abs(left + up - 2 * corner)
            line[x] = (line[x] + (left if a <= b and a <= c else up if b <= c else corner)) & 255
    return line


async def main(names: list[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="jellystats-") as directory:
        work = Path(directory)
        os.chmod(work, 0o755)  # noqa: PTH101 the server runs as somebody else
        async with (
            embedded_postgres(work / "data", lambda *_, **__: None, durable=False) as server,
            async_playwright() as playwright,
        ):
            browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
            size = {"width": 390, "height": 844} if os.environ.get("PHONE") else {}
            for name in names:
                began = time.monotonic()
                await STATES[name](work, server.dsn, Look(browser, **size))
                print(f"{name}: {time.monotonic() - began:.1f} s")
            await browser.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:] or ["starting", "ready", "failed"]))
