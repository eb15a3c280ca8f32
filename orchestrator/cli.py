"""The table of commands, their help, and the only place that ends the process.

Nothing heavy is imported before it is needed: as PID 1 the process must react to SIGTERM from its first moment, and
`healthcheck` runs every few seconds. Only the file of the command that was asked for is loaded.
"""

from __future__ import annotations

import os
import sys

from orchestrator import __version__, streams

TYPE_CHECKING = False  # as in typing, which costs `healthcheck` 8 of 25 ms
if TYPE_CHECKING:
    import argparse
    from typing import Any, NoReturn


class Command:
    """One row of the table: `orchestrator.commands.<name>` has a function `<name>` that adds the options."""

    __slots__ = ("example", "group", "name", "text")

    def __init__(self, group: str, name: str, text: str, example: str) -> None:
        self.group, self.name, self.text, self.example = group, name, text, example


COMMANDS = (
    Command("run", "serve", "start everything in order, and serve until stopped", "serve --embedded"),
    Command("run", "migrate", "wait for the database, apply what is pending, exit", "migrate"),
    Command("run", "wait", "wait until a login and a query succeed, exit", "wait"),
    Command("run", "healthcheck", "ask the running service whether it is ready; exit 0 or 1", "healthcheck"),
    Command(
        "look", "status", "show what is applied and pending, and where files and ledger differ", "status --exit-code"
    ),
    Command("look", "plan", "show what would run, and what each statement locks, rewrites, scans", "plan"),
    Command("before", "lint", "say what will hurt in the files that are pending (or --all)", "lint --github"),
    Command("before", "rehearse", "try what is pending on a copy of the database, then drop it", "rehearse"),
    Command("after", "verify", "compare the database with what its files make (exit 1)", "verify"),
    Command("after", "repair", "correct the ledger: accept, mark, adopt, upgrade", "repair baseline --to NAME"),
    Command("after", "backup", "copy the whole database into a file, proven by --test", "backup --test"),
    Command("after", "restore", "replace the database with a backup, and keep the old database", "restore FILE"),
    Command("work", "jobs", "list jobs, show one and its log; retry, cancel, add; pause a queue", "jobs list --watch"),
    Command("work", "schedules", "list schedules; set, pause, resume and run one", "schedules run nightly"),
    Command("look", "config", "show what would be used and where each value came from", "config"),
    Command("look", "token", "make a token for API_TOKEN, or a line for API_TOKENS_FILE", "token"),
    Command("look", "notify", "send a test notification to every target of NOTIFY_URL", "notify --test"),
    Command("look", "studio", "open a database client in the terminal, read-only (harlequin)", "studio"),
    Command("look", "help", "list the pages of the manual, or show one", "help jobs"),
    Command("look", "completion", "print a shell's completion script", "completion bash"),
    Command("write", "generate", "write the migration that the code's tables need", "generate add_users"),
    Command("write", "new", "make the next migration, empty, and print its path", "new add_users"),
)

# The variables that a command reads, for its help; tests/commands/test_variables_read.py holds them to what is read.
# Those of whatever logs and can be stopped, which is all that connects.
EVERY_RUN_READS = "LOG_LEVEL LOG_FORMAT SHUTDOWN_TIMEOUT"
_DATABASE = "DATABASE_URL MIGRATION_DATABASE_URL DB_WAIT_TIMEOUT DB_CONNECT_TIMEOUT"
_FOLDER = "MIGRATIONS_DIR MIGRATIONS_SCHEMA MIGRATIONS_TABLE MIGRATION_TRUSTED_OWNERS"
_RUN = (
    "MIGRATION_POLICY MIGRATION_AHEAD MIGRATION_TRANSACTION MIGRATION_STATEMENT_TIMEOUT MIGRATION_DDL_LOCK_TIMEOUT"
    " MIGRATION_DDL_RETRY_FOR"
)
_BACKUPS = "BACKUP_DIR BACKUP_KEEP BACKUP_MAX_AGE BACKUP_KEY"
_MIGRATE = f"{_DATABASE} {_FOLDER} EXTENSIONS MIGRATION_LOCK_TIMEOUT {_RUN} BACKUP_BEFORE_MIGRATE {_BACKUPS} DATA_DIR"
_SERVE = (
    "HOST PORT PORT_FILE API_TOKEN API_TOKENS API_ACCESS ALLOWED_HOSTS CORS_ORIGINS JOBS JOBS_CONCURRENCY JOBS_LEASE"
    " JOBS_RETENTION NOTIFY_URL NOTIFY_AFTER INSTANCE_NAME FAILED_HOLD"
)
_QUEUE = "ORCHESTRATOR_URL API_TOKEN HOST PORT PORT_FILE JOBS DATABASE_URL DB_WAIT_TIMEOUT DB_CONNECT_TIMEOUT"
READS = {
    "jobs": _QUEUE,
    "schedules": _QUEUE,
    "serve": f"{_MIGRATE} {_SERVE}",
    "migrate": _MIGRATE,
    "wait": "DATABASE_URL DB_WAIT_TIMEOUT DB_CONNECT_TIMEOUT",
    "healthcheck": "HOST PORT PORT_FILE",
    "status": f"{_DATABASE} {_FOLDER} EXTENSIONS MIGRATION_POLICY MIGRATION_AHEAD",
    "plan": f"{_DATABASE} {_FOLDER} EXTENSIONS MIGRATION_POLICY MIGRATION_AHEAD MIGRATION_TRANSACTION DATA_DIR",
    "lint": f"{_DATABASE} {_FOLDER} EXTENSIONS",
    "rehearse": f"{_DATABASE} {_FOLDER} EXTENSIONS {_RUN}",
    "verify": f"{_DATABASE} {_FOLDER} EXTENSIONS",
    "repair": f"{_DATABASE} {_FOLDER} EXTENSIONS MIGRATION_LOCK_TIMEOUT",
    "backup": f"{_DATABASE} {_FOLDER} {_BACKUPS}",
    "restore": "DATABASE_URL MIGRATION_DATABASE_URL DB_CONNECT_TIMEOUT BACKUP_DIR BACKUP_KEY",
    "studio": "DATABASE_URL",
    "notify": "NOTIFY_URL",
    "generate": f"SCHEMA {_DATABASE} {_FOLDER} EXTENSIONS DATA_DIR",
    "new": "MIGRATIONS_DIR",
}

