"""Logs: whole lines, their keys in order, every logger of the process in them, and never a secret."""

import asyncio
import io
import json
import logging
import os
import subprocess
import sys
import textwrap
import warnings
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

import pytest
import structlog

from orchestrator import logs
from orchestrator.dsn import parse, percent_encoded
from orchestrator.lifecycle import Event, Lifecycle, Phase

ROOT = Path(__file__).parent.parent
PASSWORD = "zq#xj/hun ter'22%é"
AT = datetime(2026, 11, 23, 23, 59, 59, 7000, UTC).timestamp()


@pytest.fixture(autouse=True)
def _logging_as_before():
    root = logging.getLogger()
    handlers, level, show = root.handlers[:], root.level, warnings.showwarning
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)
    warnings.showwarning = show
    structlog.reset_defaults()


class Log(io.StringIO):
    """A stream, and the lines in it."""

    def __init__(self, *, terminal=False):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal

    @property
    def lines(self):
        return self.getvalue().splitlines()

    @property
    def events(self):
        return [json.loads(line) for line in self.lines]


def configured(*, level="info", log_format="json", secrets=(PASSWORD,), terminal=False, **kwargs):
    log = Log(terminal=terminal)
    logs.configure(
        level=level,
        log_format=log_format,
        stream=log,
        version="1.2.3",
        phase=lambda: "connecting",
        secrets=secrets,
        **kwargs,
    )
    return log


def failed(message=""):
    """An exception that was raised, with a secret in a local variable of its frames."""
    dsn = f"postgres://app:{PASSWORD}@db/app"
    try:
        int(f"no number in {dsn!r} {message}")
    except ValueError as error:
        return error


def warn(text):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn(text, stacklevel=2)


def emit(name="database.connect_failed", level="warning", phase=Phase.CONNECTING, **facts):
    logs.event_logger()(Event(name=name, level=level, at=AT, phase=phase, facts=facts))


# ------------------------------------------------------------------------------------------------------- whole events


def test_an_event_is_one_json_object_a_line_with_its_keys_in_order():
    log = configured()
    emit(phase=Phase.LOCKING, host="db", port=5432, attempt=3, hint="is it up?\nsoon")
    assert log.lines == [
        (
            '{"timestamp":"2026-11-23T23:59:59.007Z","level":"warning","event":"database.connect_failed",'
            '"logger":"orchestrator","version":"1.2.3","phase":"locking",'
            '"host":"db","port":5432,"attempt":3,"hint":"is it up?\\nsoon"}'
        )
    ]


def test_a_lifecycle_that_is_listened_to_tells_its_phases():
    log = configured()
    ticks = iter(range(100))
    life = Lifecycle(now=lambda: AT, monotonic=lambda: next(ticks))
    life.listen(logs.event_logger("orchestrator.start"))
    life.enter(Phase.CONNECTING)
    life.enter(Phase.FAILED, reason="bug")
    common = {"event": "phase.entered", "logger": "orchestrator.start", "version": "1.2.3"}
    common["timestamp"] = "2026-11-23T23:59:59.007Z"
    assert log.events == [
        {**common, "level": "info", "phase": "connecting", "previous": "starting", "previous_duration_s": 1},
        {
            **common,
            "level": "error",
            "phase": "failed",
            "previous": "connecting",
            "previous_duration_s": 1,
            "reason": "bug",
        },
    ]


@pytest.mark.parametrize("get_logger", [logging.getLogger, structlog.stdlib.get_logger])
def test_the_standard_librarys_loggers_and_structlogs_say_it_alike(get_logger):
    log = configured()
    get_logger("asyncpg").warning("connection %s of %d lost", "two", 3)
    (event,) = log.events
    assert abs(datetime.fromisoformat(event.pop("timestamp")).timestamp() - datetime.now(UTC).timestamp()) < 5
    assert event == {
        "level": "warning",
        "event": "connection two of 3 lost",
        "logger": "asyncpg",
        "version": "1.2.3",
        "phase": "connecting",
    }
    assert list(log.events[0])[:6] == ["timestamp", "level", "event", "logger", "version", "phase"]


