"""The page as a dashboard, in a real Chromium: whatever is counted opens what it counts, and can be acted on."""

import json
from pathlib import Path

import aiohttp
import pytest
from playwright.async_api import expect
from support.page_checks import NEEDS_CHROMIUM, assert_accessible, assert_fits_a_phone, favicon, heading, region

pytest_plugins = ["support.browser"]
pytestmark = NEEDS_CHROMIUM

HANDLERS = """
import asyncio
import msgspec
from orchestrator.jobs import Context, job


class Order(msgspec.Struct):
    customer: str
    amount: int = 1
    urgent: bool = False


@job("orders.bill")
async def bill(ctx: Context, payload: dict) -> None:
    raise KeyError(f"customer {payload['n']}")


@job("orders.print", retries=9, queue="printer")
async def print_(ctx: Context, payload: dict) -> None:
    raise OSError("the printer does not answer")


@job("orders.read", schedule="30 2 * * 1-5", timezone="Europe/Berlin")
async def read(ctx: Context, payload: dict) -> dict:
    ctx.log.info("order.read", lines=3)
    return {"read": payload}


@job("orders.place")
async def place(ctx: Context, payload: Order) -> dict:
    return {"placed": payload.customer, "amount": payload.amount}


@job("orders.watch")
async def watch(ctx: Context, payload: dict) -> None:
    for n in range(600):
        ctx.log.info("order.watched", turn=n)
        await asyncio.sleep(0.2)
"""
SQL = "CREATE TABLE a (id int);\n--> statement-breakpoint\nCREATE INDEX a_id ON a (id);\n"


@pytest.fixture
def env(database_url, tmp_path):
    (tmp_path / "view_jobs.py").write_text(HANDLERS)
    folder = tmp_path / "drizzle" / "20260101000000_first"
    folder.mkdir(parents=True)
    (folder / "migration.sql").write_text(SQL)
    root = Path(__file__).parents[2]
    return {
        "DATABASE_URL": database_url,
        "JOBS": "view_jobs",
        "PYTHONPATH": f"{root}:{tmp_path}",
        "MIGRATIONS_DIR": str(folder.parent),
        "INSTANCE_NAME": "staging",
    }


async def enqueue(run, name, payload=None):
    async with (
        aiohttp.ClientSession(run.url) as session,
        session.post("/api/jobs", json={"name": name, "payload": payload or {}}) as response,
    ):
        assert response.status == 202, await response.text()
        return (await response.json())["id"]


async def test_failures_are_grouped_opened_retried_and_discarded(orchestrator, browser, env, admin, database_url):
    async with orchestrator.running("serve", env=env) as run:
        await run.phase("ready")
        page = await browser.open(run.url)
        await expect(heading(page, "Ready")).to_be_visible()
        await expect(page).to_have_title("Ready · staging")
        calm = await favicon(page)
        failures = region(page, "Failures")
        await expect(failures).to_contain_text("Nothing fails.")
        for n in range(3):
            await enqueue(run, "orders.bill", {"n": n})
        retried = await enqueue(run, "orders.print")
        # What fails comes before what runs, in groups; what is tried again is there as well.
        await expect(failures).to_contain_text("3 times")
        await expect(failures).to_contain_text("KeyError")
        await expect(failures.get_by_role("link", name="1 tried again").first).to_be_visible()
        assert await page.locator("main > section").nth(1).get_attribute("aria-labelledby") == "h-failures"
        await expect(page.locator(".glance")).to_contain_text("3")
        assert await favicon(page) != calm
        await assert_accessible(page)
        await assert_fits_a_phone(page)

        await failures.get_by_role("link", name="1 tried again").first.click()
        jobs = page.locator(".part .list")
        await expect(jobs).to_contain_text(f"#{retried}")
        await expect(jobs).to_contain_text("retrying")

        await page.get_by_role("navigation", name="Views").get_by_role("link", name="Failures").click()
        await page.get_by_role("link", name="orders.bill 3 times").click()
        await expect(jobs.get_by_role("listitem")).to_have_count(3)
        await expect(page).to_have_title("Jobs · Ready · staging")
        address = page.url
        assert "failure=" in address
        await page.get_by_role("button", name="Retry all 3").click()
        dialog = page.get_by_role("dialog")
        await expect(dialog).to_contain_text("Retry 3 jobs?")
        await dialog.get_by_role("button", name="Leave it").click()
        await expect(dialog).to_have_count(0)
        await page.get_by_role("button", name="Retry all 3").click()
        await dialog.get_by_role("button", name="Retry").click()
        await expect(page.get_by_role("status")).to_have_text("3 jobs queued again.")
        await expect(jobs.get_by_text("attempt 2 of 2")).to_have_count(3)
        await assert_accessible(page)
        await assert_fits_a_phone(page)

        # The address holds the filter.
        other = await browser.open(address)
        await expect(other.locator(".part .list").get_by_role("listitem")).to_have_count(3)
        await other.get_by_role("button", name="Discard all 3").click()
        await other.get_by_role("dialog").get_by_role("button", name="Discard").click()
        await expect(other.get_by_text("No such job.")).to_be_visible()
        left = "SELECT count(*) FROM orchestrator.jobs WHERE name = 'orders.bill'"
        assert await admin.value(database_url, left) == 0