# The page of the manual that tells of a command.
PAGES = {
    "jobs": "jobs",
    "schedules": "jobs",
    "serve": "start",
    "migrate": "start",
    "wait": "start",
    "healthcheck": "start",
    "status": "drizzle",
    "plan": "before-after",
    "lint": "before-after",
    "rehearse": "before-after",
    "verify": "before-after",
    "repair": "before-after",
    "backup": "operations",
    "restore": "operations",
    "config": "variables",
    "token": "security",
    "studio": "operations",
    "notify": "operations",
    "help": "commands",
    "completion": "operations",
    "generate": "writing-migrations",
    "new": "writing-migrations",
}

_EXIT_CODES = """\
exit codes: 0 done or stopped as asked, 2 no such command or option, 69 no database in time, 70 a migration or a backup
failed or history is refused, 75 the migration lock was not free in time, 78 configuration, 130/143 interrupted, 1 a bug
of ours (or, where a command says so, a difference that was found)
"""
_GROUPS = {
    "run": "Run",
    "look": "Look, and change nothing",
    "work": "Work with the queue, of a running server or of the database",
    "before": "Before a migration runs",
    "after": "After, and back",
    "write": "Write migrations",
}
_GC_THRESHOLD = 50_000
_EXIT_USAGE = 2  # as argparse has it


def main(argv: list[str] | None = None) -> NoReturn:
    """Run one command and end the process with its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    streams.secure()
    if arguments[:1] == ["healthcheck"]:
        from orchestrator import healthcheck

        _leave(healthcheck.main(arguments[1:]))
    import gc

    from orchestrator import signals

    signals.early(stopped_code=0 if arguments[:1] == ["serve"] else None)
    # Imports make 100,000 objects that stay: to look through them for cycles every 700 costs 10 ms of a start.
    gc.set_threshold(_GC_THRESHOLD)
    if not arguments:
        parser().print_help(sys.stderr)
        _leave(_EXIT_USAGE)
    try:
        options = parser(arguments[0]).parse_args(arguments)
    except SystemExit as ended:  # argparse has printed help, the version, or what is wrong
        _leave(int(ended.code or 0))
    # A server prints nothing of its own, and handlers may be stuck in a print: its stop does not wait for a reader.
    _leave(options.run(options), flush_limit_s=0.5 if arguments[0] == "serve" else None)


def _leave(code: int, *, flush_limit_s: float | None = None) -> NoReturn:
    """End the process without taking the interpreter apart, which costs 20 ms: everything of ours is closed by now.

    What was printed is waited for as long as a reader takes, or for `flush_limit_s`.
    """
    streams.flush(flush_limit_s)
    os._exit(code)


def parser(asked: str | None = None) -> argparse.ArgumentParser:
    """The parser of the command line; with `asked`, only that command's options are loaded."""
    import argparse

    from orchestrator.commands.usage import Parser

    whole = Parser(
        prog="orchestrator",
        usage="orchestrator <command> [options]",
        description="The start-up of a service: wait for Postgres, apply Drizzle migrations, then serve.\n\n"
        + _table(),
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whole.add_argument("--version", action="version", version=f"orchestrator {__version__}")
    commands = whole.add_subparsers(prog="orchestrator", required=True, metavar="<command>", help=argparse.SUPPRESS)
    only = [command for command in COMMANDS if command.name == asked] or COMMANDS
    for command in only:
        added = commands.add_parser(
            command.name,
            help=command.text,
            description=f"{command.text[0].upper()}{command.text[1:]}.",
            epilog=_epilog(command),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(command=command.name, whole_parser=parser, pages=PAGES)
        added.add_argument("-v", "--verbose", action="store_true", help="debug lines too (LOG_LEVEL=debug)")
        _options_of(command.name)(added)
    return whole


def _epilog(command: Command) -> str:
    import textwrap

    lines = [
        f"example: orchestrator {command.example}",
        f"manual:  orchestrator help {PAGES[command.name]}",
    ]
    if reads := READS.get(command.name):
        if "DB_CONNECT_TIMEOUT" in reads:
            reads += f" {EVERY_RUN_READS}"
        lines += ["", *textwrap.wrap(f"reads: {', '.join(reads.split())}", 78, subsequent_indent="       ")]
        lines += ["`orchestrator config` shows what each is set to, `config --markdown` what it means."]
    return "\n".join(lines)


def _options_of(name: str) -> Any:
    from importlib import import_module

    return getattr(import_module(f"orchestrator.commands.{name}"), name)


def _table() -> str:
    lines = []
    for group, title in _GROUPS.items():
        rows = [command for command in COMMANDS if command.group == group]
        if rows:
            lines += [f"{title}:", *(f"  {row.name:<12} {row.text}" for row in rows), ""]
    lines += [
        "`orchestrator <command> --help` shows a command's options and an example; every setting is a variable of"
    ]
    lines += ["the environment: `orchestrator config` lists them. `orchestrator help` lists the pages of the manual."]
    return "\n".join(lines)