def test_a_fact_that_bears_the_name_of_a_key_does_not_replace_it():
    log = configured()
    emit(version="17.2", event="x", logger="z", phase_="kept", timestamp=1)
    (event,) = log.events
    assert (event["version"], event["event"], event["level"]) == ("1.2.3", "database.connect_failed", "warning")
    facts = {name: value for name, value in event.items() if name.startswith(("fact_", "phase_"))}
    assert facts == {
        "fact_version": "17.2",
        "fact_event": "x",
        "fact_logger": "z",
        "phase_": "kept",
        "fact_timestamp": 1,
    }


def test_what_json_does_not_know_is_told_as_text():
    class Broken:
        def __str__(self):
            raise KeyError

    loop = []
    loop.append(loop)
    log = configured()
    emit(
        path=PurePosixPath("/x"),
        when=datetime(2026, 1, 1, tzinfo=UTC),
        phase_=Phase.READY,
        items={1},
        pair=(1, None),
        raw=b"\xff",
        broken=Broken(),
        surrogate="a\udcff",
        large=2**70,
        not_a_number=float("nan"),
        nested={1: {"a": [True]}},
        error=ValueError("no"),
        loop=loop,
    )
    (event,) = log.events
    for key in ("timestamp", "level", "event", "logger", "version", "phase", "loop"):
        event.pop(key)
    assert event == {
        "path": "/x",
        "when": "2026-01-01T00:00:00+00:00",
        "phase_": "ready",
        "items": [1],
        "pair": [1, None],
        "raw": "b'\\xff'",
        "broken": "<Broken: KeyError in its str()>",
        "surrogate": "a\\udcff",
        "large": str(2**70),
        "not_a_number": None,
        "nested": {"1": {"a": [True]}},
        "error": "no",
    }


def test_less_than_the_level_is_not_written():
    log = configured(level="warning")
    emit(level="info")
    emit(level="debug")
    logging.getLogger("asyncio").info("x")
    structlog.stdlib.get_logger("x").info("x")
    emit(level="error")
    assert [event["level"] for event in log.events] == ["error"]
    logs.configure(level="debug", log_format="json", stream=log, version="1", phase=str)
    emit(level="debug")
    assert [event["level"] for event in log.events] == ["error", "debug"]


def test_a_warning_of_a_library_is_a_line():
    log = configured()
    warn("password file has world access")
    (event,) = log.events
    assert event["logger"] == "py.warnings"
    assert "password file has world access" in event["event"]


# --------------------------------------------------------------------------------------------------------- exceptions


def test_an_exception_is_structured_with_its_cause_and_without_local_variables():
    log = configured()
    outer = RuntimeError("outer")
    outer.__cause__ = failed()
    logging.getLogger("x").error("it failed", exc_info=outer)
    (event,) = log.events
    stacks = event["exception"]
    assert [(s["exc_type"], s["is_cause"]) for s in stacks] == [("RuntimeError", False), ("ValueError", True)]
    assert [frame["name"] for frame in stacks[1]["frames"]] == ["failed"]
    assert all(set(frame) == {"filename", "lineno", "name"} for s in stacks for frame in s["frames"])


def test_an_event_may_carry_an_exception():
    log = configured()
    emit(exc_info=failed(), attempt=1)
    (event,) = log.events
    assert event["exception"][0]["exc_type"] == "ValueError"
    assert event["attempt"] == 1


async def test_a_task_that_nobody_awaited_is_told_by_asyncio_in_our_lines():
    log = configured()

    async def fail():
        raise failed()

    task = asyncio.create_task(fail())
    await asyncio.wait([task])
    del task
    (event,) = log.events
    assert (event["logger"], event["exception"][0]["exc_type"]) == ("asyncio", "ValueError")


