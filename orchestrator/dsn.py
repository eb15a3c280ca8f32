"""Connection strings: what libpq accepts, made into what asyncpg understands. Pure: no I/O.

The rules are libpq's (PostgreSQL manual, 34.1.1 "Connection Strings"), written anew for two reasons. asyncpg sends
every parameter that it does not know to the server, which then ends the session (42704: `schema`, `pgbouncer`,
`connect_timeout`, …). And both asyncpg and urllib put parts of the password into their errors where it holds an
unescaped `#`, `/`, `?` or `@`. Here no problem ever holds a part of the value: where a URL can be read in two ways, so
that a piece of the password could pass for a host, a database or a parameter's name, it is refused as a whole.
"""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec

from orchestrator import dsn_parameters as parameters
from orchestrator.errors import ConfigurationError, Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

EXPECTED = "a URL postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
EXAMPLE = "postgresql://app:p%40ss@db:5432/app"
DEFAULT_PORT = 5432
CONNECT_TIMEOUT_S = 5.0
_PORT_MAX = 65535
_HOST_LENGTH_MAX = 253
_NOTHING: Mapping[str, str] = MappingProxyType({})


class Dsn(msgspec.Struct, frozen=True):
    """Where the database is and who asks. Its `str` and `repr` are `redacted()`: safe to log.

    A host that starts with "/" is the directory of a Unix socket. `options` holds what asyncpg understands, by libpq's
    names; `server_settings` what the session begins with. `connect_timeout_s` is for one address: what the text says,
    or whoever read it, where the text says nothing (or 0, libpq's "for ever"). `statement_cache` is False behind a
    pooler. `dropped` names what was read past: what tunes other clients, and nothing that decides which server it is
    or who is trusted. `reread` reads the files it came from.
    """

    hosts: tuple[tuple[str, int], ...]
    user: str | None = None
    database: str | None = None
    password: str | None = None
    options: Mapping[str, str] = msgspec.field(default_factory=lambda: _NOTHING)
    connect_timeout_s: float = CONNECT_TIMEOUT_S
    server_settings: Mapping[str, str] = msgspec.field(default_factory=lambda: _NOTHING)
    statement_cache: bool = True
    dropped: tuple[str, ...] = ()
    reread: Callable[[], Dsn] | None = None

    def current(self) -> Dsn:
        """The DSN as it is now: where it came from files, these are read again, since secrets are rotated.

        Raises whatever reading them raises.
        """
        return self if self.reread is None else self.reread()

    def changed(self, **fields: Any) -> Dsn:
        """The same with other fields, now and whenever it is read again."""
        reread = self.reread
        again = None if reread is None else lambda: reread().changed(**fields)
        return msgspec.structs.replace(self, **fields, reread=again)

    def with_role(self, role: str) -> Dsn:
        """The same, with another `target_session_attrs`."""
        reread = self.reread
        again = None if reread is None else lambda: reread().with_role(role)
        return msgspec.structs.replace(self, options={**self.options, "target_session_attrs": role}, reread=again)

    def __repr__(self) -> str:
        return f"Dsn({self.redacted()})"

    __str__ = __repr__

    def redacted(self) -> str:
        """`user@host:port/database`: for people and logs; no parameter and no password is in it."""
        hosts = ",".join(f"[{h}]:{p}" if ":" in h and h[0] != "/" else f"{h}:{p}" for h, p in self.hosts)
        user = "" if self.user is None else f"{self.user}@"
        return f"{user}{hosts}" if self.database is None else f"{user}{hosts}/{self.database}"

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must not be seen. A password that is also the user's or the database's name hides nothing: left out."""
        seen = {self.user, self.database, *(host for host, _ in self.hosts)}
        return tuple(s for s in (self.password, self.options.get("sslpassword")) if s and s not in seen)

    def connect_arguments(self) -> dict[str, Any]:
        """Keyword arguments for `asyncpg.connect`; the caller adds `timeout`.

        asyncpg fills what it is not told from PG* variables of the environment. Told here, always: hosts, ports,
        database, sslmode (libpq's default, prefer), TLS negotiation, target_session_attrs, Kerberos names; so that a
        stray PGHOST, PGPORT, PGDATABASE, PGSSLMODE or PGTARGETSESSIONATTRS never mixes with a URL. Left to it, as in
        libpq, is what proves who we or they are: without a password PGPASSWORD, then the password file (`passfile`,
        PGPASSFILE, ~/.pgpass); without a user PGUSER, then the user of the process; without TLS files PGSSLROOTCERT,
        PGSSLCERT, PGSSLKEY, PGSSLCRL, then those in ~/.postgresql.
        """
        options = self.options
        on_sockets = all(host.startswith("/") for host, _ in self.hosts)
        arguments: dict[str, Any] = {
            "host": [host for host, _ in self.hosts],
            "port": [port for _, port in self.hosts],
            "database": self.database,
            # True, asyncpg's word for the system's certificates with the host verified, is libpq's sslrootcert=system.
            "ssl": options.get("sslrootcert") == "system"
            or options.get("sslmode", "disable" if on_sockets else "prefer"),
            "direct_tls": options.get("sslnegotiation") == "direct",
            "target_session_attrs": options.get("target_session_attrs", "any"),
            "krbsrvname": options.get("krbsrvname", "postgres"),
            "gsslib": options.get("gsslib", "gssapi"),
            "server_settings": dict(self.server_settings),
        }
        proofs = {"user": self.user, "password": self.password, "passfile": options.get("passfile")}
        arguments.update({name: value for name, value in proofs.items() if value is not None})
        if not self.statement_cache:
            arguments["statement_cache_size"] = 0
        # asyncpg takes the names of TLS files from a DSN alone.
        tls = [f"{name}={percent_encoded(options[name])}" for name in parameters.TLS_FILES if name in options]
        if tls and options.get("sslrootcert") != "system":
            arguments["dsn"] = f"postgresql://?{'&'.join(tls)}"
        return arguments

    def libpq_environment(self, inherited: Mapping[str, str]) -> dict[str, str]:
        """Variables by which a program on libpq (pg_dump, psql, a client) reaches the same database as we do.

        Nothing then has to stand in argv. `inherited` is our own environment: of it the program gets what our own
        connections take from there where the DSN does not say it (see `connect_arguments`), or it would be another
        user, or find no password. Hand them on in an environment that has no other PG* variable.
        """
        taken = {name: inherited[name] for name in parameters.TAKEN_FROM_ENVIRONMENT if inherited.get(name)}
        options = self.options
        found = {
            "PGHOST": ",".join(host for host, _ in self.hosts),
            "PGPORT": ",".join(str(port) for _, port in self.hosts),
            "PGUSER": self.user,
            "PGDATABASE": self.database,
            "PGPASSWORD": self.password,
        }
        found |= {name: options.get(keyword) for name, keyword in parameters.PG_VARIABLES.items() if keyword in options}
        if self.server_settings:
            escaped = {k: v.replace("\\", "\\\\").replace(" ", "\\ ") for k, v in self.server_settings.items()}
            given = self.server_settings.get("options", "")  # options as a whole, in libpq's own form
            found["PGOPTIONS"] = " ".join(
                [*(f"-c {name}={value}" for name, value in escaped.items() if name != "options"), given]
            ).strip()
        return taken | {name: value for name, value in found.items() if value is not None}

    def with_database(self, name: str) -> Dsn:
        """The same server and user, another database."""
        return self.changed(database=name)


def parse(text: str, *, variable: str = "DATABASE_URL", connect_timeout_s: float = CONNECT_TIMEOUT_S) -> Dsn:
    """Read a URL (`postgres://`, `postgresql://`, also with `+asyncpg` and the like) or `host=… dbname=…`.

    A host is required: an empty one would mean whatever server happens to be near. The database defaults to the user's
    name. A parameter of the query counts more than the same thing in the URL before it, as in libpq; `+` stands for
    itself there. A value that can be read in two ways is refused: a raw `#`, a second raw `@`, a `/` in the database.

    Raises:
        ConfigurationError: names `variable`, and never holds any part of the value but names of known parameters, and
            of unknown ones where these cannot be a piece of a password.
    """
    draft = _Draft(variable=variable, connect_timeout_s=connect_timeout_s)
    _refuse_wrapping(text, draft)
    if _is_list(text):
        names_are_safe = _read_keywords(text, draft)
    elif "://" in text:
        names_are_safe = _read_url(text, draft)
    else:
        draft.refuse("is not a URL: `://` is missing")
    return draft.finish(names_are_safe=names_are_safe)


def from_pg_variables(mapping: Mapping[str, str], *, connect_timeout_s: float = CONNECT_TIMEOUT_S) -> Dsn:
    """Read libpq's variables (PG_VARIABLES; the manual's 34.15), an empty one being as good as none.

    Raises:
        ConfigurationError: each problem names its own variable; PGHOST is required.
    """
    draft = _Draft(
        variable="PGHOST",
        connect_timeout_s=connect_timeout_s,
        names={keyword: name for name, keyword in parameters.PG_VARIABLES.items()},
    )
    for name, keyword in parameters.PG_VARIABLES.items():
        if mapping.get(name):
            draft.given.append((keyword, mapping[name]))
    return draft.finish(names_are_safe=True)


def percent_encoded(text: str) -> str:
    """`text` with all but RFC 3986's unreserved characters as %XX."""
    return "".join(
        c if c.isascii() and (c.isalnum() or c in "-._~") else "".join(f"%{b:02X}" for b in c.encode("utf-8"))
        for c in text
    )


