"""Settings: every variable in one table, read in one place, all problems reported at once.

Touches the files that variables name (X_FILE, MIGRATIONS_DIR) and nothing else; the environment is handed in. Imports
nothing heavy, since every command begins here.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from orchestrator import dsn as dsns
from orchestrator.dsn import Dsn
from orchestrator.errors import ConfigurationError, Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_NOTHING: Mapping[str, str] = MappingProxyType({})
# The largest that Postgres takes for a time-out: an int32 of milliseconds.
_DURATION_MAX_S = 2147483.0
_PORT_MAX = 65535
_IDENTIFIER_BYTES_MAX = 63
_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
UNSET = "not set"


class _UnusableError(ValueError):
    """What is wrong with a value, never the value itself."""


@dataclass(frozen=True, slots=True)
class Variable:
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


def _duration(text: str) -> float:
    match = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)\s*(ms|s|m|h)?", text)
    if match is None:
        raise _UnusableError("is no duration")
    seconds = float(match[1]) * _UNITS_S[match[2] or "s"]
    if seconds > _DURATION_MAX_S:
        raise _UnusableError("is longer than 24 days")
    return seconds


def _duration_above_zero(text: str) -> float:
    seconds = _duration(text)
    if seconds <= 0:
        raise _UnusableError("is zero")
    return seconds


def _port(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or int(text) > _PORT_MAX:
        raise _UnusableError("is no port")
    return int(text)


def _host(text: str) -> str:
    if not re.fullmatch(r"[\w.:%\-]{1,253}", text):
        raise _UnusableError("is no name or address")
    return text


def _directory(text: str) -> Path:
    path = Path(text).absolute()
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        raise _UnusableError(_why(error)) from None
    if not stat.S_ISDIR(found.st_mode):
        raise _UnusableError("is no directory")
    if not os.access(path, os.R_OK | os.X_OK):
        raise _UnusableError("cannot be read by this user")
    return path


def _path(text: str) -> Path:
    return Path(text).absolute()


def _identifier(text: str) -> str:
    if "\0" in text or len(text.encode("utf-8", "surrogateescape")) > _IDENTIFIER_BYTES_MAX:
        raise _UnusableError("is longer than 63 bytes, which Postgres would cut off")
    return text


def _schema(text: str) -> str:
    if text.startswith("pg_"):
        raise _UnusableError("begins with pg_, which Postgres keeps for itself")
    if text == "orchestrator":
        raise _UnusableError("is the schema of this program's own tables")
    return _identifier(text)


def _extensions(text: str) -> tuple[str, ...]:
    names = [name for name in re.split(r"[,\s]+", text) if name]
    if not all(re.fullmatch(r"[a-z0-9_][a-z0-9_\-]{0,62}", name) for name in names):
        raise _UnusableError("holds a name that no extension has")
    return tuple(dict.fromkeys(names))


def _one_of(*words: str, **also: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        word = also.get(text.lower(), text.lower())
        if word not in words:
            raise _UnusableError("is none of these")
        return word

    return parse


_DURATION = "a duration: 15, 15s, 500ms, 2m, 1h"
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
    Variable("HOST", "a name or address", "0.0.0.0", "Where HTTP listens.", "127.0.0.1", field="host", parse=_host),  # noqa: S104
    Variable(
        "PORT", "a port from 1 to 65535, or 0 for a free one", "3005", "Where HTTP listens.", "3005", "port", _port
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
        "names of extensions with commas between, in lower case",
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
        "How long one statement of a migration may take; 0 is no limit.",
        "1h",
        field="migration_statement_timeout_s",
        parse=_duration,
    ),
    Variable(
        "MIGRATION_POLICY",
        "drizzle or strict",
        "drizzle",
        "Edited, out of order, re-dated and orphaned migrations: decide as Drizzle does and warn, or refuse.",
        "strict",
        field="migration_policy",
        parse=_one_of("drizzle", "strict"),
    ),
    Variable(
        "MIGRATION_AHEAD",
        "refuse or warn",
        "refuse",
        "A database that is newer than every file, as after a roll back of the code.",
        "warn",
        field="migration_ahead",
        parse=_one_of("refuse", "warn"),
    ),
    Variable(
        "MIGRATION_TRANSACTION",
        "each or all",
        "each",
        "One transaction for each migration, or one for all, as Drizzle has it.",
        "all",
        field="migration_transaction",
        parse=_one_of("each", "all"),
    ),
    Variable(
        "LOG_LEVEL",
        "debug, info, warning or error",
        "info",
        "The least that is logged.",
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
            "Used without `DATABASE_URL`, as by libpq.",
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
_BY_NAME: Mapping[str, Variable] = MappingProxyType({variable.name: variable for variable in VARIABLES})


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set. A duration of 0 means: no limit.

    `sources` says for each variable where its value came from. `suspects` holds (variable, the one that may be meant):
    names in the environment that look like a misspelling of ours.
    """

    database: Dsn | None = None
    migration_database: Dsn | None = None
    host: str = "0.0.0.0"  # noqa: S104 - in a container the way in is from outside
    port: int = 3005
    migrations_dir: Path | None = None
    migrations_schema: str = "drizzle"
    migrations_table: str = "__drizzle_migrations"
    extensions: tuple[str, ...] = ()
    db_wait_timeout_s: float = 0.0
    db_connect_timeout_s: float = 5.0
    migration_lock_timeout_s: float = 0.0
    migration_statement_timeout_s: float = 0.0
    migration_policy: Literal["drizzle", "strict"] = "drizzle"
    migration_ahead: Literal["refuse", "warn"] = "refuse"
    migration_transaction: Literal["each", "all"] = "each"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "json", "console"] = "auto"
    shutdown_timeout_s: float = 15.0
    data_dir: Path = Path("/var/lib/orchestrator")
    sources: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    suspects: tuple[tuple[str, str], ...] = ()

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must not be seen in any output; for `logs.configure`."""
        databases = [dsn for dsn in (self.database, self.migration_database) if dsn is not None]
        return tuple(dict.fromkeys(secret for dsn in databases for secret in dsn.secrets))

    def describe(self) -> list[tuple[str, str, str]]:
        """Rows (variable, value without secrets, where it came from), for `orchestrator config`."""
        rows = []
        for variable in VARIABLES:
            source = self.sources.get(variable.name, UNSET)
            if variable.field:
                rows.append((variable.name, _shown(getattr(self, variable.field)), source))
            elif source != UNSET:
                rows.append((variable.name, "(part of DATABASE_URL)", source))
        return rows


def load(
    environ: Mapping[str, str], overrides: Mapping[str, str] = _NOTHING, *, needs_database: bool = True
) -> Settings:
    """Read every variable of VARIABLES. An empty one is as good as none (Compose hands those on).

    `overrides` come from the command line, by variable's name, and win. `needs_database=False` leaves the variables of
    the database unread, also where they are set: for `--embedded`.

    Raises:
        ConfigurationError: every problem there is, with the expected form and an example, never with a value. The path
            in an X_FILE is named, since that is where to look.
    """
    reading = _Reading(environ, overrides)
    values: dict[str, Any] = {}
    for variable in VARIABLES:
        if variable.parse is not None:
            reading.parse(variable, values)
    values.setdefault("data_dir", _default_data_dir(environ))
    suspects = _suspects(environ)
    if needs_database:
        reading.read_databases(values, dict(suspects))
    else:
        reading.sources.update(dict.fromkeys(("DATABASE_URL", "MIGRATION_DATABASE_URL"), "not read"))
    if reading.problems:
        raise ConfigurationError(reading.problems)
    return Settings(**values, sources=MappingProxyType(reading.sources), suspects=suspects)


class _Reading:
    """One pass over the variables: where each came from, and what is wrong."""

    def __init__(self, environ: Mapping[str, str], overrides: Mapping[str, str]) -> None:
        self._environ = environ
        self._overrides = overrides
        self.sources: dict[str, str] = {}
        self.problems: list[Problem] = []

    def text(self, variable: Variable) -> str | None:
        """The variable's text, or None where it is not set or its problem was noted."""
        name = variable.name
        if name in self._overrides:
            self.sources[name] = f"--{name.lower().replace('_', '-')}"
            return self._overrides[name]
        given = self._environ.get(name) or None
        path = (self._environ.get(f"{name}_FILE") or None) if variable.file else None
        if given is not None and path is not None:
            self.problem(variable, f"is set, and so is {name}_FILE: only one of them can count")
            return None
        if path is not None:
            return self._file(variable, path)
        if given is not None:
            self.sources[name] = "environment"
        elif variable.field:
            self.sources[name] = "default" if variable.default else UNSET
        return given

    def _file(self, variable: Variable, path: str) -> str | None:
        named = f"{variable.name}_FILE"
        # The value itself put where its file's path belongs is a common slip, and a secret.
        shown = path if re.match(r"\.{0,2}/", path) and not re.search(r"://|@", path) else "(not shown)"
        try:
            # An editor's byte order mark and the line break that nearly every file ends with are not meant.
            text = Path(path).read_bytes().decode("utf-8-sig").rstrip("\r\n")
        except (OSError, ValueError) as error:
            why = "is no UTF-8 text" if isinstance(error, UnicodeDecodeError) else _why(error)
            self.problem(variable, f"names the file {shown}, which {why}", name=named)
            return None
        if not text:
            self.problem(variable, f"names the file {shown}, which is empty", name=named)
            return None
        self.sources[variable.name] = f"file {path}"
        return text

    def problem(self, variable: Variable, what: str, *, name: str | None = None) -> None:
        """Note what is wrong."""
        if name is None:
            self.problems.append(Problem(variable.name, what, variable.kind, variable.example))
        else:
            expected = f"the path of a file that holds {variable.kind}"
            self.problems.append(Problem(name, what, expected, f"/run/secrets/{variable.name.lower()}"))

    def parse(self, variable: Variable, values: dict[str, Any]) -> None:
        """Put the variable's value into `values`, unless it is not set."""
        text = self.text(variable)
        if text is None or variable.parse is None:
            return
        try:
            values[variable.field] = variable.parse(text.strip())
        except _UnusableError as error:
            self.problem(variable, str(error))

    def read_databases(self, values: dict[str, Any], suspects: Mapping[str, str]) -> None:
        """DATABASE_URL, else the PG* variables; and MIGRATION_DATABASE_URL, else the same."""
        main, migration = _BY_NAME["DATABASE_URL"], _BY_NAME["MIGRATION_DATABASE_URL"]
        before = len(self.problems)
        text = self.text(main)
        if text is not None:
            values["database"] = self._dsn(text, main.name)
        elif len(self.problems) == before:
            if any(self._environ.get(name) for name in ("PGHOST", "PGDATABASE")):
                values["database"] = self._pg()
            else:
                near = next((name for name, meant in suspects.items() if meant == main.name), None)
                hint = f" ({near} is: is {main.name} meant?)" if near else ""
                self.problems.append(
                    Problem(
                        main.name,
                        f"is not set{hint}",
                        f"{main.kind}; or DATABASE_URL_FILE; or PGHOST and PGDATABASE; or `serve --embedded` for a"
                        " private Postgres",
                        main.example,
                    )
                )
        text = self.text(migration)
        if text is not None:
            values["migration_database"] = self._dsn(text, migration.name)
        else:
            values["migration_database"] = values.get("database")
            self.sources[migration.name] = f"default: {main.name}"

    def _dsn(self, text: str, name: str) -> Dsn | None:
        try:
            return dsns.parse(text, variable=name)
        except ConfigurationError as error:
            self.problems.extend(error.problems)
            return None

    def _pg(self) -> Dsn | None:
        texts: dict[str, str] = {}
        for name in dsns.PG_VARIABLES:
            text = self.text(_BY_NAME[name])
            if text is not None:
                texts[name] = text
        self.sources["DATABASE_URL"] = " ".join(texts)
        try:
            return dsns.from_pg_variables(texts)
        except ConfigurationError as error:
            self.problems.extend(error.problems)
            return None