# ------------------------------------------------------------------------------------------------------------ secrets


def everything_said():
    """Every way to say a secret that we know."""
    url = f"postgres://app:{PASSWORD}@db/app"
    group = ExceptionGroup("both", [failed(), RuntimeError(PASSWORD)])
    noted = failed()
    noted.add_note(f"the url was {url}")
    chained = RuntimeError("outer")
    chained.__cause__ = failed()
    emit(url=url, plain=PASSWORD, shown=repr(PASSWORD), nested={"a": [{"b": url}], PASSWORD: 1}, items={PASSWORD})
    emit(dsn=parse(percent_encoded(PASSWORD).join(["postgres://app:", "@db/app"])), error=failed())
    emit(name=f"connected {url}", encoded=percent_encoded(PASSWORD), json=json.dumps(PASSWORD))
    for error in (failed(), group, noted, chained):
        emit(exc_info=error)
        logging.getLogger("asyncpg").error("failed: %s", url, exc_info=error)
    structlog.stdlib.get_logger("x").error("failed", exc_info=failed(), stack_info=True, url=url)
    logging.getLogger(f"logger of {PASSWORD}").error(url)
    warn(url)


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_secret_that_is_named_never_appears(log_format):
    log = configured(log_format=log_format, level="debug")
    everything_said()
    said = log.getvalue()
    assert said.count("***") >= 20
    for spelling in (PASSWORD, repr(PASSWORD)[1:-1], json.dumps(PASSWORD)[1:-1], percent_encoded(PASSWORD)):
        assert spelling not in said
    for piece in ("zq#xj", "hun ter", "xj/hun"):
        assert piece not in said.replace(__file__, "")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgres://app:hunter22@db/app", "postgres://app:***@db/app"),
        ("see postgresql+asyncpg://app:a@b#/?c@db/app?x=1 there", "see postgresql+asyncpg://app:***@db/app?x=1 there"),
        ("http://:hunter22@proxy", "http://:***@proxy"),
        ("host=db password=hunter22 user=x", "host=db password=*** user=x"),
        ("host=db password='hun\\'ter 22' user=x", "host=db password=*** user=x"),
        ("postgres://db/app?user=x&password=hunter22&sslmode=y", "postgres://db/app?user=x&password=***&sslmode=y"),
        ("ALTER ROLE x PASSWORD 'hunt''er' LOGIN", "ALTER ROLE x PASSWORD *** LOGIN"),
        ("PGPASSWORD=hunter22 psql", "PGPASSWORD=*** psql"),
        ("http://0.0.0.0:3005/health", "http://0.0.0.0:3005/health"),
        ("app@db:5432/app", "app@db:5432/app"),
        ('password authentication failed for user "app"', 'password authentication failed for user "app"'),
    ],
)
def test_what_looks_like_a_password_is_hidden_although_nobody_named_it(text, shown):
    log = configured(secrets=())
    emit(text=text)
    assert log.events[0]["text"] == shown


def test_a_word_that_the_lines_hold_anyway_and_a_short_one_are_not_hidden():
    log = configured(secrets=["postgres", "abc", ""])
    emit(host="postgres", abc="abc")
    assert (log.events[0]["host"], log.events[0]["abc"]) == ("postgres", "abc")


def test_a_secret_that_is_the_name_of_a_key_garbles_no_line():
    log = configured(secrets=["event", "warning", "2026", "attempt"])
    emit(attempt=1, text="an event")
    event = log.events[0]
    assert (event["level"], event["timestamp"][:4], event["attempt"], event["text"]) == ("warning", "2026", 1, "an ***")


def test_a_secret_inside_another_is_hidden_whole():
    log = configured(secrets=["hunter", "hunter22"])
    emit(text="hunter22 hunter")
    assert log.events[0]["text"] == "*** ***"


# ---------------------------------------------------------------------------------------------------------- for people