class _Draft(msgspec.Struct):
    """What was read so far, and what is wrong with it. `names` maps keywords to PG* variables, empty for a URL."""

    variable: str
    names: Mapping[str, str] = msgspec.field(default_factory=lambda: _NOTHING)
    given: list[tuple[str, str]] = msgspec.field(default_factory=list)
    hosts: list[tuple[str, str]] = msgspec.field(default_factory=list)
    place: dict[str, str] = msgspec.field(default_factory=dict)
    options: dict[str, str] = msgspec.field(default_factory=dict)
    server_settings: dict[str, str] = msgspec.field(default_factory=dict)
    connect_timeout_s: float = CONNECT_TIMEOUT_S
    statement_cache: bool = True
    dropped: list[str] = msgspec.field(default_factory=list)
    problems: list[Problem] = msgspec.field(default_factory=list)

    def refuse(self, problem: str, *, expected: str = EXPECTED, example: str = EXAMPLE) -> NoReturn:
        """End here: what follows could not be told from a piece of the password."""
        self.problems.append(Problem(self.variable, problem, expected, example))
        raise ConfigurationError(self.problems)

    def add(self, keyword: str, problem: str, expected: str, example: str) -> None:
        """Note a problem with the known parameter `keyword`, and go on."""
        if name := self.names.get(keyword):
            self.problems.append(Problem(name, problem, expected, example))
        else:
            self.problems.append(
                Problem(
                    self.variable, f"parameter `{keyword}` {problem}", f"{keyword}={expected}", f"{keyword}={example}"
                )
            )

    def finish(self, *, names_are_safe: bool) -> Dsn:
        """Give every parameter its meaning."""
        may_be_named = names_are_safe
        for name, value in self.given:
            self._take(name, value, may_be_named=may_be_named)
            # An unescaped `&` in a password makes names of what follows.
            may_be_named = may_be_named and (name not in {"password", "sslpassword"} or bool(self.names))
        hosts = self._resolve_hosts()
        user, database = self.place.get("user") or None, self.place.get("dbname") or None
        if database is None and user is None:
            self._lacks("dbname", "names no database")
        if (
            self.options.get("sslnegotiation") == "direct"
            and self.options.get("sslmode") not in parameters.SSLMODES[3:]
        ):
            self.add(
                "sslnegotiation", "is direct without TLS being required", "direct with sslmode=require", "postgres"
            )
        if self.problems:
            raise ConfigurationError(self.problems)
        return Dsn(
            hosts=hosts,
            user=user,
            database=database or user,
            password=self.place.get("password") or None,
            options=MappingProxyType(self.options),
            connect_timeout_s=self.connect_timeout_s,
            server_settings=MappingProxyType(self.server_settings),
            statement_cache=self.statement_cache,
            dropped=tuple(self.dropped),
        )

    def _take(self, name: str, value: str, *, may_be_named: bool) -> None:
        keyword = name.lower()
        if keyword not in parameters.KNOWN:
            self._unknown(name, may_be_named=may_be_named)
        elif "\0" in value:
            self.add(keyword, "contains a NUL character", "text", "…")
        elif not value:
            pass  # as good as not given, in libpq too
        elif keyword in parameters.PLACE:
            self._take_place(parameters.PLACE[keyword], value)
        elif keyword in parameters.CHOICES:
            self._take_choice(keyword, value)
        elif keyword in parameters.FREE:
            self.options[keyword] = value
        elif keyword in parameters.SERVER_SETTINGS:
            self.server_settings[parameters.SERVER_SETTINGS[keyword]] = value
        elif keyword in parameters.DROPPED:
            self.dropped.append(keyword)
        else:
            self._take_foreign(keyword, value)

    def _take_place(self, keyword: str, value: str) -> None:
        if keyword == "host" and "host" in self.place:
            value = f"{self.place['host']},{value}"  # SQLAlchemy's way to write several hosts
        self.place[keyword] = value

    def _take_choice(self, keyword: str, value: str) -> None:
        choices = parameters.CHOICES[keyword]
        if keyword == "sslmode" and value == "no-verify":
            value = "require"  # node-postgres; asyncpg's `require` verifies nothing unless a root certificate is there
        if value in choices:
            self.options[keyword] = value
        else:
            self.add(keyword, "has an unknown value", "|".join(choices), choices[0])

    def _take_foreign(self, keyword: str, value: str) -> None:
        word = value.lower()
        if keyword in parameters.UNSUPPORTED:
            self.add(keyword, f"is not supported: {parameters.UNSUPPORTED[keyword]}", "… left out", "")
        elif keyword in parameters.DEMANDS:
            self._take_demand(keyword, word)
        elif keyword in parameters.SCHEMAS:
            # A name, where search_path is a list: quoted unless that changes nothing.
            plain = re.fullmatch(r"[a-z_][a-z0-9_]*", value)
            self.server_settings["search_path"] = value if plain else '"' + value.replace('"', '""') + '"'
        elif keyword in parameters.CACHES:
            self.statement_cache = self.statement_cache and word not in parameters.FALSE
        elif keyword == "pgbouncer":
            self.statement_cache = self.statement_cache and word not in parameters.TRUE
        elif keyword == "fallback_application_name":
            self.server_settings.setdefault("application_name", value)
        elif keyword == "ssl":
            self._take_ssl(word)
        else:
            self._take_timeout(value)

    def _take_demand(self, keyword: str, word: str) -> None:
        met = parameters.DEMANDS[keyword]
        if word in met:
            self.dropped.append(keyword)
        else:
            expected = "|".join(met) if met else "… left out"
            self.add(keyword, "asks for something that asyncpg cannot do", expected, met[0] if met else "")

    def _take_ssl(self, word: str) -> None:
        if word in parameters.SSL_WORDS:
            self.options.setdefault("sslmode", parameters.SSL_WORDS[word])
        else:
            self.add("ssl", "has an unknown value; better use `sslmode`", "true|false", "true")

    def _take_timeout(self, value: str) -> None:
        if not re.fullmatch(r"-?[0-9]{1,9}(\.[0-9]{1,9})?", value):
            self.add("connect_timeout", "is not a number of seconds", "seconds", "10")
        elif float(value) > 0:
            self.connect_timeout_s = float(value)

    def _unknown(self, name: str, *, may_be_named: bool) -> None:
        import difflib  # late: only for a start that ends here

        if may_be_named and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.]{0,39}", name):
            close = difflib.get_close_matches(name.lower(), sorted(parameters.KNOWN), n=1, cutoff=0.75)
            meant = f"; is `{close[0]}` meant?" if close else ""
            what = f"has an unknown parameter `{name}`{meant}"
        else:
            what = (
                "has an unknown parameter (not shown, since it could be a piece of a password, in which `&` must be"
                " written %26, and in a list of keyword=value a space needs quotes)"
            )
        self.problems.append(
            Problem(
                self.variable,
                what,
                "parameters of libpq; a setting of the server goes into options=-c%20name%3Dvalue",
                f"{EXAMPLE}?sslmode=require",
            )
        )

    def _lacks(self, keyword: str, problem: str) -> None:
        if name := self.names.get(keyword):
            self.problems.append(Problem(name, "is not set", "text", "db" if keyword == "host" else "app"))
        else:
            self.problems.append(
                Problem(self.variable, problem, f"{EXPECTED}, or ?host=/run/postgresql for a Unix socket", EXAMPLE)
            )

    def _resolve_hosts(self) -> tuple[tuple[str, int], ...]:
        """Hosts and ports in pairs; a parameter `host` or `port` counts more than what the URL's own place says."""
        pairs = self.hosts
        if "host" in self.place:
            pairs = [_split_host(entry) for entry in self.place["host"].split(",")]
        if not pairs:
            self._lacks("host", "names no host")
            return ()
        if "port" in self.place:
            ports = self.place["port"].split(",")
            if len(ports) not in {1, len(pairs)}:
                self.add(
                    "port", f"names {len(ports)} ports for {len(pairs)} hosts", "one port, or one for each host", "5432"
                )
                return ()
            if len(ports) == 1:
                ports *= len(pairs)
            pairs = [(host, port) for (host, _), port in zip(pairs, ports, strict=True)]
        resolved = []
        for host, port in pairs:
            if not _is_host(host):
                self._bad_place(
                    "host",
                    "has a host that is empty or contains a character that no host can have",
                    "a name, an address, or /directory",
                    "db",
                )
            elif not (port == "" or (re.fullmatch(r"[0-9]{1,5}", port) and 0 < int(port) <= _PORT_MAX)):
                self._bad_place("port", "has a port that is not a number from 1 to 65535", "1 to 65535", "5432")
            else:
                resolved.append((host, int(port or DEFAULT_PORT)))
        return tuple(resolved)

    def _bad_place(self, keyword: str, problem: str, expected: str, example: str) -> None:
        if name := self.names.get(keyword):
            self.problems.append(Problem(name, problem, expected, example))
            return
        problem += " (not shown: after a password that was not percent-encoded it could be a piece of it)"
        if problem not in {p.problem for p in self.problems}:
            self.problems.append(Problem(self.variable, problem, EXPECTED, EXAMPLE))


