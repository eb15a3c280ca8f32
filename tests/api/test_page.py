"""The status page in a real Chromium: what a person sees of a start, of its failure, and of the job server.

Needs Debian's chromium (CHROMIUM names another); skipped without one, but in CI.
"""

import json
import os
import signal
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path

import aiohttp
import pytest
from playwright.async_api import expect
from support.page_checks import NEEDS_CHROMIUM, assert_accessible, assert_fits_a_phone, favicon, heading, region

from orchestrator.api.page import MODULES

pytest_plugins = ["support.browser"]

HOSTILE = "<img src=x onerror=window.hit=1><script>window.hit=1</script>\u202egnp"
SHOWN = HOSTILE.replace("\u202e", "\\u202e")
OWN = len(json.loads((Path(__file__).parents[2] / "migrations/meta/_journal.json").read_text())["entries"])
BREAK = "\n--> statement-breakpoint\n"

pytestmark = NEEDS_CHROMIUM


@pytest.fixture
def folder(tmp_path):
    """Write a v0 folder of (tag, SQL) files, again if need be."""

    def write(*files: tuple[str, str]) -> str:
        path = tmp_path / "drizzle"
        (path / "meta").mkdir(parents=True, exist_ok=True)
        entries = []
        for number, (tag, sql) in enumerate(files):
            (path / f"{tag}.sql").write_text(sql)
            entries.append({"idx": number, "when": 1716000000000 + number, "tag": tag, "breakpoints": True})
        (path / "meta" / "_journal.json").write_text(json.dumps({"entries": entries}))
        return str(path)

    return write


@pytest.fixture
def held(admin, database_url):
    """`async with held(): …`: a migration that takes advisory lock 7 stands still in the block."""

    @asynccontextmanager
    async def hold():
        async with admin.connection(database_url) as holder:
            await holder.execute("SELECT pg_advisory_lock(7)")
            yield

    return hold


HOLD = "SELECT pg_advisory_lock(7);"


async def test_a_start_is_watched_from_its_first_phase_to_its_last(
    orchestrator, browser, tcp_proxy, database_url, folder, held, admin
):
    await tcp_proxy.refuse()
    files = (("0000_first", "CREATE TABLE a ();"), ("0001_held", f"{HOLD}{BREAK}SELECT 'a secret';"), ("0002_last", ""))
    env = {
        "DATABASE_URL": tcp_proxy.dsn(database_url),
        "MIGRATIONS_DIR": folder(*files),
        "EXTENSIONS": "hstore,no_such_thing",
    }
    async with held(), orchestrator.running("serve", env=env) as run:
        await run.event("database.connect_failed")
        page = await browser.open(run.url)
        await expect(heading(page, "Waiting for the database")).to_be_visible()
        await expect(page).to_have_title("Waiting for the database · orchestrator")
        waiting_icon = await favicon(page)
        chain = page.get_by_role("list").filter(has=page.get_by_role("heading", name="Migrations"))
        await expect(chain).to_contain_text("Connection refused at 127.0.0.1")
        await expect(chain).to_contain_text("Nothing listens at this address yet")
        await expect(chain).to_contain_text("Next try")
        clock = chain.locator(".now .clock")
        before = await clock.inner_text()
        await expect(clock).not_to_have_text(before)  # it runs
        await assert_accessible(page)
        await assert_fits_a_phone(page)

        await tcp_proxy.accept()
        await expect(heading(page, "Applying migrations")).to_be_visible()
        await expect(page).to_have_title(f"Applying migrations {OWN + 1}/{OWN + 3} · orchestrator")
        await expect(chain).to_contain_text("hstore 1.")
        await expect(chain).to_contain_text("no_such_thing")
        await expect(chain).to_contain_text("the server has no files of it")
        now = page.locator(".running-now")
        await expect(now).to_contain_text("0001_held")
        await expect(now).to_contain_text("SELECT pg_advisory_lock(…)")  # the statement, without its values
        await expect(now).to_contain_text("Waits for pid")  # and who is in its way
        await expect(page.get_by_role("progressbar")).to_have_accessible_name("Progress of 0001_held")
        assert await favicon(page) != waiting_icon
        await assert_accessible(page)
        await assert_fits_a_phone(page)
        details = page.get_by_text(f"All {OWN + 3} migrations")
        await details.click()
        await expect(page.get_by_role("list", name="Migrations").get_by_role("listitem").nth(OWN + 1)).to_contain_text(
            "running"
        )

        # The holder ends with the block below; until then the lock is another session's.
        await admin(database_url, "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"
                    " AND objid = 7 AND granted AND pid <> pg_backend_pid()")  # fmt: skip
        await expect(heading(page, "Ready")).to_be_visible()
        await expect(page).to_have_title("Ready · orchestrator")
        await expect(page.get_by_role("status")).to_have_text("Ready")  # spoken to who listens
        await expect(page.get_by_role("list", name="Warnings")).to_contain_text(
            "The extension no_such_thing is missing"
        )
        await expect(page.locator("#bar")).to_contain_text("Live")
        await page.get_by_text("This start, step by step").click()
        await expect(page.locator(".chain .done .clock").first).to_contain_text("s")
        await assert_accessible(page)
        await assert_fits_a_phone(page)