async def test_the_list_is_filtered_searched_and_paged_by_its_address(orchestrator, browser, env, admin, database_url):
    async with orchestrator.running("serve", env=env) as run:
        await run.phase("ready")
        await admin(
            database_url,
            "INSERT INTO orchestrator.jobs (name, queue, state, attempt, started_at, finished_at, error) SELECT"
            " 'old.job', CASE WHEN n % 2 = 0 THEN 'even' ELSE 'odd' END, 'failed', 1, now(), now(), jsonb_build_object("
            "'type', 'ValueError', 'message', 'number ' || n) FROM generate_series(1, 120) n",
        )
        # Jobs are counted as they come and go; these came by another way.
        await admin(
            database_url,
            "INSERT INTO orchestrator.job_counts (name, queue, state, count)"
            " VALUES ('old.job', 'even', 'failed', 60), ('old.job', 'odd', 'failed', 60)",
        )
        page = await browser.open(f"{run.url}#/jobs?name=old.job")
        items = page.locator(".part .list").get_by_role("listitem")
        await expect(items).to_have_count(50)
        await page.get_by_label("Queue").select_option("even")
        await expect(page).to_have_url(f"{run.url}/#/jobs?name=old.job&queue=even")
        await page.get_by_role("link", name="Older").click()
        await expect(items).to_have_count(10)
        await page.go_back()
        await expect(items).to_have_count(50)
        await page.get_by_role("searchbox", name="Search").fill("number 117")
        await page.keyboard.press("Enter")
        await expect(page.get_by_text("No such job.")).to_be_visible()  # it is an odd one
        await page.get_by_label("Queue").select_option("")
        await expect(items).to_have_count(1)
        await expect(items).to_contain_text("number 117")
        await page.reload()
        await expect(items).to_have_count(1)
        await expect(page.get_by_role("searchbox", name="Search")).to_have_value("number 117")
        # A queue's counts open what they count.
        await page.goto(f"{run.url}#/")
        await page.get_by_role("article", name="Queue even").get_by_role("link", name="60 failed in even").click()
        await expect(items).to_have_count(50)
        await expect(page.get_by_role("heading", level=2, name="Jobs: failed")).to_be_visible()


async def test_a_job_is_added_by_a_form_opened_and_run_again(orchestrator, browser, env):
    async with orchestrator.running("serve", env=env) as run:
        await run.phase("ready")
        page = await browser.open(f"{run.url}#/jobs")
        await page.get_by_role("link", name="Add a job").click()
        await page.get_by_label("Job", exact=True).select_option("orders.place")
        await page.get_by_label("customer").fill("Ada")
        await page.get_by_label("amount").fill("7")
        await assert_accessible(page)
        await assert_fits_a_phone(page)
        await page.get_by_role("button", name="Add the job").click()
        await expect(page.get_by_role("heading", level=2, name="orders.place")).to_be_visible()
        await expect(region(page, "Output")).to_contain_text("placed")
        await expect(region(page, "Payload")).to_contain_text("Ada")
        await expect(page.locator(".facts").first).to_contain_text("added by (no token) from 127.0.0.1")
        first = page.url
        await page.get_by_text("Run again, with this payload or another").click()
        field = page.get_by_label("Payload (JSON)")
        await field.fill("{")
        await page.get_by_role("button", name="Add the job").click()
        await expect(page.get_by_role("alert")).to_contain_text("This is no JSON")
        await field.fill(json.dumps({"customer": 3}))
        await page.get_by_role("button", name="Add the job").click()
        await expect(page.get_by_role("status")).to_contain_text("payload.customer")
        await field.fill(json.dumps({"customer": "Grace"}))
        await page.get_by_role("button", name="Add the job").click()
        await expect(region(page, "Payload")).to_contain_text("Grace")
        assert page.url != first
        await assert_accessible(page)
        await assert_fits_a_phone(page)
        await page.get_by_role("button", name="Discard orders.place").click()
        await page.get_by_role("dialog").get_by_role("button", name="Discard").click()
        await expect(page.get_by_role("heading", level=2, name="Jobs", exact=True)).to_be_visible()