def _is_list(text: str) -> bool:
    """Whether it is a list of keywords, in whose password `://` may stand, and no URL."""
    first = re.match(r"([a-z_]+)\s*=", text)
    return first is not None and ("://" not in text or first[1] in parameters.KNOWN)


def _refuse_wrapping(text: str, draft: _Draft) -> None:
    """The mistakes of .env files: what surrounds the value is part of it."""
    if not text.strip():
        draft.refuse("is empty")
    if re.search(r"[\ud800-\udfff]", text):  # how the environment's bytes that are no UTF-8 arrive
        draft.refuse("is not UTF-8 text")
    if text.startswith(f"{draft.variable}="):
        draft.refuse("begins with the variable's own name: the part before and including the `=` is there twice")
    quotes = "'\"`\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}"
    if text[0] in quotes or ("://" in text and text[-1] in quotes and not _is_list(text)):
        draft.refuse(
            "has quotes around it, which are part of the value here (env files and Compose lists keep them);"
            " remove them"
        )
    if text != text.strip():
        draft.refuse("has a space or a line break before or after it: remove it")


_FOREIGN_SCHEMES: Mapping[str, str] = {
    "jdbc:postgresql": "a JDBC URL: leave out `jdbc:`, and write user and password before the host",
    "prisma": "a URL of Prisma's proxy: give the URL of the database itself",
    "prisma+postgres": "a URL of Prisma's proxy: give the URL of the database itself",
    "mysql": "a URL of MySQL",
    "mariadb": "a URL of MariaDB",
    "mongodb": "a URL of MongoDB",
    "redis": "a URL of Redis",
    "http": "a web address",
    "https": "a web address",
}


