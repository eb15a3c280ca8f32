"""The table of environment variables: the name, form, default and meaning of each, and how its text is parsed.

It drives the reading (settings.py), the README and `orchestrator config`. Touches nothing but the directories and files
that a parser is asked about.
"""

from __future__ import annotations

import importlib.util
import os
import re
import stat
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import msgspec

from orchestrator import dsn as dsns
from orchestrator import tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# The largest that Postgres takes for a time-out: an int32 of milliseconds.
_DURATION_MAX_S = 2147483.0
_PORT_MAX = 65535
_IDENTIFIER_BYTES_MAX = 63
_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class UnusableError(ValueError):
    """What is wrong with a value, never the value itself."""


class Variable(msgspec.Struct, frozen=True):
    """One row of the table of variables: what drives the reading, the README and `orchestrator config`.

    `kind` is the expected form in words. `default` is the text of the default as a person would write it, "" for none.
    `field` is the name in Settings, "" where the variable is a part of another one. `file` says that NAME_FILE may
    name a file that holds the value.
    """

    name: str
    kind: str
    default: str
    description: str
    example: str
    field: str = ""
    parse: Callable[[str], object] | None = None
    secret: bool = False
    file: bool = False


def _span(text: str) -> float:
    match = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)\s*(ms|s|m|h|d)?", text)
    if match is None:
        raise UnusableError("is not a duration")
    return float(match[1]) * _UNITS_S[match[2] or "s"]


def _duration(text: str) -> float:
    seconds = _span(text)
    if seconds > _DURATION_MAX_S:
        raise UnusableError("is longer than 24 days")
    return seconds


def _duration_above_zero(text: str) -> float:
    seconds = _duration(text)
    if seconds <= 0:
        raise UnusableError("is zero")
    return seconds


