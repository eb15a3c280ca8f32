"""Notifications: failures and recoveries sent to NOTIFY_URL, for when nobody is watching. Touches the network.

A webhook gets JSON; everything else (ntfy, Slack, Discord, Gotify, Telegram, mail) goes by way of the library apprise.
Nothing waits for a notification but the end of a failed start, for a few seconds: a target that hangs or refuses is a
line in the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
import time
from asyncio import Queue
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import msgspec

from orchestrator import __version__
from orchestrator.lifecycle import Phase

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from orchestrator.lifecycle import Event, Lifecycle

Kind = Literal["start_failed", "database_lost", "job_given_up", "backup_failed", "recovered", "test"]

# Of each kind one at once, and then at most one in this time, which tells how many more there were.
EVERY_S = 600.0
_SEND_TIMEOUT_S = 10.0
_LAST_WORDS_S = 5.0
_WAITING_MAX = 50
_TEXT_MAX = 1000


class Notification(msgspec.Struct, frozen=True):
    """What a webhook gets, as JSON. `at` is ISO 8601 in UTC, `more` how many of the kind were kept back before it."""

    kind: Kind
    title: str
    message: str
    facts: Mapping[str, object]
    at: str
    instance: str
    version: str = __version__
    more: int = 0


class _News(msgspec.Struct, frozen=True):
    """What an event means: `subject` is what it is about, by which a recovery finds what it ends."""

    kind: Kind
    subject: str
    title: str
    message: str
    facts: Mapping[str, object]


def news_of(event: Event) -> _News | None:
    """What an event means to a person who is elsewhere, None for most of them. Pure."""
    facts = event.facts
    why = ": ".join(str(facts[name]) for name in ("error_type", "error") if facts.get(name))
    match event.name:
        case "job.failed" | "job.taken_over" if event.level == "error":
            shown = {name: facts.get(name) for name in ("job", "job_id", "attempt", "outcome")}
            return _News("job_given_up", f"job {facts.get('job')}", f"Job {facts.get('job')} was given up", why, shown)
        case "schedule.failing" if facts.get("job") == "database.backup":
            shown = {name: facts.get(name) for name in ("schedule", "state", "job_id", "next_try_at")}
            return _News("backup_failed", str(facts["subject"]), "The backup of the database fails", why, shown)
        case "backup.stale":
            message = f"The newest good backup is from {facts.get('newest_backup_at') or 'no time at all'}."
            return _News("backup_failed", "backup.stale", "There is no recent backup of the database", message, {})
        case "backup.directory_unusable":
            return _News("backup_failed", "backup.directory", "No backup can be written", str(facts.get("error")), {})
        case "schedule.recovered" | "backup.caught_up" | "backup.directory_usable":
            subjects = {"backup.caught_up": "backup.stale", "backup.directory_usable": "backup.directory"}
            subject = subjects.get(event.name, str(facts.get("subject")))
            return _News("recovered", subject, "Backups work again", f"{subject} works again.", {})
    return None


class Notifier:
    """Listens to a lifecycle, decides what is told, and sends it from a task of its own."""

    def __init__(self, targets: Sequence[str], life: Lifecycle, *, after_s: float, every_s: float = EVERY_S) -> None:
        self._targets, self._life, self._after_s, self._every_s = targets, life, after_s, every_s
        self._waiting: Queue[Notification] = Queue(_WAITING_MAX)
        self._told_at: dict[Kind, float] = {}
        self._kept_back: dict[Kind, tuple[int, _News]] = {}
        self._open: set[str] = set()  # what was told to be broken
        self._connecting: asyncio.TimerHandle | None = None
        self._timers: set[asyncio.TimerHandle] = set()
        self._failed_at: dict[str, float] = {}

    def listen(self, event: Event) -> None:
        """For `Lifecycle.listen`; does no work that takes time."""
        if event.name == "phase.entered":
            self._phase_entered(event.phase)
        elif (news := news_of(event)) is not None:
            self.tell(news)

    def _phase_entered(self, phase: Phase) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        if phase is Phase.CONNECTING:
            self._connecting = asyncio.get_running_loop().call_later(self._after_s, self._still_connecting)
        elif phase is Phase.READY:
            self.tell(_News("recovered", "database", "The database is back", "The service is ready again.", {}))
        elif phase is Phase.FAILED:
            failure = self._life.failure or {}
            message = " ".join(str(failure[name]) for name in ("error", "remedy") if failure.get(name))
            title = "The service failed" if self._life.was_ready else "The start failed"
            facts = {name: failure.get(name) for name in ("exit_code", "restart_helps", "sqlstate", "migration")}
            self.tell(_News("start_failed", "start", title, message, facts))

    def _still_connecting(self) -> None:
        check = self._life.checks.get("database")
        facts = {} if check is None else {name: check.facts.get(name) for name in ("cause", "sqlstate", "hint")}
        message = f"There has been no usable database for {self._after_s:g} s. {facts.get('hint') or ''}".strip()
        self.tell(_News("database_lost", "database", "The database is out of reach", message, facts))

    def tell(self, news: _News) -> None:
        """Send it now, or with the next one of its kind."""
        if news.kind == "recovered":
            if news.subject not in self._open:
                return
            self._open.discard(news.subject)
        else:
            self._open.add(news.subject)
        now = time.monotonic()
        told_at = self._told_at.get(news.kind)
        if told_at is not None and now - told_at < self._every_s:
            count = self._kept_back.get(news.kind, (0, news))[0] + 1
            if count == 1:
                timer = asyncio.get_running_loop().call_later(
                    self._every_s - (now - told_at), self._tell_kept_back, news.kind
                )
                self._timers.add(timer)
            self._kept_back[news.kind] = (count, news)
            return
        self._send_later(news, more=0)

    def _tell_kept_back(self, kind: Kind) -> None:
        count, news = self._kept_back.pop(kind)
        self._send_later(news, more=count - 1)

    def _send_later(self, news: _News, *, more: int) -> None:
        self._told_at[news.kind] = time.monotonic()
        if self._waiting.full():
            self._waiting.get_nowait()
            self._waiting.task_done()
        self._waiting.put_nowait(made(news, self._life.clean, more=more))

    async def run(self) -> None:
        """Send what waits, for ever. Ends only by cancellation."""
        while True:
            notification = await self._waiting.get()
            try:
                for target, problem in await send(self._targets, notification):
                    if problem is not None:
                        self._failed(target, problem)
            finally:
                self._waiting.task_done()

    def _failed(self, target: str, problem: str) -> None:
        now = time.monotonic()
        if now - self._failed_at.get(target, -self._every_s) >= self._every_s:
            self._failed_at[target] = now
            self._life.emit(
                "notification.failed",
                level="warning",
                target=target,
                error=problem,
                hint="`orchestrator notify --test` tries every target of NOTIFY_URL.",
            )

    async def last_words(self) -> None:
        """Wait until what is told is sent, for a few seconds."""
        for timer in (*self._timers, *([self._connecting] if self._connecting else ())):
            timer.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_S):
                await self._waiting.join()


@asynccontextmanager
async def notifying(targets: Sequence[str], life: Lifecycle, *, after_s: float) -> AsyncIterator[None]:
    """Notify while the block lasts, and of the error that ends it; without targets, do nothing."""
    if not targets:
        yield
        return
    notifier = Notifier(targets, life, after_s=after_s)
    stop_listening = life.listen(notifier.listen)
    sending = asyncio.create_task(notifier.run(), name="notifications")
    try:
        yield
    except Exception as error:
        if life.phase is not Phase.FAILED:  # a bug of ours: the edge has not told of it yet
            notifier.tell(_News("start_failed", "start", "The service failed", type(error).__name__, {}))
        await notifier.last_words()
        raise
    finally:
        stop_listening()
        sending.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sending


def made(news: _News, clean: Callable[[dict[str, object]], dict[str, object]] = dict, *, more: int = 0) -> Notification:
    """The notification, without secrets and within bounds."""
    told = clean({"title": news.title, "message": news.message, **news.facts})
    title, message = (str(told.pop(name))[:_TEXT_MAX] for name in ("title", "message"))
    if more:
        message = f"{message} ({more} more of the kind before it)".strip()
    return Notification(
        news.kind,
        title,
        message,
        {name: value for name, value in told.items() if value is not None},
        datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        socket.gethostname(),
        more=more,
    )


def test_notification() -> Notification:
    """What `orchestrator notify --test` sends."""
    return made(_News("test", "test", "A test of the notifications", "Notifications of orchestrator arrive here.", {}))


def shown(target: str) -> str:
    """A target without what may be a secret in it: its path, its query and its user."""
    parts = urlsplit(target)
    return f"{parts.scheme}://{parts.hostname}" if parts.scheme in {"http", "https"} else f"{parts.scheme}://…"


async def send(targets: Sequence[str], notification: Notification) -> list[tuple[str, str | None]]:
    """Send to each target, all at once; for each its name without secrets, and what went wrong. Bounded in time."""

    async def one(target: str) -> tuple[str, str | None]:
        is_webhook = target.startswith(("http://", "https://"))
        try:
            async with asyncio.timeout(_SEND_TIMEOUT_S):
                return shown(target), await (_post if is_webhook else _by_apprise)(target, notification)
        except TimeoutError:
            return shown(target), f"no answer within {_SEND_TIMEOUT_S:g} s"

    return list(await asyncio.gather(*(one(target) for target in targets)))


async def _post(target: str, notification: Notification) -> str | None:
    import aiohttp

    headers = {"Content-Type": "application/json", "User-Agent": f"orchestrator/{__version__}"}
    body = msgspec.json.encode(notification, enc_hook=str)
    try:
        async with (
            aiohttp.ClientSession() as http,
            # A redirect would carry what is told to somebody else.
            http.post(target, data=body, headers=headers, allow_redirects=False) as answer,
        ):
            return None if answer.status < 300 else f"HTTP {answer.status}"  # noqa: PLR2004 RFC 9110, success
    except (aiohttp.ClientError, OSError, ValueError) as error:
        return type(error).__name__  # its text may hold the URL


async def _by_apprise(target: str, notification: Notification) -> str | None:
    """In a thread that keeps nobody waiting: apprise blocks."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[str | None] = loop.create_future()

    def tell(problem: str | None) -> None:
        if not done.done():
            done.set_result(problem)

    def work() -> None:
        problem = _apprise(target, notification)
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(tell, problem)

    threading.Thread(target=work, name="notification", daemon=True).start()
    return await done


def _apprise(target: str, notification: Notification) -> str | None:
    try:
        import apprise
    except ImportError:
        return "the extra `notify` is not installed"
    logging.getLogger("apprise").disabled = True  # it writes addresses
    levels: dict[str, Any] = {"recovered": apprise.NotifyType.SUCCESS, "test": apprise.NotifyType.INFO}
    sender = apprise.Apprise()
    try:
        if not sender.add(target):
            return "apprise cannot read this address"
        facts = "".join(f"\n{name}: {value}" for name, value in notification.facts.items())
        sent = sender.notify(
            title=f"{notification.title} ({notification.instance})",
            body=f"{notification.message}{facts}",
            notify_type=levels.get(notification.kind, apprise.NotifyType.FAILURE),
        )
    except Exception as error:  # noqa: BLE001 code of a hundred services: it must not hurt, and its text may hold the address
        return type(error).__name__
    return None if sent else "apprise could not deliver it"
