"""Connection strings: what they mean, what asyncpg makes of them, and that no piece of a password ever shows."""

import inspect
import os
import re
import string
import traceback
from pathlib import Path
from urllib.parse import quote

import pytest
from asyncpg import connect_utils
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from orchestrator import dsn as dsns
from orchestrator import errors
from orchestrator.dsn import Dsn, from_pg_variables, parse
from orchestrator.errors import ConfigurationError


def problem(text, **kwargs):
    with pytest.raises(ConfigurationError) as caught:
        parse(text, **kwargs)
    return "; ".join(f"{p.variable} {p.problem}" for p in caught.value.problems)


def as_asyncpg_reads(dsn, monkeypatch, **environment):
    """Addresses and parameters, by asyncpg's own code and in this environment."""
    for name in [name for name in os.environ if name.startswith("PG")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    defaults = dict.fromkeys(
        ("dsn", "host", "port", "user", "password", "passfile", "database", "command_timeout", "ssl", "direct_tls")
    ) | dict.fromkeys(("server_settings", "target_session_attrs", "krbsrvname", "gsslib", "service", "servicefile"))
    defaults |= {
        "statement_cache_size": 100,
        "max_cached_statement_lifetime": 300,
        "max_cacheable_statement_size": 15360,
    }
    return connect_utils._parse_connect_arguments(**defaults | dsn.connect_arguments())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgres://u:p@h/d", Dsn((("h", 5432),), "u", "d", "p")),
        ("postgresql://u:p@h:6000/d", Dsn((("h", 6000),), "u", "d", "p")),
        ("PostgreSQL://u@h/d", Dsn((("h", 5432),), "u", "d")),
        ("postgresql+asyncpg://u@h/d", Dsn((("h", 5432),), "u", "d")),
        ("postgresql+psycopg2://u@h/d", Dsn((("h", 5432),), "u", "d")),
        ("postgres://u@h", Dsn((("h", 5432),), "u", "u")),
        ("postgres://u@h/", Dsn((("h", 5432),), "u", "u")),
        ("postgres://u:@h/d", Dsn((("h", 5432),), "u", "d")),
        ("postgres://h/d", Dsn((("h", 5432),), None, "d")),
        ("postgres://h:/d", Dsn((("h", 5432),), None, "d")),
        ("postgres://u:p:q@h/d", Dsn((("h", 5432),), "u", "d", "p:q")),
        ("postgres://u:p[q]@h/d", Dsn((("h", 5432),), "u", "d", "p[q]")),
        ("postgres://u:p+q@h/d", Dsn((("h", 5432),), "u", "d", "p+q")),
        ("postgres://%C3%BC:%40%2F%23%3F%25@h/my%2Fdb", Dsn((("h", 5432),), "ü", "my/db", "@/#?%")),
        ("postgres://u@a,b:1,[::1]:2/d", Dsn((("a", 5432), ("b", 1), ("::1", 2)), "u", "d")),
        ("postgres://u@[fe80::1%25eth0]/d", Dsn((("fe80::1%eth0", 5432),), "u", "d")),
        ("postgres:///d?host=/run/postgresql", Dsn((("/run/postgresql", 5432),), None, "d")),
        ("postgres://u@/d?host=/run/postgresql&port=5433", Dsn((("/run/postgresql", 5433),), "u", "d")),
        ("postgres://u@%2Frun%2Fpostgresql/d", Dsn((("/run/postgresql", 5432),), "u", "d")),
        ("postgres://u@localhost/d?host=/cloudsql/p:r:i", Dsn((("/cloudsql/p:r:i", 5432),), "u", "d")),
        ("postgres://u@/d?host=a:1&host=b:2", Dsn((("a", 1), ("b", 2)), "u", "d")),
        ("postgres://u@a,b/d?port=1,2", Dsn((("a", 1), ("b", 2)), "u", "d")),
        ("postgres://h/?user=u&password=p%26q&dbname=d", Dsn((("h", 5432),), "u", "d", "p&q")),
        ("host=h user=u dbname='my db' password='it\\'s'", Dsn((("h", 5432),), "u", "my db", "it's")),
        ("host=h user=u dbname=d password='p://q'", Dsn((("h", 5432),), "u", "d", "p://q")),
        ("host = h  port = 6000 dbname = d", Dsn((("h", 6000),), None, "d")),
        ("host=a,b port=1,2 dbname=d", Dsn((("a", 1), ("b", 2)), None, "d")),
        ("host=::1 dbname=d", Dsn((("::1", 5432),), None, "d")),
    ],
)
def test_a_connection_string_means_what_libpq_says(text, expected):
    assert parse(text) == expected


