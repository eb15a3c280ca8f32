"""Settings: every variable read in one place, all problems reported at once.

Touches the files that variables name (X_FILE, MIGRATIONS_DIR) and nothing else; the environment is handed in. Imports
nothing heavy, since every command begins here.
"""

from __future__ import annotations

import re
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from orchestrator import dsn as dsns
from orchestrator import dsn_parameters
from orchestrator.dsn import Dsn
from orchestrator.errors import ConfigurationError, Problem
from orchestrator.healthcheck import default_port_file
from orchestrator.redaction import Secrets
from orchestrator.variables import BY_NAME, VARIABLES, UnusableError, Variable, new_directory, why_unreadable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from orchestrator.tokens import Token

_NOTHING: Mapping[str, str] = MappingProxyType({})
_NO_FILES: Mapping[str, Path] = MappingProxyType({})
UNSET = "not set"
# Demands on security that count beside a URL that does not make them itself.
_BESIDE_A_URL: Mapping[str, str] = MappingProxyType({"PGSSLMODE": "sslmode", "PGCHANNELBINDING": "channel_binding"})


class Settings(msgspec.Struct, frozen=True):
    """Everything that can be set. A duration of 0 means: no limit.

    `files` are the files that variables came from (X_FILE), by variable. `sources` says for each variable where its
    value came from. `suspects` holds (variable, the one that may be meant): names in the environment that look like a
    misspelling of ours.
    """

    database: Dsn | None = None
    migration_database: Dsn | None = None
    host: str = "127.0.0.1"
    port: int = 3005
    port_file: Path | None = None
    migrations_dir: Path | None = None
    migrations_schema: str = "drizzle"
    migrations_table: str = "__drizzle_migrations"
    extensions: tuple[str, ...] = ()
    db_wait_timeout_s: float = 0.0
    db_connect_timeout_s: float = 5.0
    migration_lock_timeout_s: float = 0.0
    migration_statement_timeout_s: float = 0.0
    migration_policy: Literal["drizzle", "strict"] = "drizzle"
    migration_trusted_owners: tuple[str, ...] = ()
    migration_ahead: Literal["refuse", "warn"] = "refuse"
    migration_transaction: Literal["each", "all"] = "each"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "json", "console"] = "auto"
    shutdown_timeout_s: float = 15.0
    failed_hold_s: float = 0.0
    migration_ddl_lock_timeout_s: float = 5.0
    migration_ddl_retry_for_s: float = 600.0
    backup_dir: Path | None = None
    backup_before_migrate: Literal["never", "pending", "always"] = "never"
    backup_keep: int = 7
    backup_max_age_s: float = 0.0
    backup_key: str = ""
    notify_urls: tuple[str, ...] = ()
    notify_after_s: float = 60.0
    jobs: tuple[str, ...] = ()
    jobs_concurrency: int = 20
    jobs_lease_s: float = 30.0
    jobs_retention_s: float = 604800.0
    api_token: str = ""
    api_tokens: tuple[Token, ...] = ()
    api_access: Literal["", "none", "read", "open"] = ""
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    orchestrator_url: str = ""
    instance_name: str = ""
    schema: str = ""
    data_dir: Path = Path("/var/lib/orchestrator")
    files: Mapping[str, Path] = msgspec.field(default_factory=lambda: _NO_FILES)
    sources: Mapping[str, str] = msgspec.field(default_factory=lambda: _NOTHING)
    suspects: tuple[tuple[str, str], ...] = ()
    # What must not be seen in any output; it grows when a file with a password is read again.
    secrets: Secrets = msgspec.field(default_factory=Secrets)

    def __repr__(self) -> str:
        return f"Settings({self.describe()})"

    def describe(self) -> list[tuple[str, str, str]]:
        """Rows (variable, value without secrets, where it came from), for `orchestrator config`."""
        rows = []
        for variable in VARIABLES:
            source = self.sources.get(variable.name, UNSET)
            if variable.field:
                value = getattr(self, variable.field)
                hidden = variable.secret and isinstance(value, (str, tuple)) and value
                rows.append((variable.name, "***" if hidden else _shown(value), source))
            elif source != UNSET:
                rows.append((variable.name, "(part of DATABASE_URL)", source))
        return rows


def load(
    environ: Mapping[str, str],
    overrides: Mapping[str, str] = _NOTHING,
    *,
    needs_database: bool = True,
    folder_may_be_missing: bool = False,
) -> Settings:
    """Read every variable of VARIABLES. An empty one is as good as none (Compose hands those on).

    `overrides` come from the command line, by variable's name, and win. `needs_database=False` leaves the variables of
    the database unread, also where they are set: for `--embedded`.
    `folder_may_be_missing`: MIGRATIONS_DIR is about to be made.

    Raises:
        ConfigurationError: every problem there is, with the expected form and an example, never with a value. The path
            in an X_FILE is named, since that is where to look.
    """
    reading = _Reading(environ, overrides)
    values: dict[str, Any] = {}
    for variable in VARIABLES:
        if variable.name == "MIGRATIONS_DIR" and folder_may_be_missing:
            reading.parse(msgspec.structs.replace(variable, parse=new_directory), values)
        elif variable.parse is not None:
            reading.parse(variable, values)
    values.setdefault("data_dir", _default_data_dir(environ))
    if values.get("port") == 0:
        values.setdefault("port_file", Path(default_port_file(environ)))
    suspects = _suspects(environ)
    reading.connect_timeout_s = values.get("db_connect_timeout_s", dsns.CONNECT_TIMEOUT_S)
    if needs_database:
        reading.read_databases(values, dict(suspects))
    else:
        reading.sources.update(dict.fromkeys(("DATABASE_URL", "MIGRATION_DATABASE_URL"), "not read"))
    if reading.problems:
        raise ConfigurationError(reading.problems)
    databases = [values.get("database"), values.get("migration_database")]
    own = [values.get("api_token", ""), values.get("backup_key", ""), *values.get("notify_urls", ())]
    reading.secrets.add_always(*(one for dsn in databases if dsn is not None for one in dsn.secrets), *own)
    return Settings(
        **values,
        secrets=reading.secrets,
        files=MappingProxyType(reading.files),
        sources=MappingProxyType(reading.sources),
        suspects=suspects,
    )