def _port(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or int(text) > _PORT_MAX:
        raise UnusableError("is not a port")
    return int(text)


def _host(text: str) -> str:
    if not re.fullmatch(r"[\w.:%\-]{1,253}", text):
        raise UnusableError("is neither a name nor an address")
    return text


def _directory(text: str) -> Path:
    path = Path(text).absolute()
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        raise UnusableError(why_unreadable(error)) from None
    if not stat.S_ISDIR(found.st_mode):
        raise UnusableError("is not a directory")
    if not os.access(path, os.R_OK | os.X_OK):
        raise UnusableError("cannot be read by this user")
    return path


def new_directory(text: str) -> Path:
    """A directory as for `MIGRATIONS_DIR`, or the path of one that is not there yet."""
    return _directory(text) if Path(text).exists() else Path(text).absolute()


def _path(text: str) -> Path:
    return Path(text).absolute()


def _identifier(text: str) -> str:
    if "\0" in text or len(text.encode("utf-8", "surrogateescape")) > _IDENTIFIER_BYTES_MAX:
        raise UnusableError("is longer than 63 bytes, which Postgres would cut off")
    return text


def _schema(text: str) -> str:
    if text.startswith("pg_"):
        raise UnusableError("begins with pg_, which Postgres keeps for itself")
    if text == "orchestrator":
        raise UnusableError("is the schema of this program's own tables")
    return _identifier(text)


def _extensions(text: str) -> tuple[str, ...]:
    names = [name for name in re.split(r"[,\s]+", text) if name]
    if not all(re.fullmatch(r"[a-z0-9_][a-z0-9_\-]{0,62}", name) for name in names):
        raise UnusableError("contains a name that no extension can have")
    return tuple(dict.fromkeys(names))


def _roles(text: str) -> tuple[str, ...]:
    names = [name.strip() for name in text.split(",")]
    return tuple(dict.fromkeys(_identifier(name) for name in names if name))


def _count(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,6}", text):
        raise UnusableError("is not a whole number")
    return int(text)


def _count_above_zero(text: str) -> int:
    count = _count(text)
    if count == 0:
        raise UnusableError("is zero")
    return count


def _modules(text: str) -> tuple[str, ...]:
    names = [name for name in re.split(r"[,\s]+", text) if name]
    if not all(re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", name) for name in names):
        raise UnusableError("contains something that is not a module's name")
    return tuple(dict.fromkeys(names))


def _attribute(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", text):
        raise UnusableError("is not of the form module:name")
    return text


def _token(text: str) -> str:
    try:
        return tokens.usable(text)
    except tokens.TokenError as error:
        raise UnusableError(str(error)) from None


def _tokens(text: str) -> tuple[tokens.Token, ...]:
    try:
        return tokens.parse(text)
    except tokens.TokenError as error:
        raise UnusableError(str(error)) from None


def _hosts(text: str) -> tuple[str, ...]:
    names = [name.strip("[]").rstrip(".").lower() for name in re.split(r"[,\s]+", text) if name]
    if not all(name == "*" or re.fullmatch(r"[a-z0-9_.:\-]{1,253}", name) for name in names):
        raise UnusableError("contains something that is neither a host name (without a port) nor *")
    return tuple(dict.fromkeys(names))


def _origins(text: str) -> tuple[str, ...]:
    origins = [origin.rstrip("/") for origin in re.split(r"[,\s]+", text) if origin]
    if not all(re.fullmatch(r"https?://[A-Za-z0-9.\-\[\]:]+", origin) for origin in origins):
        raise UnusableError("contains something that is not an origin")
    return tuple(dict.fromkeys(origins))


_NAME_MAX = 60


def _name(text: str) -> str:
    if not text.isprintable() or len(text) > _NAME_MAX:
        raise UnusableError("is longer, or contains characters that cannot be printed")
    return text


def _url(text: str) -> str:
    if not re.fullmatch(r"https?://[^\s/?#@]+/?", text):
        raise UnusableError("is not the URL of a server")
    return text.rstrip("/")


def _targets(text: str) -> tuple[str, ...]:
    targets = tuple(dict.fromkeys(text.split()))
    if not all(re.fullmatch(r"[a-z][a-z0-9+.\-]*://\S+", target) for target in targets):
        raise UnusableError("contains something that is not an address (scheme://…)")
    others = [target for target in targets if not target.startswith(("http://", "https://"))]
    if others and importlib.util.find_spec("apprise") is None:
        raise UnusableError("contains an address for apprise, but the extra `notify` is not installed")
    return targets


def _one_of(*words: str, **also: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        word = also.get(text.lower(), text.lower())
        if word not in words:
            raise UnusableError("is not one of these")
        return word

    return parse


# What proves who we or they are, and is looked for also where DATABASE_URL is set (Dsn.connect_arguments).
_PROOFS = {"PGUSER", "PGPASSWORD", "PGPASSFILE", "PGSSLROOTCERT", "PGSSLCERT", "PGSSLKEY", "PGSSLCRL"}
_DURATION = "a duration: 15, 15s, 500ms, 2m, 1h, 7d"
_URL = dsns.EXPECTED

VARIABLES: tuple[Variable, ...] = (
    Variable(
        "DATABASE_URL",
        _URL,
        "",
        "The database to wait for, to migrate and to serve from. Required, unless `PGHOST` and `PGDATABASE` are set.",
        dsns.EXAMPLE,
        field="database",
        secret=True,
        file=True,
    ),
    Variable(
        "MIGRATION_DATABASE_URL",
        _URL,
        "",
        "The same database for migrations: past a pooler such as PgBouncer, or as the owner. Default: `DATABASE_URL`.",
        "postgresql://owner:secret@db:5432/app",
        field="migration_database",
        secret=True,
        file=True,
    ),
    Variable(
        "HOST",
        "a name or address",
        "127.0.0.1",
        "Where HTTP listens: this machine alone, unless told. The image says `0.0.0.0`; `::` is both families.",
        "0.0.0.0",  # noqa: S104 an example
        field="host",
        parse=_host,
    ),
    Variable(
        "PORT", "a port from 1 to 65535, or 0 for a free one", "3005", "Where HTTP listens.", "3005", "port", _port
    ),
    Variable(
        "PORT_FILE",
        "a file",
        "",
        "Where the port is written while HTTP listens. With `PORT=0` it is always written, where `healthcheck` looks.",
        "/tmp/orchestrator.port",  # noqa: S108 an example
        field="port_file",
        parse=_path,
    ),
    Variable(
        "MIGRATIONS_DIR",
        "a directory that can be read",
        "",
        "The Drizzle folder to apply. Without it only the program's own tables are made.",
        "/app/drizzle",
        field="migrations_dir",
        parse=_directory,
    ),
    Variable(
        "MIGRATIONS_SCHEMA",
        "a name of at most 63 bytes",
        "drizzle",
        "The schema of Drizzle's ledger (`migrationsSchema` in Drizzle).",
        "drizzle",
        field="migrations_schema",
        parse=_schema,
    ),
    Variable(
        "MIGRATIONS_TABLE",
        "a name of at most 63 bytes",
        "__drizzle_migrations",
        "The table of Drizzle's ledger (`migrationsTable` in Drizzle).",
        "__drizzle_migrations",
        field="migrations_table",
        parse=_identifier,
    ),
    Variable(
        "EXTENSIONS",
        "comma-separated names of extensions, in lower case",
        "",
        "Extensions to create before the migrations, where they are missing.",
        "vector,uuid-ossp",
        field="extensions",
        parse=_extensions,
    ),
    Variable(
        "DB_WAIT_TIMEOUT",
        _DURATION,
        "0",
        "How long to wait for the database before giving up (exit 69); 0 waits for ever.",
        "5m",
        field="db_wait_timeout_s",
        parse=_duration,
    ),
    Variable(
        "DB_CONNECT_TIMEOUT",
        f"{_DURATION}; more than 0",
        "5s",
        "How long one attempt to connect may take.",
        "5s",
        field="db_connect_timeout_s",
        parse=_duration_above_zero,
    ),
    Variable(
        "MIGRATION_LOCK_TIMEOUT",
        _DURATION,
        "0",
        "How long to wait for another migrator before giving up (exit 75); 0 waits for ever.",
        "10m",
        field="migration_lock_timeout_s",
        parse=_duration,
    ),
    Variable(
        "MIGRATION_STATEMENT_TIMEOUT",
        _DURATION,
        "0",
        "How long one statement of a migration may take; 0 means no limit.",
        "1h",
        field="migration_statement_timeout_s",
        parse=_duration,
    ),
    Variable(
        "MIGRATION_POLICY",
        "drizzle or strict",
        "drizzle",
        "What to do about edited, out-of-order, re-dated and orphaned migrations: decide as Drizzle does and warn,"
        " or refuse.",
        "strict",
        field="migration_policy",
        parse=_one_of("drizzle", "strict"),
    ),
    Variable(
        "MIGRATION_AHEAD",
        "refuse or warn",
        "refuse",
        "What to do when the database is newer than every file, as after a rollback of the code.",
        "warn",
        field="migration_ahead",
        parse=_one_of("refuse", "warn"),
    ),
    Variable(
        "MIGRATION_TRUSTED_OWNERS",
        "comma-separated names of roles",
        "",
        "Roles whose tables, triggers and functions may stand in a ledger or in our schema, besides our own roles and"
        " the database's owner.",
        "app_owner",
        field="migration_trusted_owners",
        parse=_roles,
    ),
    Variable(
        "MIGRATION_TRANSACTION",
        "each or all",
        "each",
        "One transaction for each migration, or one for all of them, as Drizzle does it.",
        "all",
        field="migration_transaction",
        parse=_one_of("each", "all"),
    ),
    Variable(
        "MIGRATION_DDL_LOCK_TIMEOUT",
        _DURATION,
        "5s",
        "How long a migration waits for a table's lock before it rolls back and tries again; 0 waits for ever.",
        "5s",
        field="migration_ddl_lock_timeout_s",
        parse=_duration,
    ),
    Variable(
        "MIGRATION_DDL_RETRY_FOR",
        _DURATION,
        "10m",
        "How long such a migration is retried before the start fails (exit 70); 0 retries for ever.",
        "10m",
        field="migration_ddl_retry_for_s",
        parse=_duration,
    ),
    Variable(
        "BACKUP_DIR",
        "a directory",
        "",
        "Where `backup` and the job `database.backup` write. Without it neither runs on its own.",
        "/backups",
        field="backup_dir",
        parse=_path,
    ),
    Variable(
        "BACKUP_BEFORE_MIGRATE",
        "never, pending or always",
        "never",
        "When to make a backup before the migrations: never, when something is pending, or at every start. Without"
        " the backup, nothing is migrated.",
        "pending",
        field="backup_before_migrate",
        parse=_one_of("never", "pending", "always"),
    ),
    Variable(
        "BACKUP_KEEP",
        "a whole number",
        "7",
        "How many backups are kept in `BACKUP_DIR`; 0 keeps all.",
        "7",
        field="backup_keep",
        parse=_count,
    ),
    Variable(
        "BACKUP_MAX_AGE",
        _DURATION,
        "0",
        "Backups older than this are removed, except the newest one; 0 means no limit.",
        "30d",
        field="backup_max_age_s",
        parse=_span,
    ),
    Variable(
        "BACKUP_KEY",
        "at least 16 printable ASCII characters",
        "",
        "Signs backups, so that `restore` knows them on any server. Keep it apart from the backups.",
        "another-long-random-text",
        field="backup_key",
        parse=_token,
        secret=True,
        file=True,
    ),
    Variable(
        "NOTIFY_URL",
        "addresses separated by spaces: webhooks (https://…), or what apprise takes (ntfy://…, mailtos://…)",
        "",
        "Where a person is told of what fails although nobody looks; see the page `operations`.",
        "https://hooks.example.org/orchestrator",
        field="notify_urls",
        parse=_targets,
        secret=True,
        file=True,
    ),
    Variable(
        "NOTIFY_AFTER",
        f"{_DURATION}; more than 0",
        "1m",
        "How long the database must be out of reach before a notification is sent.",
        "5m",
        field="notify_after_s",
        parse=_duration_above_zero,
    ),
    Variable(
        "JOBS",
        "comma-separated names of Python modules",
        "",
        "Modules that hold your job handlers; imported when the migrations are done.",
        "my_app.jobs",
        field="jobs",
        parse=_modules,
    ),
    Variable(
        "JOBS_CONCURRENCY",
        "a whole number above 0",
        "20",
        "How many jobs this process runs at the same time.",
        "20",
        field="jobs_concurrency",
        parse=_count_above_zero,
    ),
    Variable(
        "JOBS_LEASE",
        _DURATION + "; more than 0",
        "30s",
        "How long a worker may be silent before its jobs are taken over.",
        "30s",
        field="jobs_lease_s",
        parse=_duration_above_zero,
    ),
    Variable(
        "JOBS_RETENTION",
        _DURATION,
        "7d",
        "How long finished jobs and their events are kept; 0 keeps them.",
        "7d",
        field="jobs_retention_s",
        parse=_span,
    ),
    Variable(
        "API_TOKEN",
        "at least 16 printable ASCII characters",
        "",
        "The bearer token that the API asks for; `orchestrator token` makes one.",
        "a-long-random-text",
        field="api_token",
        parse=_token,
        secret=True,
        file=True,
    ),
    Variable(
        "API_TOKENS",
        "lines of the form NAME TOKEN, or NAME TOKEN read for a read-only one",
        "",
        "Several tokens, each with the name that the audit trail shows. A file of tokens is read again when it"
        " changes.",
        "grafana a-long-random-text read",
        field="api_tokens",
        parse=_tokens,
        secret=True,
        file=True,
    ),
    Variable(
        "API_ACCESS",
        "none, read or open",
        "",
        "What may be done without a token: nothing, reading, or everything. By default `open` on loopback, where no"
        " token is set;"
        " else `none`.",
        "read",
        field="api_access",
        parse=_one_of("none", "read", "open"),
    ),
    Variable(
        "ALLOWED_HOSTS",
        "comma-separated names, or *",
        "",
        "Names by which the server may be asked without a token, beside its addresses and, beyond loopback, names"
        " without a dot.",
        "stats.example.org",
        field="allowed_hosts",
        parse=_hosts,
    ),
    Variable(
        "CORS_ORIGINS",
        "comma-separated origins",
        "",
        "Origins whose pages may use the API; none by default.",
        "https://stats.example.org",
        field="cors_origins",
        parse=_origins,
    ),
    Variable(
        "INSTANCE_NAME",
        "a name of at most 60 characters",
        "",
        "What this instance is called in the titles of its page, where you have several: staging, production.",
        "staging",
        field="instance_name",
        parse=_name,
    ),
    Variable(
        "ORCHESTRATOR_URL",
        "a URL, http:// or https://",
        "",
        "The server that `jobs` and `schedules` ask; without it the one that runs here, else the database.",
        "https://jobs.example.org",
        field="orchestrator_url",
        parse=_url,
    ),
    Variable(
        "SCHEMA",
        "module:name",
        "",
        "The SQLAlchemy MetaData, or declarative base, that `generate` compares with.",
        "my_app.models:Base",
        field="schema",
        parse=_attribute,
    ),
    Variable(
        "LOG_LEVEL",
        "debug, info, warning or error",
        "info",
        "The lowest level that is logged.",
        "debug",
        field="log_level",
        parse=_one_of("debug", "info", "warning", "error", warn="warning"),
    ),
    Variable(
        "LOG_FORMAT",
        "auto, json or console",
        "auto",
        "One JSON object a line, or lines for people; `auto`: the latter on a terminal.",
        "json",
        field="log_format",
        parse=_one_of("auto", "json", "console"),
    ),
    Variable(
        "SHUTDOWN_TIMEOUT",
        _DURATION,
        "15s",
        "How long an orderly stop may take.",
        "15s",
        field="shutdown_timeout_s",
        parse=_duration,
    ),
    Variable(
        "FAILED_HOLD",
        f"{_DURATION}; 0: not at all",
        "0",
        "How long `serve`, once its start has failed, goes on showing why on `/health` and the page before it exits; a"
        " signal ends it at once. 30s in the image.",
        "30s",
        field="failed_hold_s",
        parse=_duration,
    ),
    Variable(
        "DATA_DIR",
        "a directory",
        "$XDG_DATA_HOME/orchestrator",
        "Where `--embedded` keeps its database. By default the user's (`~/.local/share`), else `/var/lib`.",
        "/var/lib/orchestrator",
        field="data_dir",
        parse=_path,
    ),
    *(
        Variable(
            name,
            f"as libpq's `{keyword}`",
            "",
            "As libpq has it: without `DATABASE_URL`, or where that does not say."
            if name in _PROOFS
            else "Used without `DATABASE_URL`, as by libpq.",
            example,
            secret=keyword == "password",
            file=keyword == "password",
        )
        for name, keyword, example in (
            ("PGHOST", "host", "db"),
            ("PGPORT", "port", "5432"),
            ("PGUSER", "user", "app"),
            ("PGPASSWORD", "password", "secret"),
            ("PGDATABASE", "dbname", "app"),
            ("PGPASSFILE", "passfile", "/run/secrets/pgpass"),
            ("PGSSLMODE", "sslmode", "verify-full"),
            ("PGSSLROOTCERT", "sslrootcert", "/run/secrets/ca.crt"),
            ("PGSSLCERT", "sslcert", "/run/secrets/client.crt"),
            ("PGSSLKEY", "sslkey", "/run/secrets/client.key"),
            ("PGSSLCRL", "sslcrl", "/run/secrets/ca.crl"),
            ("PGSSLNEGOTIATION", "sslnegotiation", "direct"),
            ("PGCHANNELBINDING", "channel_binding", "prefer"),
            ("PGGSSENCMODE", "gssencmode", "disable"),
            ("PGAPPNAME", "application_name", "job-server"),
            ("PGOPTIONS", "options", "-c lock_timeout=5s"),
            ("PGCONNECT_TIMEOUT", "connect_timeout", "5"),
            ("PGTARGETSESSIONATTRS", "target_session_attrs", "primary"),
        )
    ),
)
BY_NAME: Mapping[str, Variable] = MappingProxyType({variable.name: variable for variable in VARIABLES})


def why_unreadable(error: OSError | ValueError) -> str:
    """Words for a file or directory that cannot be used."""
    known: dict[type[Exception], str] = {
        FileNotFoundError: "does not exist",
        IsADirectoryError: "is a directory",
        PermissionError: "this user may not read",
    }
    return known.get(type(error), f"cannot be read ({type(error).__name__})")


def markdown_table() -> str:
    """VARIABLES as the README shows them; a line each, with a line break at the end."""
    lines = ["| Variable | Default | Expected | Meaning |", "|---|---|---|---|"]
    for v in VARIABLES:
        name = f"`{v.name}`, `{v.name}_FILE`" if v.file else f"`{v.name}`"
        default = f"`{v.default}`" if v.default else ""
        lines.append(f"| {name} | {default} | {v.kind}, e.g. `{v.example}` | {v.description} |")
    return "\n".join(lines) + "\n"