@pytest.mark.parametrize(
    ("query", "options", "server_settings", "rest"),
    [
        ("sslmode=verify-full&sslrootcert=/ca", {"sslmode": "verify-full", "sslrootcert": "/ca"}, {}, {}),
        ("target_session_attrs=read-write", {"target_session_attrs": "read-write"}, {}, {}),
        ("ssl=true", {"sslmode": "require"}, {}, {}),
        ("ssl=true&sslmode=disable", {"sslmode": "disable"}, {}, {}),
        ("sslmode=no-verify", {"sslmode": "require"}, {}, {}),
        ("application_name=a+b&options=-c%20jit=off", {}, {"application_name": "a+b", "options": "-c jit=off"}, {}),
        ("application_name=a&fallback_application_name=b", {}, {"application_name": "a"}, {}),
        ("schema=public", {}, {"search_path": "public"}, {}),
        ('schema=My"s', {}, {"search_path": '"My""s"'}, {}),
        ("currentSchema=x&timezone=UTC", {}, {"search_path": "x", "TimeZone": "UTC"}, {}),
        ("connect_timeout=10", {}, {}, {"connect_timeout_s": 10.0}),
        ("connect_timeout=0", {}, {}, {}),
        ("pgbouncer=true", {}, {}, {"statement_cache": False}),
        ("pgbouncer=false", {}, {}, {}),
        ("prepare=false", {}, {}, {"statement_cache": False}),
        ("prepared_statement_cache_size=0", {}, {}, {"statement_cache": False}),
        ("connection_limit=5&pool_timeout=3", {}, {}, {"dropped": ("connection_limit", "pool_timeout")}),
        ("channel_binding=prefer&gssencmode=disable", {"channel_binding": "prefer"}, {}, {"dropped": ("gssencmode",)}),
        (
            "channel_binding=require&load_balance_hosts=random",
            {"channel_binding": "require", "load_balance_hosts": "random"},
            {},
            {},
        ),
        ("sslmode=&schema=", {}, {}, {}),
        ("&", {}, {}, {}),
    ],
)
def test_parameters_of_every_client_become_what_asyncpg_understands(query, options, server_settings, rest):
    expected = Dsn((("h", 5432),), None, "d", options=options, server_settings=server_settings, **rest)
    assert parse(f"postgres://h/d?{query}") == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ("'postgres://u:p@h/d'", "quotes around it"),
        ('postgres://u:p@h/d"', "quotes around it"),
        ("postgres://u:p@h/d\n", "line break before or after"),
        (" postgres://u:p@h/d", "line break before or after"),
        ("DATABASE_URL=postgres://u:p@h/d", "begins with the variable's own name"),
        ("postgres://u:p q@h/d", "write a space as %20"),
        ("postgres://u:p\x01q@h/d", "control character"),
        ("postgres://u:p\udcffq@h/d", "is not UTF-8 text"),
        ("u:p@h/d", "`://` is missing"),
        ("mysql://u:p@h/d", "a URL of MySQL"),
        ("jdbc:postgresql://h/d", "leave out `jdbc:`"),
        ("//u:p@h/d", "`://` is missing"),
        ("hunter2://h/d", "not a URL that begins with postgresql://"),
        ("postgres://u:p#q@h/d", "write `#` as %23"),
        ("postgres://u:p/q@h/d", "write `/` as %2F"),
        ("postgres://u:p?q@h/d", "write `?` as %3F"),
        ("postgres://u:/#@h/d", "write `/` as %2F and `#` as %23"),
        ("postgres://u:p@q@h/d", "write `@` as %40"),
        ("postgres://u:12?c=d@h/d", "write `?` as %3F"),
        ("postgres://u:12/c@h/d", "write `/` as %2F"),
        ("postgres://u:p%q@h/d", "write `%` itself as %25"),
        ("postgres://u:p%@h/d", "write `%` itself as %25"),
        ("postgres://u:%FF@h/d", "not UTF-8 text"),
        ("postgres://u:%00@h/d", "not UTF-8 text"),
        ("postgres://u:p@h/d#f", "contains a `#`"),
        ("postgres://u:p@h/d/e", "`/` in the name of the database"),
        ("postgres://u:p@h:port/d", "not a number from 1 to 65535"),
        ("postgres://u:p@h:0/d", "not a number from 1 to 65535"),
        ("postgres://u:p@h:65536/d", "not a number from 1 to 65535"),
        ("postgres://u:p@h:٣/d", "not a number from 1 to 65535"),
        ("postgres://u:p@a,b/d?port=1,2,3", "3 ports for 2 hosts"),
        ("postgres://u:p@a,,b/d", "a host that is empty"),
        ("postgres://u:p@a..b/d", "a host that is empty"),
        ("postgres://u:p@${HOST}/d", "a character that no host can have"),
        ("postgres://u:p@[::1/d", "a character that no host can have"),
        (f"postgres://u:p@{'a' * 64}/d", "a character that no host can have"),
        ("postgres://", "names no host; DATABASE_URL names no database"),
        ("postgres:///d", "names no host"),
        ("postgres://h", "names no database"),
        ("postgres://u:p@h/d?sslmode", "without `=`"),
        ("postgres://u:p@h/d?sslmode=on", "parameter `sslmode` has an unknown value"),
        ("postgres://u:p@h/d?ssl=maybe", "parameter `ssl` has an unknown value"),
        ("postgres://u:p@h/d?sslnegotiation=direct", "direct without TLS being required"),
        ("postgres://u:p@h/d?target_session_attrs=master", "parameter `target_session_attrs`"),
        ("postgres://u:p@h/d?connect_timeout=soon", "parameter `connect_timeout` is not a number of seconds"),
        ("postgres://u:p@h/d?channel_binding=always", "parameter `channel_binding` has an unknown value"),
        ("postgres://u:p@h/d?sslaccept=strict", "asks for something that asyncpg cannot do"),
        ("postgres://u:p@h/d?service=x", "is not supported: a connection service file"),
        ("postgres://u:p@h/d?sslmod=require", "unknown parameter `sslmod`; is `sslmode` meant?"),
        ("postgres://u:p@h/d?zzz=1", "unknown parameter `zzz`"),
        ("postgres://h/d?password=ab&cd=ef", "unknown parameter (not shown"),
        ("host=h dbname=d password=ab cd=ef", "unknown parameter (not shown"),
        ("host=h dbname=d password=ab cd", "not a list of keyword=value"),
        ("host=h dbname='d", "not a list of keyword=value"),
    ],
)
def test_a_connection_string_that_cannot_be_used_is_refused_with_the_reason(text, words):
    assert words in problem(text)