async def test_a_failed_start_stays_on_the_screen_and_the_next_one_is_found(
    orchestrator, browser, database_url, folder, held
):
    tag = f"0000_{HOSTILE.replace('/', '_')}"
    error = f"DO $$ BEGIN RAISE EXCEPTION '{HOSTILE}' USING DETAIL = '{HOSTILE}', HINT = 'Look here.'; END $$;"
    env = {"DATABASE_URL": database_url, "MIGRATIONS_DIR": folder((tag, f"{HOLD}{BREAK}\n{error}"))}
    async with held():
        run_context = orchestrator.running("serve", env=env)
        run = await run_context.__aenter__()
        await run.phase("migrating")
        page = await browser.open(run.url)
        await expect(page.locator(".running-now")).to_contain_text(SHOWN.replace("/", "_"))
    assert await run.wait() == 70
    await run_context.__aexit__(None, None, None)
    await expect(heading(page, "The start failed")).to_be_visible()
    await expect(page).to_have_title("The start failed · orchestrator")
    panel = page.get_by_role("region", name="Why it failed")
    await expect(panel.get_by_role("heading", level=2)).to_have_text(SHOWN)
    await expect(panel).to_contain_text("line 4, column 1")
    await expect(panel.locator("mark")).to_contain_text("DO $$ BEGIN")
    await expect(panel).to_contain_text("P0001")
    await expect(panel).to_contain_text("Look here.")
    await expect(panel.get_by_role("heading", name="What to do")).to_be_visible()
    await expect(panel).to_contain_text("Starting it again as it is will end the same way.")
    await expect(page.locator(".hero")).to_contain_text("The process has ended with exit code 70.")
    await expect(page.locator("#bar")).to_contain_text("Ended")
    await assert_accessible(page)
    await assert_fits_a_phone(page)
    assert await page.evaluate("window.hit") is None
    assert await page.locator("main img, main script").count() == 0

    env |= {"MIGRATIONS_DIR": folder((tag, f"{HOLD}{BREAK}SELECT 1;")), "PORT": str(run.port)}
    async with held():
        run_context = orchestrator.running("serve", env=env)
        run = await run_context.__aenter__()
        await expect(heading(page, "Applying migrations")).to_be_visible()
        await expect(page.get_by_text("The start before this one failed")).to_be_visible()
    await expect(heading(page, "Ready")).to_be_visible()
    await expect(page.get_by_text("The start before this one failed")).to_have_count(0)
    await run_context.__aexit__(None, None, None)
    await expect(heading(page, "Stopped")).to_be_visible()


async def test_it_says_when_the_database_is_lost_and_back_and_when_it_is_cut_off_itself(
    orchestrator, browser, tcp_proxy, database_url
):
    async with orchestrator.running("serve", env={"DATABASE_URL": tcp_proxy.dsn(database_url)}) as run:
        await run.phase("ready")
        page = await browser.open(run.url)
        await expect(heading(page, "Ready")).to_be_visible()
        await tcp_proxy.refuse()
        await tcp_proxy.cut()
        await expect(heading(page, "The database is lost")).to_be_visible(timeout=25_000)
        await expect(page.locator(".chain")).to_contain_text("Connection refused")
        await tcp_proxy.accept()
        await expect(heading(page, "Ready")).to_be_visible()
        os.kill(run.pid, signal.SIGKILL)
        await run.wait()
        await expect(heading(page, "Cut off")).to_be_visible()
        await expect(page.locator(".hero")).to_contain_text("No answer since")
        await expect(page.locator("#bar")).to_contain_text("Cut off")
        await assert_accessible(page)