def _read_url(text: str, draft: _Draft) -> bool:
    """Fill the draft; says whether names of parameters may be shown. Refuses whatever can be read in two ways."""
    scheme, _, rest = text.partition("://")
    if not re.fullmatch(r"postgres(ql)?(\+[a-z0-9_]{1,20})?", scheme, re.IGNORECASE):
        what = _FOREIGN_SCHEMES.get(scheme.lower(), "not a URL that begins with postgresql:// or postgres://")
        draft.refuse(f"is {what}")
    if re.search(r"[\s\x00-\x1f\x7f]", rest):
        draft.refuse("contains a space, a line break or a control character; in a password write a space as %20")
    _refuse_ambiguity(rest, draft)
    userinfo, at, place = rest.rpartition("@")
    if at:
        user, _, password = userinfo.partition(":")
        draft.place["user"] = _decoded(user, "user", draft)
        draft.place["password"] = _decoded(password, "password", draft)
    authority = re.split(r"[/?]", place, maxsplit=1)[0]
    path, _, query = place[len(authority) :].partition("?")
    if "/" in path[1:]:
        draft.refuse("has a `/` in the name of the database, or at its end: write it as %2F, or leave it out")
    draft.place["dbname"] = _decoded(path[1:], "database", draft)
    if authority:
        for entry in authority.split(","):
            host, port = _split_host(entry)
            draft.hosts.append((_decoded(host, "host", draft), port))
    # An empty piece (`?`, `&&`) says nothing.
    for pair in filter(None, query.split("&")):
        name, equals, value = pair.partition("=")
        if not equals:
            draft.refuse("has a parameter without `=`; in a value write `&` as %26")
        draft.given.append((_decoded(name, "parameters", draft), _decoded(value, "parameters", draft)))
    return True