def test_every_problem_with_the_parameters_is_reported_at_once_under_the_variables_name():
    text = problem("postgres://u@h/d?sslmode=on&gssencmode=require&nonsense=1", variable="MIGRATION_DATABASE_URL")
    assert text == (
        "MIGRATION_DATABASE_URL parameter `sslmode` has an unknown value; "
        "MIGRATION_DATABASE_URL parameter `gssencmode` asks for something that asyncpg cannot do; "
        "MIGRATION_DATABASE_URL has an unknown parameter `nonsense`"
    )


def test_pg_variables_mean_what_libpq_says():
    variables = {
        "PGHOST": "a,b",
        "PGPORT": "1",
        "PGUSER": "u",
        "PGPASSWORD": "p@/#",
        "PGSSLMODE": "require",
        "PGAPPNAME": "",
    }
    assert from_pg_variables(variables) == Dsn((("a", 1), ("b", 1)), "u", "u", "p@/#", options={"sslmode": "require"})


def test_problems_with_pg_variables_name_the_variable():
    with pytest.raises(ConfigurationError) as caught:
        from_pg_variables({"PGHOST": "h x", "PGPORT": "1", "PGSSLMODE": "on", "PGCONNECT_TIMEOUT": "soon"})
    assert [p.variable for p in caught.value.problems] == ["PGSSLMODE", "PGCONNECT_TIMEOUT", "PGHOST", "PGDATABASE"]


STRAY = {
    "PGHOST": "stray",
    "PGPORT": "1111",
    "PGUSER": "stray",
    "PGDATABASE": "stray",
    "PGSSLMODE": "nonsense",
    "PGTARGETSESSIONATTRS": "nonsense",
    "PGSSLNEGOTIATION": "nonsense",
    "PGGSSLIB": "nonsense",
    "PGSERVICE": "nonsense",
}