async def test_where_streams_do_not_come_through_it_asks_again_and_says_so(orchestrator, browser, database_url):
    async with orchestrator.running("serve", env={"DATABASE_URL": "postgresql://u:pw@127.0.0.1:1/db"}) as run:
        await run.event("database.connect_failed")
        page = await browser.open("about:blank")

        async def no_streams(route):
            is_stream = route.request.headers.get("accept") == "text/event-stream"
            await (route.abort() if is_stream else route.continue_())

        await page.route("**/health/events", no_streams)
        await page.goto(run.url)
        await expect(heading(page, "Waiting for the database")).to_be_visible()
        await expect(page.locator("#bar")).to_contain_text("Asking every 2 s")


async def test_it_loads_nothing_from_outside_and_serves_keyboards_and_who_wants_no_motion(orchestrator, browser):
    async with orchestrator.running("serve", env={"DATABASE_URL": "postgresql://u:pw@127.0.0.1:1/db"}) as run:
        await run.event("database.connect_failed")
        html = await run.get("/", headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
        policy = html.headers["Content-Security-Policy"]
        assert (html.status, html.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';")
        assert "unsafe" not in policy
        assert "://" not in html.body.replace("http://www.w3.org/2000/svg", "")
        assert (await run.get("/")).status == 503  # curl: JSON, behind the gate
        script = await run.get("/page/page.js")
        assert script.headers["Content-Type"] == "text/javascript; charset=utf-8"
        again = await run.get("/page/page.js", headers={"If-None-Match": script.headers["ETag"]})
        assert again.status == 304
        for path in ("/page/", "/page/__init__.py", "/page/../page.js", "/page/page.html"):
            assert (await run.get(path)).status in {404, 503}, path
        asked: list[str] = []
        page = await browser.open("about:blank", reduced_motion="reduce")
        page.on("request", lambda request: asked.append(request.url))
        await page.goto(run.url)
        await expect(heading(page, "Waiting for the database")).to_be_visible()
        assert {url.removeprefix(run.url) for url in asked if not url.startswith("data:")} == {
            "/", "/page/page.css", "/page/dashboard.css", "/health/events", *(f"/page/{name}" for name in MODULES),
        }  # fmt: skip
        await page.keyboard.press("Tab")
        await expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("main")).to_be_focused()
        assert await page.evaluate("document.getAnimations().length") == 0
        assert await page.get_by_role("banner").count() == await page.get_by_role("contentinfo").count() == 1


def test_every_module_of_the_page_is_served_and_is_short():
    folder = resources.files("orchestrator.api.page")
    assert sorted(MODULES) == sorted(file.name for file in folder.iterdir() if file.name.endswith(".js"))
    html = (folder / "page.html").read_text()
    for name in MODULES:
        assert f'"page/{name}"' in html
        assert len((folder / name).read_text().splitlines()) < 350, name


HANDLERS = f"""
import asyncio
from orchestrator.jobs import Context, job

@job("slow.count")
async def count(ctx: Context, payload: dict) -> None:
    await ctx.progress(3, 12, {HOSTILE!r})
    await asyncio.sleep(600)

@job("always.fails", queue="other")
async def fails(ctx: Context, payload: dict) -> None:
    raise ValueError({HOSTILE!r})

@job("by.clock", schedule="0 4 1 1 *")
async def clock(ctx: Context, payload: dict) -> None:
    pass
"""
TOKEN = "t0ken-of-the-page-tests"


@pytest.fixture
def jobs_env(database_url, tmp_path, known):
    (tmp_path / "page_jobs.py").write_text(HANDLERS)
    known.secrets.add(TOKEN)
    root = Path(__file__).parents[2]
    return {"DATABASE_URL": database_url, "JOBS": "page_jobs", "PYTHONPATH": f"{root}:{tmp_path}", "API_TOKEN": TOKEN}


async def enqueue(run, name: str) -> int:
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {TOKEN}"}) as session,
        session.post(f"{run.url}/api/jobs", json={"name": name, "payload": {}}) as response,
    ):
        assert response.status == 202, await response.text()
        return (await response.json())["id"]