def _refuse_ambiguity(rest: str, draft: _Draft) -> None:
    """Every character that could make a piece of the password look like something else."""
    if rest.count("@") > 1:
        draft.refuse("contains more than one `@`: in a password (or any other part) write `@` as %40")
    userinfo, at, place = rest.rpartition("@")
    if at and (found := [c for c in "/?#" if c in userinfo]):
        characters = " and ".join(f"`{c}` as {percent_encoded(c)}" for c in found)
        draft.refuse(f"contains a special character before the `@`: in a user or password write {characters}")
    if "#" in place:
        draft.refuse("contains a `#`: write it as %23")


def _decoded(text: str, part: str, draft: _Draft) -> str:
    """`text` with its percent escapes resolved, or a refusal that names the part of the URL."""
    if "%" not in text:
        return text
    pieces = re.split(r"%([0-9A-Fa-f]{2})", text)
    if any("%" in piece for piece in pieces[::2]):
        draft.refuse(f"has a `%` in its {part} that two hexadecimal digits do not follow: write `%` itself as %25")
    raw = b"".join(bytes.fromhex(p) if i % 2 else p.encode("utf-8", "surrogateescape") for i, p in enumerate(pieces))
    decoded = raw.decode("utf-8", "replace")
    if "\N{REPLACEMENT CHARACTER}" in decoded or "\0" in decoded:
        draft.refuse(f"has percent escapes in its {part} that are not UTF-8 text")
    return decoded