@pytest.mark.parametrize(
    "text",
    [
        "postgres://u:p@h:6000/d",
        "postgres://u:p%40%2F@a:1,[::1]:2/d?target_session_attrs=primary&sslmode=disable",
        "postgres://u:p@/d?host=/run/postgresql&application_name=x",
        "postgres://u:p@h/d?sslmode=require&ssl_min_protocol_version=TLSv1.3&sslnegotiation=direct",
        "postgres://u:p@h/d?sslrootcert=system&sslmode=verify-full",
    ],
)
def test_stray_pg_variables_never_mix_with_a_url(text, monkeypatch):
    dsn = parse(text)
    alone, stray = as_asyncpg_reads(dsn, monkeypatch), as_asyncpg_reads(dsn, monkeypatch, **STRAY)
    seen = [
        (
            addresses,
            p.user,
            p.password,
            p.database,
            bool(p.ssl),
            p.sslmode,
            p.ssl_negotiation,
            p.server_settings,
            p.target_session_attrs,
            p.krbsrvname,
            p.gsslib,
        )
        for addresses, p, _ in (alone, stray)
    ]
    assert seen[0] == seen[1]
    assert [a if isinstance(a, tuple) else a.removesuffix("/.s.PGSQL.5432") for a in alone[0]] == [
        host if host.startswith("/") else (host, port) for host, port in dsn.hosts
    ]
    assert (alone[1].user, alone[1].password, alone[1].database) == (dsn.user, dsn.password, dsn.database)
    assert alone[1].server_settings == dsn.server_settings
    assert alone[1].target_session_attrs == dsn.options.get("target_session_attrs", "any")


def test_a_url_without_a_password_takes_pgpassword_as_libpq_does(monkeypatch):
    assert (
        as_asyncpg_reads(parse("postgres://u@h/d"), monkeypatch, PGPASSWORD="from outside")[1].password
        == "from outside"
    )


def test_tls_files_reach_asyncpg_by_name(monkeypatch, tmp_path):
    missing = tmp_path / "with space & more.crt"
    dsn = parse(f"postgres://u:p@h/d?sslmode=verify-full&sslrootcert={quote(str(missing))}")
    with pytest.raises(FileNotFoundError):
        as_asyncpg_reads(dsn, monkeypatch)
    assert quote(str(missing), safe="") in dsn.connect_arguments()["dsn"]


def test_a_pooler_turns_the_statement_cache_off(monkeypatch):
    assert as_asyncpg_reads(parse("postgres://u@h/d?pgbouncer=true"), monkeypatch)[2].statement_cache_size == 0


def test_another_database_on_the_same_server_keeps_everything_else():
    dsn = parse("postgres://u:p@h/d?sslmode=disable")
    assert dsn.with_database("e") == parse("postgres://u:p@h/e?sslmode=disable")


def test_what_is_shown_of_a_dsn_is_where_it_leads():
    dsn = parse("postgres://u:hunter22@a:1,[::1]:2/d?sslpassword=hunter33&application_name=x")
    assert dsn.redacted() == "u@a:1,[::1]:2/d"
    assert str(dsn) == repr(dsn) == f"{dsn}" == "Dsn(u@a:1,[::1]:2/d)"
    assert dsn.secrets == ("hunter22", "hunter33")
    assert parse("postgres://postgres:postgres@h/d").secrets == ()


# ---------------------------------------------------------------------------------------- hostile values, by property

NASTY = "#/?@%[]:&=+ \\'\"`$;,\n\t\r\0é\udcff\N{ZERO WIDTH SPACE}{}"
CHARACTERS = string.ascii_letters + string.digits + string.punctuation + NASTY * 3
PASSWORDS = st.text(st.sampled_from(CHARACTERS), min_size=4, max_size=24)


def everything_shown(text):
    """All that a person or a log can see of a value: the Dsn's faces, or the error's, tracebacks included."""
    try:
        dsn = parse(text)
    except ConfigurationError as error:
        shown = [str(error), repr(error), error.remedy, repr(error.facts), repr(error.problems)]
        chain = error
        while chain is not None:
            assert isinstance(chain, ConfigurationError)
            shown += traceback.format_exception(chain)
            chain = chain.__cause__ or chain.__context__
        return None, "\n".join(shown)
    return dsn, "\n".join([str(dsn), repr(dsn), dsn.redacted(), f"{dsn!s:>3}", repr(dsn.dropped), repr([dsn])])