def _why(error: OSError | ValueError) -> str:
    known: dict[type[Exception], str] = {
        FileNotFoundError: "does not exist",
        IsADirectoryError: "is a directory",
        PermissionError: "this user may not read",
    }
    return known.get(type(error), f"cannot be read ({type(error).__name__})")


def _default_data_dir(environ: Mapping[str, str]) -> Path:
    """The XDG base directory specification's place for data; it says to ignore relative paths."""
    for base, below in (("XDG_DATA_HOME", ""), ("HOME", ".local/share")):
        path = Path(environ.get(base) or ".")
        if path.is_absolute() and path != Path("/"):
            return path / below / "orchestrator"
    return Path("/var/lib/orchestrator")


_ALIASES: Mapping[str, str] = MappingProxyType(
    dict.fromkeys(("POSTGRES_URL", "POSTGRESQL_URL", "DB_URL", "PG_URL", "PGURL", "DATABASE_DSN"), "DATABASE_URL")
)
_WORDS = re.compile(r"DATABASE|MIGRATION|EXTENSION|SHUTDOWN|TIMEOUT|DATA_?DIR|^DB_|^PG|LOG_?(?:LEVEL|FORMAT)")
_CLOSE = 0.85


def _suspects(environ: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Names that are set and look like a misspelling of one of ours that is not."""
    ours = {name for v in VARIABLES for name in ((v.name, f"{v.name}_FILE") if v.file else (v.name,))}
    unset = sorted(name for name in ours if not environ.get(name))
    found = []
    for name in sorted(environ.keys() - ours):
        if not environ[name] or not (name in _ALIASES or _WORDS.search(name.upper())):
            continue
        meant = _ALIASES.get(name)
        if meant is None:
            import difflib  # late: most environments hold no such name

            meant = next(iter(difflib.get_close_matches(name.upper(), unset, n=1, cutoff=_CLOSE)), None)
        if meant is not None and not environ.get(meant):
            found.append((name, meant))
    return tuple(found)


def _shown(value: object) -> str:
    if value is None or value == ():
        return ""
    if isinstance(value, Dsn):
        return value.redacted()
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return f"{value:g}s" if isinstance(value, float) else str(value)


def markdown_table() -> str:
    """VARIABLES as the README shows them; a line each, with a line break at the end."""
    lines = ["| Variable | Default | Expected | Meaning |", "|---|---|---|---|"]
    for v in VARIABLES:
        name = f"`{v.name}`, `{v.name}_FILE`" if v.file else f"`{v.name}`"
        default = f"`{v.default}`" if v.default else ""
        lines.append(f"| {name} | {default} | {v.kind}, e.g. `{v.example}` | {v.description} |")
    return "\n".join(lines) + "\n"