def _split_host(entry: str) -> tuple[str, str]:
    """Host and port, still as text; an address of IPv6 in brackets, or bare where it has no port."""
    if entry.startswith("/"):
        return entry, ""
    if match := re.fullmatch(r"\[([^\[\]]*)\](?::(.*))?", entry):
        return match[1], match[2] or ""
    if entry.count(":") > 1:
        return entry, ""
    host, _, port = entry.partition(":")
    return host, port


def _is_host(host: str) -> bool:
    if host.startswith("/"):
        return True
    if ":" in host:
        return re.fullmatch(r"[0-9A-Fa-f:.]+(%[\w.\-]+)?", host) is not None
    # Empty and overlong labels make getaddrinfo raise a UnicodeError instead of saying that the name is unknown.
    labels = host.removesuffix(".").split(".")
    if not all(re.fullmatch(r"[\w\-]{1,63}", label) for label in labels) or len(host) > _HOST_LENGTH_MAX:
        return False
    try:
        return host.isascii() or bool(host.encode("idna"))
    except UnicodeError:
        return False


def _read_keywords(text: str, draft: _Draft) -> bool:
    """Read `host=db dbname='my app'`, as libpq does: quotes around a value, a backslash before what is special."""
    pair = re.compile(r"\s*([A-Za-z_]+)\s*=\s*(?:'((?:[^'\\]|\\.)*)'|((?:[^\s'\\]|\\.)*))(?=\s|$)", re.DOTALL)
    at = 0
    while at < len(text):
        match = pair.match(text, at)
        if match is None:
            draft.refuse(
                "is not a list of keyword=value; a value with a space or a quote goes in single quotes,"
                " with a backslash before a quote"
            )
        value = match[2] if match[2] is not None else match[3]
        draft.given.append((match[1], re.sub(r"\\(.)", r"\1", value, flags=re.DOTALL)))
        at = match.end()
    # Here a space ends a value: what follows an unquoted password would be taken for a name.
    return False