async def test_a_running_job_shows_its_log_as_it_grows_and_can_be_cancelled(orchestrator, browser, env):
    async with orchestrator.running("serve", env=env) as run:
        await run.phase("ready")
        number = await enqueue(run, "orders.watch")
        page = await browser.open(f"{run.url}#/jobs/{number}")
        log = page.get_by_role("list", name="Log")
        await expect(log).to_contain_text("turn=1")
        seen = await log.get_by_role("listitem").count()
        await expect(log.get_by_role("listitem").nth(seen + 5)).to_be_visible()
        await page.get_by_role("button", name=f"Cancel orders.watch #{number}").click()
        await expect(page.locator(".facts .tag").first).to_have_text("cancelled")
        await expect(page.locator(".facts")).to_contain_text("cancelled by")


async def test_a_schedule_is_read_in_words_edited_paused_and_run(orchestrator, browser, env):
    async with orchestrator.running("serve", env=env) as run:
        await run.phase("ready")
        page = await browser.open(f"{run.url}#/schedules")
        row = page.get_by_role("row").filter(has_text="orders.read")
        await expect(row).to_contain_text("at 02:30, Monday to Friday")
        await expect(row).to_contain_text("Europe/Berlin")
        await row.get_by_role("link", name="orders.read").click()
        await page.get_by_role("button", name="Pause orders.read").click()
        await expect(page.locator(".facts").first).to_contain_text("paused")
        await page.get_by_role("button", name="Run now orders.read").click()
        runs = region(page, "Last runs")
        await expect(runs.get_by_role("listitem")).to_have_count(1)
        await expect(runs).to_contain_text("succeeded")
        await page.get_by_text("Edit", exact=True).click()
        await page.get_by_label("Cron").fill("61 * * * *")
        await page.get_by_role("button", name="Save").click()
        await expect(page.get_by_role("status")).to_contain_text("Not done")
        await page.get_by_label("Cron").fill("*/10 * * * *")
        await page.get_by_label("Time zone").fill("Asia/Tokyo")
        await assert_accessible(page)
        await assert_fits_a_phone(page)
        await page.get_by_role("button", name="Save").click()
        await expect(page.locator(".facts").first).to_contain_text("every 10 minutes")
        await expect(page.locator(".facts").first).to_contain_text("Asia/Tokyo")
        await page.get_by_role("button", name="Resume orders.read").click()
        await expect(page.locator(".facts").first).to_contain_text("in ")
        await runs.get_by_role("link", name="orders.read").click()
        await expect(page.locator(".facts").first).to_contain_text("run now by")


async def test_a_migration_and_a_start_are_opened(orchestrator, browser, env):
    async with orchestrator.running("serve", env=env) as run:
        await run.phase("ready")
        page = await browser.open(run.url)
        await page.locator(".glance").get_by_role("link", name="of").click()
        await page.get_by_role("link", name="20260101000000_first").click()
        await expect(region(page, "Statements")).to_contain_text("CREATE INDEX")
        await expect(page.get_by_role("region", name="The file").last).to_contain_text("statement-breakpoint")
        await assert_accessible(page)
        await assert_fits_a_phone(page)
        await page.get_by_role("navigation", name="Views").get_by_role("link", name="Starts").click()
        await region(page, "Starts").get_by_role("link").first.click()
        await expect(region(page, "Migrations that it applied")).to_contain_text("20260101000000_first")
        await expect(page.locator(".facts").first).to_contain_text("Host")
        await assert_accessible(page)
        await assert_fits_a_phone(page)
        await page.goto(f"{run.url}#/jobs/999999")
        await expect(page.get_by_role("alert")).to_contain_text("There is no such thing")
        await page.goto(f"{run.url}#/nothing")
        await expect(page.get_by_role("heading", name="There is no such page")).to_be_visible()