async def test_actions_come_with_the_token_and_the_server_refuses_without_it(
    orchestrator, browser, jobs_env, admin, database_url, wait_until
):
    async with orchestrator.running("serve", env=jobs_env) as run:
        await run.phase("ready")
        failing, slow = await enqueue(run, "always.fails"), await enqueue(run, "slow.count")
        page = await browser.open(run.url)
        await expect(region(page, "Jobs")).to_contain_text("API token")
        await expect(page.get_by_role("button", name="Retry")).to_have_count(0)
        await expect(region(page, "Queues")).to_have_count(0)
        refused = await page.evaluate(f"fetch('api/jobs/{failing}/retry', {{method: 'POST'}}).then(r => r.status)")
        assert refused == 401
        await assert_accessible(page)

        await page.get_by_role("button", name="Enter the token").click()
        await assert_accessible(page)
        await page.get_by_role("textbox", name="Token").fill("wrong")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("alert")).to_have_text("The server refused this token.")
        await page.get_by_role("textbox", name="Token").fill(TOKEN)
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("dialog")).to_have_count(0)

        card = page.get_by_role("article", name="Queue other")
        await expect(card).to_contain_text("failed")
        failures, running = region(page, "Failures"), region(page, "Running")
        await expect(failures).to_contain_text(SHOWN)
        await expect(running).to_contain_text(SHOWN)
        await expect(running).to_contain_text("3 of 12")
        assert await page.evaluate("window.hit") is None
        await assert_accessible(page)
        await assert_fits_a_phone(page)

        await failures.get_by_role("button", name="Retry always.fails").click()
        await expect(page.get_by_role("status")).to_have_text("1 job queued again.")
        attempts = "SELECT count(*) FROM orchestrator.attempts WHERE job_id = $1"
        await wait_until(lambda: admin.value(database_url, attempts + " AND attempt = 2", failing))
        await page.get_by_role("button", name=f"Cancel slow.count #{slow}").click()
        await expect(running).to_contain_text("Nothing runs.")
        state = await admin.value(database_url, "SELECT state FROM orchestrator.jobs WHERE id = $1", slow)
        assert state == "cancelled"
        schedule = page.get_by_role("row").filter(has_text="by.clock")
        await expect(schedule).to_contain_text("never")
        await expect(schedule).to_contain_text("at 04:00, on the 1st of January")
        await page.get_by_role("button", name="Run now by.clock").click()
        await wait_until(
            lambda: admin.value(
                database_url, "SELECT count(*) FROM orchestrator.jobs WHERE name = 'by.clock' AND state = 'succeeded'"
            )
        )

        await expect(schedule).to_contain_text("succeeded")  # and no longer "never"

        live = await enqueue(run, "slow.count")  # nobody touches the page
        await expect(running).to_contain_text(f"#{live}")
        await page.reload()
        await expect(running).to_contain_text(f"#{live}")  # the token is kept for the tab
        await page.get_by_role("button", name="Forget the token").click()
        await expect(region(page, "Queues")).to_have_count(0)
        other = await browser.open(run.url)
        await expect(other.get_by_role("button", name="Enter the token")).to_be_visible()
        starts = page.get_by_role("region", name="Starts")
        await expect(starts).to_have_count(0)


async def test_without_a_token_on_loopback_actions_are_there_at_once(orchestrator, browser, jobs_env):
    env = {name: value for name, value in jobs_env.items() if name != "API_TOKEN"}
    async with orchestrator.running("serve", env=env) as run:
        await run.phase("ready")
        page = await browser.open(run.url)
        await expect(page.get_by_role("button", name="Run now by.clock")).to_be_visible()
        await expect(region(page, "Starts")).to_contain_text("mostly")
        await expect(page.get_by_role("button", name="token")).to_have_count(0)


async def test_a_server_that_is_closed_to_the_network_has_a_page_that_says_so(orchestrator, browser, jobs_env):
    env = {name: value for name, value in jobs_env.items() if name != "API_TOKEN"} | {"HOST": "0.0.0.0"}
    async with orchestrator.running("serve", env=env) as run:
        await run.phase("ready")
        page = await browser.open(run.url)
        await expect(page.get_by_text("Nothing but /health answers.")).to_be_visible()
        await expect(page.get_by_role("heading", name="Ready")).to_be_visible()
        await expect(page.get_by_role("button", name="token")).to_have_count(0)
        await assert_accessible(page)