# What is shown whatever the password is: one that occurs here would be found without being leaked. Not this whole file,
# else the examples below would count as such.
_FIXED = "\n".join(
    [
        *(Path(file).read_text(encoding="utf-8") for file in (dsns.__file__, errors.__file__)),
        inspect.getsource(everything_shown),
        f"{__file__} Dsn(app@db.internal:6543/shop) Traceback (most recent call last): File in line",
    ]
)


def assume_findable(password):
    assume(password not in _FIXED)


TEMPLATES = [
    "postgres://app:{}@db.internal:6543/shop",
    "postgresql+asyncpg://app:{}@db.internal/shop?sslmode=require&schema=public",
    "'postgres://app:{}@db.internal/shop'",
    "postgres://app:{}@db.internal:65430000/shop",
    "postgres://app:{}@db.internal/shop?nonsense=1",
    "postgres://db.internal/shop?user=app&password={}",
    "postgres://db.internal/shop?password={}&user=app",
    "host=db.internal dbname=shop user=app password={}",
    "host=db.internal password={} dbname=shop",
    "host=db.internal password='{}' dbname=shop user=app",
    "mysql://app:{}@db.internal/shop",
    "app:{}@db.internal/shop",
    "{}",
    " {}\n",
    "{}://app@db.internal/shop",
    "postgres://app:{}@",
    "DATABASE_URL=postgres://app:{}@db.internal/shop",
]


@settings(max_examples=400, deadline=None)
@given(template=st.sampled_from(TEMPLATES), password=PASSWORDS)
@example(template=TEMPLATES[0], password="12?host=x")
@example(template=TEMPLATES[0], password="12/zqxj")
@example(template=TEMPLATES[0], password="zqxj@zqxk")
@example(template=TEMPLATES[0], password="[zqxj")
@example(template=TEMPLATES[0], password="zqxj%zq")
@example(template=TEMPLATES[5], password="zqxj&zqxk=1")
@example(template=TEMPLATES[7], password="zqxj zqxk=1")
@example(template="{}", password="zqxj=zqxk")
def test_a_password_that_is_spliced_in_raw_never_shows(template, password):
    assume_findable(password)
    dsn, shown = everything_shown(template.format(password))
    assert password not in shown
    # Nor a piece of it that a wrong reading would have split off.
    for piece in filter(lambda piece: len(piece) >= 4, re.split(r"[#/?@%\[\]:&=+\s,'\"]", password)):
        if dsn is None and piece not in _FIXED:
            assert piece not in shown


@settings(max_examples=200, deadline=None)
@given(password=PASSWORDS.filter(lambda text: "\0" not in text and text.isprintable()))
def test_an_encoded_password_comes_back_and_never_shows(password):
    assume_findable(password)
    encoded = quote(password, safe="")
    for text in (
        f"postgres://app:{encoded}@db.internal:6543/shop",
        f"postgres://db.internal:6543/shop?password={encoded}&user=app",
        "host=db.internal port=6543 dbname=shop user=app password='{}'".format(
            password.replace("\\", "\\\\").replace("'", "\\'")
        ),
    ):
        dsn, shown = everything_shown(text)
        assert dsn == Dsn((("db.internal", 6543),), "app", "shop", password)
        assert password not in shown


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60) | st.text("postgres:/@?#&=%[],h1 '\\", max_size=40).map("postgres://".__add__))
def test_garbage_is_read_or_refused_and_nothing_else_happens(text):
    dsn, _ = everything_shown(text)
    if dsn is not None:
        assert dsn.hosts
        assert dsn.database or dsn.user
        dsn.connect_arguments()


def test_the_time_for_a_connection_is_bound_when_it_is_read_and_the_text_counts_more():
    assert parse("postgres://u@h/d").connect_timeout_s == 5.0
    assert parse("postgres://u@h/d", connect_timeout_s=2.5).connect_timeout_s == 2.5
    assert parse("postgres://u@h/d?connect_timeout=9", connect_timeout_s=2.5).connect_timeout_s == 9.0
    assert parse("postgres://u@h/d?connect_timeout=0", connect_timeout_s=2.5).connect_timeout_s == 2.5
    assert from_pg_variables({"PGHOST": "h", "PGUSER": "u"}, connect_timeout_s=2.5).connect_timeout_s == 2.5