async def test_a_queue_is_paused_its_chart_tells_and_a_full_one_is_not_idle(orchestrator, browser, env):
    async with orchestrator.running("serve", env=env) as run:
        await run.phase("ready")
        for n in range(2):
            await enqueue(run, "orders.read", {"n": n})
        page = await browser.open(run.url)
        card = page.get_by_role("article", name="Queue default")
        await expect(card.locator("figcaption")).to_contain_text("2 jobs in 30 min")
        await expect(card.locator(".span")).to_contain_text("30 min ago")
        await card.get_by_role("img").focus()
        await page.keyboard.press("ArrowLeft")
        await expect(card.locator("figcaption")).to_contain_text("in the last minute")
        await card.get_by_role("img").hover()
        await expect(card.locator("figcaption")).to_contain_text("min ago")
        await page.get_by_role("button", name="Pause queue default").click()
        await expect(card).to_contain_text("paused")
        await enqueue(run, "orders.read")
        await expect(card.get_by_role("link", name="1 waiting in default")).to_be_visible()
        await assert_accessible(page)
        await page.get_by_role("button", name="Resume queue default").click()
        await expect(card.get_by_role("link", name="0 waiting in default")).to_be_visible()


async def test_the_browser_keeps_the_token_where_it_is_told_to(orchestrator, browser, env, known):
    token = "a-token-that-the-browser-keeps"
    known.secrets.add(token)
    async with orchestrator.running("serve", env=env | {"API_TOKEN": token}) as run:
        await run.phase("ready")
        page = await browser.open(run.url)
        await page.get_by_role("button", name="Enter the token").click()
        await page.get_by_role("textbox", name="Token").fill(token)
        await page.get_by_label("Keep it in this browser").check()
        await page.keyboard.press("Enter")
        await expect(region(page, "Queues")).to_be_visible()
        another_tab = await page.context.new_page()
        await another_tab.goto(run.url)
        await expect(region(another_tab, "Queues")).to_be_visible()
        # A link to what asks for the token shows it.
        async with another_tab.expect_download() as got:
            await another_tab.get_by_role("button", name="/openapi.json").click()
        document = json.loads((await (await got.value).path()).read_text())
        assert document["openapi"].startswith("3.1")
        await another_tab.get_by_role("button", name="Forget the token").click()
        await expect(region(another_tab, "Queues")).to_have_count(0)
        await another_tab.reload()
        await expect(another_tab.get_by_role("button", name="Enter the token")).to_be_visible()


CRON = {
    "* * * * *": "every minute",
    "*/5 * * * *": "every 5 minutes",
    "0 * * * *": "every hour",
    "15 * * * *": "15 minutes past every hour",
    "0 3 * * *": "at 03:00 every day",
    "0 6,18 * * *": "at 06:00 and 18:00 every day",
    "0 */2 * * *": "every 2 hours",
    "30 2 * * 1-5": "at 02:30, Monday to Friday",
    "0 8 * * MON": "at 08:00, every Monday",
    "0 4 1 1 *": "at 04:00, on the 1st of January",
    "0 0 L * *": "at 00:00, on the last day of the month",
    "*/15 9-17 * * mon-fri": "every 15 minutes from 09:00 to 17:59, Monday to Friday",
    "0 0 22,23 * *": "at 00:00, on the 22nd and 23rd",
    "1-5/2 * * * *": None,
    "0 0 * * 5#2": None,
}


async def test_cron_lines_are_said_in_words_or_not_at_all(orchestrator, browser, env):
    async with orchestrator.running("serve", env=env) as run:
        await run.phase("ready")
        page = await browser.open(run.url)
        said = await page.evaluate(
            "async lines => lines.map((await import('/page/cron_words.js')).cronWords)",
            list(CRON),
        )
    assert dict(zip(CRON, said, strict=True)) == CRON