def names_a_database(environ: Mapping[str, str]) -> bool:
    """Whether the environment says which database to use, rightly or wrongly: for what can do without one."""
    return any(environ.get(name) for name in ("DATABASE_URL", "DATABASE_URL_FILE", "PGHOST", "PGDATABASE"))


class _Reading:
    """One pass over the variables: where each came from, and what is wrong."""

    def __init__(self, environ: Mapping[str, str], overrides: Mapping[str, str]) -> None:
        self._environ = environ
        self._overrides = overrides
        self.sources: dict[str, str] = {}
        self.files: dict[str, Path] = {}
        self.problems: list[Problem] = []
        self.secrets = Secrets()
        self.connect_timeout_s = dsns.CONNECT_TIMEOUT_S

    def text(self, variable: Variable) -> str | None:
        """The variable's text, or None where it is not set or its problem was noted."""
        name = variable.name
        if name in self._overrides:
            self.sources[name] = f"--{name.lower().replace('_', '-')}"
            return self._overrides[name]
        given = self._environ.get(name) or None
        path = (self._environ.get(f"{name}_FILE") or None) if variable.file else None
        given, path = (None if value is None or not value.strip() else value for value in (given, path))
        if given is not None and path is not None:
            self.problem(variable, f"is set, and so is {name}_FILE: give only one of them")
            return None
        if path is not None:
            return self._file(variable, path)
        if given is not None and name.startswith("PG") and given[-1] in "\r\n":
            self.problem(variable, "has a line break at its end, as env files often leave one: remove it")
            return None
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
            why = "is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else why_unreadable(error)
            self.problem(variable, f"names the file {shown}, which {why}", name=named)
            return None
        if not text:
            self.problem(variable, f"names the file {shown}, which is empty", name=named)
            return None
        self.sources[variable.name] = f"file {path}"
        self.files[variable.name] = Path(path)
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
        except UnusableError as error:
            self.problem(variable, str(error))

    def read_databases(self, values: dict[str, Any], suspects: Mapping[str, str]) -> None:
        """DATABASE_URL, else the PG* variables; and MIGRATION_DATABASE_URL, else the same."""
        main, migration = BY_NAME["DATABASE_URL"], BY_NAME["MIGRATION_DATABASE_URL"]
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
            found = dsns.parse(text, variable=name, connect_timeout_s=self.connect_timeout_s)
        except ConfigurationError as error:
            self.problems.extend(error.problems)
            return None
        # As libpq has it: what the URL does not say, these do. pg_dump, which gets the DSN alone, needs it.
        for variable, keyword in _BESIDE_A_URL.items():
            if keyword not in found.options and (word := self.text(BY_NAME[variable])) is not None:
                if word not in dsn_parameters.CHOICES[keyword]:
                    self.problem(BY_NAME[variable], "has an unknown value")
                    return None
                found = msgspec.structs.replace(found, options={**found.options, keyword: word})
        if found.password is None and (password := self.text(BY_NAME["PGPASSWORD"])) is not None:
            found = msgspec.structs.replace(found, password=password)
        return self._rereadable(found, name)

    def _rereadable(self, found: Dsn, name: str) -> Dsn:
        """The DSN, which reads its files again when it is asked to: the secrets in them are rotated."""
        if not {name, *dsn_parameters.PG_VARIABLES}.intersection(self.files):
            return found
        environ, overrides, secrets = dict(self._environ), self._overrides, self.secrets
        connect_timeout_s = self.connect_timeout_s

        def reread() -> Dsn:
            again = _Reading(environ, overrides)
            again.connect_timeout_s = connect_timeout_s
            values: dict[str, Any] = {}
            again.read_databases(values, {})
            if again.problems:
                raise ConfigurationError(again.problems)
            dsn: Dsn = values["migration_database" if name == "MIGRATION_DATABASE_URL" else "database"]
            secrets.add(*dsn.secrets)
            return dsn

        return msgspec.structs.replace(found, reread=reread)

    def _pg(self) -> Dsn | None:
        texts: dict[str, str] = {}
        for name in dsn_parameters.PG_VARIABLES:
            text = self.text(BY_NAME[name])
            if text is not None:
                texts[name] = text
        self.sources["DATABASE_URL"] = " ".join(texts)
        try:
            found = dsns.from_pg_variables(texts, connect_timeout_s=self.connect_timeout_s)
        except ConfigurationError as error:
            self.problems.extend(error.problems)
            return None
        return self._rereadable(found, "DATABASE_URL")


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
_WORDS = re.compile(
    r"DATABASE|MIGRATION|EXTENSION|SHUTDOWN|TIMEOUT|DATA_?DIR|^DB_|^PG|LOG_?(?:LEVEL|FORMAT)"
    r"|BACKUP|^JOBS|NOTIFY|API_?TOKEN|API_?ACCESS|ALLOWED_?HOST|CORS"
)
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