def test_on_a_terminal_a_line_is_for_people_and_off_it_for_machines():
    log = configured(log_format="auto", terminal=True)
    emit(host="db", hint="is it up?")
    (line,) = log.lines
    assert "\x1b[" in line
    assert "database.connect_failed" in line
    assert configured(log_format="auto").terminal is False
    log = configured(log_format="auto")
    emit()
    assert log.events


def test_a_line_for_people_has_the_time_of_day_and_no_colour_off_a_terminal():
    log = configured(log_format="console")
    emit(host="db", hint="is it up?")
    (line,) = log.lines
    assert line.split() == [
        "23:59:59.007",
        "[warning",
        "]",
        "database.connect_failed",
        "[orchestrator]",
        "phase=connecting",
        "host=db",
        "hint='is",
        "it",
        "up?'",
    ]
    log = configured(log_format="console", terminal=True, colour=False)
    emit()
    assert "\x1b[" not in log.getvalue()


def test_a_traceback_for_people_is_pythons_own():
    log = configured(log_format="console")
    emit(exc_info=failed())
    assert log.lines[1] == "Traceback (most recent call last):"
    assert log.lines[-1].startswith("ValueError: invalid literal for int()")


def test_a_servers_text_cannot_steer_the_terminal():
    log = configured(log_format="console")
    logging.getLogger("x").warning("a\x1b[2Jb\nc")
    assert log.lines[0].count("a\\x1b[2Jb\\nc") == 1
    assert len(log.lines) == 1


# -------------------------------------------------------------------------------------------------------- the process


def run(script, **kwargs):
    environ = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}
    command = [sys.executable, "-c", textwrap.dedent(script)]
    return subprocess.Popen(command, env=environ, text=True, **kwargs)


def test_a_reader_that_is_gone_does_not_end_the_process():
    process = run(
        """
        import logging, sys
        from orchestrator import logs
        logs.configure(level="info", log_format="auto", stream=sys.stderr, version="1", phase=str)
        logging.getLogger("x").info("first")
        sys.stdin.readline()
        for _ in range(3):
            logging.getLogger("x").info("into the void")
        print("alive")
        """,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert json.loads(process.stderr.readline())["event"] == "first"
    process.stderr.close()
    out, _ = process.communicate("\n", timeout=20)
    assert (process.returncode, out) == (0, "alive\n")


def test_a_stream_that_takes_no_more_does_not_end_the_process():
    process = run(
        """
        import logging, os, sys
        from orchestrator import logs
        os.set_blocking(2, False)
        logs.configure(level="info", log_format="auto", stream=sys.stderr, version="1", phase=str)
        for _ in range(30):
            logging.getLogger("x").info("x" * 10_000)
        print("alive", flush=True)
        os._exit(0)
        """,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout.readline() == "alive\n"
    process.communicate(timeout=20)


@pytest.mark.parametrize("broken", ["closed", "full"])
def test_a_stream_that_fails_costs_the_line_and_nothing_else(broken):
    log = configured()
    if broken == "closed":
        log.close()
    else:

        def full(text):
            raise OSError(28, "No space left on device")

        log.write = full
    emit()


def test_a_line_that_cannot_be_made_is_told():
    log = configured()
    logging.getLogger("x").warning("%d", "no number")
    assert [(event["event"], event["error"]) for event in log.events] == [("logs.line_lost", "TypeError")]


def test_logging_costs_no_import_of_rich_and_leaves_it_for_who_wants_it():
    process = run(
        """
        import sys
        from orchestrator import logs
        logs.configure(level="info", log_format="auto", stream=sys.stderr, version="1", phase=str)
        logs.event_logger()
        print([name for name in sys.modules if name.split(".")[0] == "rich"])
        import rich.table
        print(rich.table.Table.__name__)
        """,
        stdout=subprocess.PIPE,
    )
    out, _ = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, "[]\nTable\n")
