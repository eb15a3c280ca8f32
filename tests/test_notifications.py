"""A person who is elsewhere is told of what fails: once, without secrets, and whatever the target does."""

import asyncio
import json
import secrets
import time

import aiohttp
import pytest
from aiohttp import web

from orchestrator import notifications
from orchestrator.lifecycle import Event, Lifecycle, Phase

HANDLERS = """
from orchestrator.jobs import job

@job("always.fails")
async def fails(ctx, payload: dict) -> None:
    raise ValueError("no such thing")
"""


class Received:
    """A webhook: what it was sent, and its address, which holds a secret."""

    def __init__(self, known) -> None:
        self.bodies: list[dict] = []
        self.secret = f"s3cr3t-hook-{secrets.token_hex(8)}"
        known.secrets.add(self.secret)
        self.port = 0
        self.status = 200
        self.hangs = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/{self.secret}"

    def of(self, kind: str) -> list[dict]:
        return [body for body in self.bodies if body.get("kind") == kind]

    async def answer(self, request: web.Request) -> web.Response:
        self.bodies.append(await request.json())
        if self.hangs:
            await asyncio.sleep(60)
        return web.Response(status=self.status)


@pytest.fixture
async def hook(known):
    received = Received(known)
    app = web.Application()
    app.router.add_post("/{rest:.*}", received.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    received.port = site._server.sockets[0].getsockname()[1]
    yield received
    await runner.cleanup()


async def test_a_start_that_fails_is_told_before_the_process_is_gone(
    orchestrator, database_url, tmp_path, write, hook, server
):
    write(tmp_path / "m", ("0000_a", "SELECT 1 / 0;"))
    env = {"DATABASE_URL": database_url, "MIGRATIONS_DIR": str(tmp_path / "m"), "NOTIFY_URL": hook.url}
    done = await orchestrator("serve", env=env)
    assert done.returncode == 70
    (body,) = hook.bodies
    assert (body["kind"], body["title"]) == ("start_failed", "The start failed")
    assert "division by zero" in body["message"]
    assert body["facts"]["exit_code"] == 70
    assert server.password not in json.dumps(body)
    assert body["version"] == body["version"].strip() != ""


async def test_jobs_that_are_given_up_are_told_once_and_a_target_that_refuses_is_a_line_in_the_log(
    orchestrator, database_url, tmp_path, hook, wait_until
):
    (tmp_path / "failing_handlers.py").write_text(HANDLERS)
    env = {
        "DATABASE_URL": database_url,
        "JOBS": "failing_handlers",
        "PYTHONPATH": str(tmp_path),
        "NOTIFY_URL": f"{hook.url} http://127.0.0.1:1/{hook.secret}",
    }
    async with orchestrator.running("serve", env=env, cwd=tmp_path) as service:
        await service.phase("ready")
        for number in range(5):
            async with aiohttp.ClientSession() as http:
                body = {"name": "always.fails", "payload": {}}
                async with http.post(f"{service.url}/api/jobs", json=body) as answer:
                    assert answer.status == 202, await answer.text()
            await service.event("job.failed", nth=number + 1)
        await wait_until(lambda: hook.of("job_given_up"))
        failed = await service.event("notification.failed")
        assert (failed["target"], failed["level"]) == ("http://127.0.0.1", "warning")
    (told,) = hook.of("job_given_up")
    assert told["title"] == "Job always.fails was given up"
    assert told["message"] == "ValueError: no such thing"
    assert told["facts"]["job_id"] > 0


async def test_a_database_that_is_lost_for_longer_is_told_and_that_it_is_back(
    orchestrator, database_url, tcp_proxy, hook, wait_until
):
    env = {"DATABASE_URL": tcp_proxy.dsn(database_url), "NOTIFY_URL": hook.url, "NOTIFY_AFTER": "300ms"}
    async with orchestrator.running("serve", env=env) as service:
        await service.phase("ready")
        await tcp_proxy.refuse()
        await tcp_proxy.cut()
        await wait_until(lambda: hook.of("database_lost"), 60)
        assert hook.of("recovered") == []
        await tcp_proxy.accept()
        await wait_until(lambda: hook.of("recovered"), 60)
    assert hook.of("database_lost")[0]["title"] == "The database is out of reach"
    assert [body["kind"] for body in hook.bodies] == ["database_lost", "recovered"]


async def test_a_target_that_hangs_holds_up_neither_the_start_nor_its_end(
    orchestrator, database_url, tmp_path, write, hook
):
    hook.hangs = True
    write(tmp_path / "m", ("0000_a", "SELECT 1 / 0;"))
    env = {"DATABASE_URL": database_url, "MIGRATIONS_DIR": str(tmp_path / "m"), "NOTIFY_URL": hook.url}
    began = time.monotonic()
    done = await orchestrator("serve", env=env)
    assert done.returncode == 70
    assert len(hook.bodies) == 1
    assert time.monotonic() - began < 20


async def test_the_command_tries_every_target_and_says_which_one_fails(orchestrator, hook):
    through_apprise = f"json://127.0.0.1:{hook.port}/{hook.secret}"
    done = await orchestrator("notify", "--test", env={"NOTIFY_URL": f"{hook.url} {through_apprise}"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == ["sent    http://127.0.0.1", "sent    json://…"]
    assert [body["kind"] for body in hook.bodies if "kind" in body] == ["test"]
    assert any("orchestrator" in body.get("message", "") for body in hook.bodies if "kind" not in body)
    hook.status = 403
    done = await orchestrator("notify", "--test", "--json", env={"NOTIFY_URL": f"{hook.url} {through_apprise}"})
    assert done.returncode == 1
    told = {one["target"]: one["error"] for one in json.loads(done.stdout)["targets"]}
    assert told == {"http://127.0.0.1": "HTTP 403", "json://…": "apprise could not deliver it"}


@pytest.mark.parametrize(("given", "told"), [("", "is not set"), ("hooks.example.org/x", "not an address")])
async def test_without_a_usable_target_the_command_says_what_to_set(orchestrator, given, told):
    done = await orchestrator("notify", "--test", env={"NOTIFY_URL": given})
    assert done.returncode == 78
    (failed,) = done.named("service.failed")
    assert "NOTIFY_URL" in failed["error"]
    assert told in failed["error"]


@pytest.mark.parametrize(
    ("name", "level", "facts", "kind"),
    [
        ("job.failed", "error", {"job": "a", "error_type": "E", "error": "x"}, "job_given_up"),
        ("job.failed", "warning", {"job": "a"}, None),
        ("job.taken_over", "error", {"job": "a"}, "job_given_up"),
        ("schedule.failing", "warning", {"job": "database.backup", "subject": "b"}, "backup_failed"),
        ("schedule.failing", "warning", {"job": "other", "subject": "b"}, None),
        ("backup.stale", "warning", {}, "backup_failed"),
        ("backup.directory_unusable", "warning", {"error": "x"}, "backup_failed"),
        ("backup.caught_up", "info", {"subject": "x"}, "recovered"),
        ("migration.applied", "info", {}, None),
        ("notification.failed", "warning", {}, None),
    ],
)
def test_what_an_event_means(name, level, facts, kind):
    news = notifications.news_of(Event(name=name, level=level, at=0.0, phase=Phase.READY, facts=facts))
    assert (news and news.kind) == kind


async def test_of_each_kind_there_is_one_at_once_and_then_one_that_counts_the_others(wait_until, monkeypatch):
    sent: list[notifications.Notification] = []

    async def send(targets, notification):
        sent.append(notification)
        return []

    monkeypatch.setattr(notifications, "send", send)
    life = Lifecycle(now=time.time, monotonic=time.monotonic)
    notifier = notifications.Notifier(["http://x"], life, after_s=60, every_s=0.5)
    life.listen(notifier.listen)
    sending = asyncio.create_task(notifier.run())
    for number in range(7):
        life.emit("job.failed", level="error", job=f"j{number}", error="x")
    life.emit("backup.stale", level="warning", subject="s")
    life.emit("schedule.recovered", subject="never told")
    life.emit("backup.caught_up", subject="s")
    await wait_until(lambda: len(sent) >= 4)
    assert [(one.kind, one.more) for one in sent[:3]] == [("job_given_up", 0), ("backup_failed", 0), ("recovered", 0)]
    assert (sent[3].title, sent[3].more) == ("Job j6 was given up", 5)
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)


async def test_what_waits_is_bounded():
    life = Lifecycle(now=time.time, monotonic=time.monotonic)
    notifier = notifications.Notifier(["http://x"], life, after_s=60, every_s=0.0)
    life.listen(notifier.listen)
    for number in range(500):
        life.emit("job.failed", level="error", job=number)
    assert notifier._waiting.qsize() == 50
