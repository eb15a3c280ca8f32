"""Settings: one table drives the reading; every problem is told at once, and never a value."""

import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from orchestrator import settings as module
from orchestrator.dsn import parse
from orchestrator.dsn_parameters import PG_VARIABLES
from orchestrator.errors import EXIT_CONFIG, ConfigurationError, Problem
from orchestrator.settings import Settings, load
from orchestrator.variables import VARIABLES, markdown_table

URL = "postgres://app:hunter22@db/app"


def problems(environ, overrides=None, **kwargs):
    with pytest.raises(ConfigurationError) as caught:
        load(environ, overrides or {}, **kwargs)
    assert caught.value.exit_code == EXIT_CONFIG
    return {p.variable: p.problem for p in caught.value.problems}


def test_with_nothing_but_a_database_everything_has_the_default_that_the_table_names():
    settings = load({"DATABASE_URL": URL, "HOME": "/home/me"})
    expected = {v.field: v.parse(v.default) for v in VARIABLES if v.parse and v.default and v.field != "data_dir"}
    assert {name: getattr(settings, name) for name in expected} == expected
    assert settings.database == settings.migration_database == parse(URL)
    assert (settings.migrations_dir, settings.extensions, settings.suspects) == (None, (), ())
    assert settings.data_dir == Path("/home/me/.local/share/orchestrator")


def test_the_table_of_variables_covers_every_setting_and_every_pg_variable():
    assert {v.field for v in VARIABLES if v.field} == set(Settings.__struct_fields__) - {
        "files",
        "secrets",
        "sources",
        "suspects",
    }
    assert {v.name for v in VARIABLES if not v.field} == set(PG_VARIABLES)
    assert len({v.name for v in VARIABLES}) == len(VARIABLES)


@pytest.mark.parametrize("variable", [v for v in VARIABLES if v.parse], ids=lambda v: v.name)
def test_every_example_in_the_table_can_be_used(variable, tmp_path):
    example = str(tmp_path) if variable.name == "MIGRATIONS_DIR" else variable.example
    settings = load({"DATABASE_URL": URL, variable.name: f" {example} "})
    assert getattr(settings, variable.field) == variable.parse(example)
    assert settings.sources[variable.name] == "environment"


def test_the_examples_of_databases_can_be_used():
    for variable in VARIABLES[:2]:
        assert parse(variable.example)
    pg = {v.name: v.example for v in VARIABLES if v.name in PG_VARIABLES}
    assert load(pg | {"PGSSLMODE": "require"}).database.redacted() == "app@db:5432/app"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("15", 15), ("15s", 15), ("500ms", 0.5), ("2m", 120), ("1h", 3600), ("1.5", 1.5), ("0", 0), ("2 m", 120)],
)
def test_a_duration_is_read_in_its_unit(text, seconds):
    assert load({"DATABASE_URL": URL, "DB_WAIT_TIMEOUT": text}).db_wait_timeout_s == seconds


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("DB_WAIT_TIMEOUT", "soon", "is not a duration"),
        ("DB_WAIT_TIMEOUT", "-1", "is not a duration"),
        ("DB_WAIT_TIMEOUT", "inf", "is not a duration"),
        ("DB_WAIT_TIMEOUT", "1w", "is not a duration"),
        ("MIGRATION_STATEMENT_TIMEOUT", "999999h", "is longer than 24 days"),
        ("DB_CONNECT_TIMEOUT", "0", "is zero"),
        ("PORT", "65536", "is not a port"),
        ("PORT", "-1", "is not a port"),
        ("PORT", "٣", "is not a port"),
        ("HOST", "a b", "is neither a name nor an address"),
        ("MIGRATIONS_DIR", "/nonexistent/zqxj", "does not exist"),
        ("MIGRATIONS_DIR", __file__, "is not a directory"),
        ("MIGRATIONS_DIR", f"{__file__}/x", "cannot be read (NotADirectoryError)"),
        ("MIGRATIONS_SCHEMA", "pg_x", "begins with pg_, which Postgres keeps for itself"),
        ("MIGRATIONS_SCHEMA", "orchestrator", "is the schema of this program's own tables"),
        ("MIGRATIONS_TABLE", "é" * 32, "is longer than 63 bytes, which Postgres would cut off"),
        ("EXTENSIONS", "vector,UUID-ossp", "contains a name that no extension can have"),
        ("EXTENSIONS", 'vector";drop', "contains a name that no extension can have"),
        ("MIGRATION_POLICY", "lenient", "is not one of these"),
        ("MIGRATION_AHEAD", "ignore", "is not one of these"),
        ("MIGRATION_TRANSACTION", "none", "is not one of these"),
        ("LOG_LEVEL", "loud", "is not one of these"),
        ("LOG_FORMAT", "xml", "is not one of these"),
        ("SHUTDOWN_TIMEOUT", "", None),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_by_name_and_an_empty_one_is_none(name, text, problem):
    if problem is None:
        assert load({"DATABASE_URL": URL, name: text}).sources[name] == "default"
        return
    assert problems({"DATABASE_URL": URL, name: text}) == {name: problem}


def test_every_problem_is_reported_at_once_and_no_value_is_in_it():
    environ = {
        "DATABASE_URL": "postgres://app:hunter22#zqxk@db/app",
        "MIGRATION_DATABASE_URL": "postgres://app:hunter22@db/app?sslmode=zqxj",
        "PORT": "zqxj",
        "EXTENSIONS": "Zqxj",
        "LOG_LEVEL": "zqxj",
    }
    with pytest.raises(ConfigurationError) as caught:
        load(environ)
    assert [p.variable for p in caught.value.problems] == [
        "PORT",
        "EXTENSIONS",
        "LOG_LEVEL",
        "DATABASE_URL",
        "MIGRATION_DATABASE_URL",
    ]
    assert not re.search("zqxj|zqxk|hunter22", str(caught.value) + repr(caught.value.facts), re.IGNORECASE)
    assert all(p.expected and p.example for p in caught.value.problems)


def test_extensions_are_names_in_order_each_once():
    assert load({"DATABASE_URL": URL, "EXTENSIONS": "vector, uuid-ossp,,vector\n"}).extensions == (
        "vector",
        "uuid-ossp",
    )


def test_words_are_read_in_any_case():
    settings = load({"DATABASE_URL": URL, "LOG_LEVEL": "WARN", "MIGRATION_POLICY": "Strict"})
    assert (settings.log_level, settings.migration_policy) == ("warning", "strict")


def test_the_command_line_wins_and_is_named_as_the_source():
    settings = load({"DATABASE_URL": URL, "PORT": "1"}, {"PORT": "2", "DATA_DIR": "d"})
    assert (settings.port, settings.sources["PORT"]) == (2, "--port")
    assert (settings.data_dir, settings.sources["DATA_DIR"]) == (Path.cwd() / "d", "--data-dir")
    assert problems({"DATABASE_URL": URL}, {"PORT": ""}) == {"PORT": "is not a port"}


# ------------------------------------------------------------------------------------------------------- the database


def test_a_database_that_is_not_named_is_asked_for_with_what_may_be_meant():
    assert problems({}) == {"DATABASE_URL": "is not set"}
    assert problems({"DATABASE_URL": "", "PGUSER": "me"}) == {"DATABASE_URL": "is not set"}
    assert problems({"DATABASE_URI": URL}) == {
        "DATABASE_URL": "is not set (DATABASE_URI is: is DATABASE_URL meant?)",
    }
    assert problems({"POSTGRES_URL": URL}) == {"DATABASE_URL": "is not set (POSTGRES_URL is: is DATABASE_URL meant?)"}


def test_without_a_url_the_pg_variables_count():
    settings = load({"PGHOST": "db", "PGDATABASE": "app", "PGPASSWORD": "hunter22"})
    assert settings.database.redacted() == "db:5432/app"
    assert settings.database.password == "hunter22"
    assert settings.sources["DATABASE_URL"] == "PGHOST PGPASSWORD PGDATABASE"
    assert problems({"PGDATABASE": "app"}) == {"PGHOST": "is not set"}
    assert problems({"PGHOST": "db"}) == {"PGDATABASE": "is not set"}


def test_with_a_url_the_pg_variables_do_not_count():
    settings = load({"DATABASE_URL": URL, "PGHOST": "stray", "PGPORT": "nonsense"})
    assert settings.database == parse(URL)
    assert "PGHOST" not in settings.sources


def test_an_embedded_start_reads_no_variable_of_the_database():
    settings = load({"DATABASE_URL": "nonsense", "PGHOST": "stray"}, needs_database=False)
    assert (settings.database, settings.migration_database, settings.sources["DATABASE_URL"]) == (
        None,
        None,
        "not read",
    )


def test_migrations_may_take_another_way_to_the_database():
    settings = load({"DATABASE_URL": URL, "MIGRATION_DATABASE_URL": "postgres://owner:hunter33@db/app"})
    assert settings.migration_database.user == "owner"
    assert set(settings.secrets) == {"hunter22", "hunter33"}


@pytest.mark.parametrize("name", ["DATABASE_URL", "MIGRATION_DATABASE_URL"])
def test_a_url_may_stand_in_a_file_with_a_line_break_at_its_end(name, tmp_path):
    file = tmp_path / "secret"
    file.write_bytes(b"\xef\xbb\xbf" + URL.encode() + b"\r\n")
    settings = load({"DATABASE_URL": URL} | {name: "", f"{name}_FILE": str(file)} | {"PGHOST": "db"})
    assert msgspec.structs.replace(settings.migration_database, reread=None) == parse(URL)
    assert settings.sources[name] == f"file {file}"


def test_a_password_may_stand_in_a_file(tmp_path):
    file = tmp_path / "secret"
    file.write_text("hunter22\n")
    assert load({"PGHOST": "db", "PGUSER": "u", "PGPASSWORD_FILE": str(file)}).database.password == "hunter22"


def test_a_file_that_cannot_be_used_is_named_with_its_variable(tmp_path):
    empty, binary = tmp_path / "empty", tmp_path / "binary"
    empty.write_text("\n")
    binary.write_bytes(b"\xff\xfe")
    for path, why in {
        f"{tmp_path}/missing": "does not exist",
        f"{tmp_path}": "is a directory",
        f"{empty}": "is empty",
        f"{binary}": "is not UTF-8 text",
    }.items():
        assert problems({"DATABASE_URL_FILE": path}) == {"DATABASE_URL_FILE": f"names the file {path}, which {why}"}


def test_a_secret_that_stands_where_its_files_path_belongs_is_not_shown():
    for value in (URL, "hunter22", "/hunter22@x"):
        assert problems({"DATABASE_URL_FILE": value}) == {
            "DATABASE_URL_FILE": "names the file (not shown), which does not exist"
        }


def test_a_variable_and_its_file_together_are_refused(tmp_path):
    assert problems({"DATABASE_URL": URL, "DATABASE_URL_FILE": "/x"}) == {
        "DATABASE_URL": "is set, and so is DATABASE_URL_FILE: give only one of them"
    }


# -------------------------------------------------------------------------------------------------------- the rest


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"XDG_DATA_HOME": "/x", "HOME": "/h"}, "/x/orchestrator"),
        ({"XDG_DATA_HOME": "x", "HOME": "/h"}, "/h/.local/share/orchestrator"),
        ({"HOME": "/root"}, "/root/.local/share/orchestrator"),
        ({"HOME": "/"}, "/var/lib/orchestrator"),
        ({"HOME": ""}, "/var/lib/orchestrator"),
        ({}, "/var/lib/orchestrator"),
    ],
)
def test_the_data_directory_is_the_users(environ, expected):
    assert load({"DATABASE_URL": URL, **environ}).data_dir == Path(expected)


def test_a_misspelled_variable_is_suspected_and_anything_else_is_left_alone():
    environ = {
        "DATABASE_URL": URL,
        "MIGRATION_DIR": "/x",
        "MIGRATIONS_POLICY": "strict",
        "DB_CONNECTION_TIMEOUT": "5",
        "LOGLEVEL": "debug",
        "database_url_file": "/x",
        # Of other programs, or set beside the right one.
        "DATABASE_URI": "x",
        "DATABASE_NAME": "x",
        "TEST_DATABASE_URL": "x",
        "HOSTNAME": "x",
        "PGDATA": "x",
        "POSTGRES_DB": "x",
        "POSTGRES_URL": "x",
        "LOG_FILE": "x",
        "TIMEOUT": "x",
        "EXTENSION": "",
    }
    assert load(environ).suspects == (
        ("DB_CONNECTION_TIMEOUT", "DB_CONNECT_TIMEOUT"),
        ("LOGLEVEL", "LOG_LEVEL"),
        ("MIGRATIONS_POLICY", "MIGRATION_POLICY"),
        ("MIGRATION_DIR", "MIGRATIONS_DIR"),
        ("database_url_file", "DATABASE_URL_FILE"),
    )


def test_the_description_names_every_variable_and_no_secret():
    rows = load({"PGHOST": "db", "PGUSER": "me", "PGPASSWORD": "hunter22", "EXTENSIONS": "a,b"}).describe()
    ours = [v.name for v in VARIABLES if v.field]
    assert [name for name, _, _ in rows][: len(ours)] == ours
    shown = {name: (value, source) for name, value, source in rows}
    assert shown["DATABASE_URL"] == ("me@db:5432/me", "PGHOST PGUSER PGPASSWORD")
    assert shown["MIGRATION_DATABASE_URL"] == ("me@db:5432/me", "default: DATABASE_URL")
    assert shown["PGPASSWORD"] == ("(part of DATABASE_URL)", "environment")
    assert shown["EXTENSIONS"] == ("a,b", "environment")
    assert shown["SHUTDOWN_TIMEOUT"] == ("15s", "default")
    assert shown["MIGRATIONS_DIR"] == ("", "not set")
    assert "hunter22" not in repr(rows)


def test_nothing_that_is_shown_of_settings_holds_a_secret():
    settings = load({"DATABASE_URL": URL, "API_TOKEN": "token-of-the-api-55"})
    shown = repr(settings) + str(settings) + repr(settings.describe())
    assert "hunter22" not in shown
    assert "token-of-the-api-55" not in shown
    assert "token-of-the-api-55" in settings.secrets


def test_the_table_for_the_readme_has_a_row_for_each_variable():
    lines = markdown_table().splitlines()
    assert len(lines) == len(VARIABLES) + 2
    assert all(line.count(" | ") == 3 for line in lines[2:])
    assert lines[2].startswith("| `DATABASE_URL`, `DATABASE_URL_FILE` | ")


def test_reading_settings_imports_nothing_heavy():
    heavy = ("asyncpg", "aiohttp", "structlog", "asyncio", "rich", "ssl", "difflib", "logging")
    code = f"import sys, {module.__name__}; print([m for m in {heavy!r} if m in sys.modules])"
    environ = {"PYTHONPATH": str(Path(module.__file__).parent.parent), "PATH": os.environ["PATH"]}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_what_is_wrong_with_an_option_is_not_mended_by_a_variable():
    option = Problem("--on", "is no URL", "a URL", "postgresql://db/app")
    variable = Problem("PORT", "is not a port", "a port", "3005")
    assert ConfigurationError([option]).remedy == "Run it again so; `--help` behind the command shows its options."
    assert ConfigurationError([variable, option]).remedy.startswith("Set the variables named above")


async def test_without_a_command_there_is_the_help(orchestrator):
    told = await orchestrator()
    assert (told.returncode, told.stdout) == (2, "")
    assert "Before a migration runs:" in told.stderr


def test_a_url_without_a_password_takes_that_of_pgpassword_also_from_a_file(tmp_path):
    (tmp_path / "pw").write_text("hunter22\n")
    url = {"DATABASE_URL": "postgresql://me@db/app"}
    assert load({**url, "PGPASSWORD": "hunter22"}).database.password == "hunter22"
    settings = load({**url, "PGPASSWORD_FILE": str(tmp_path / "pw")})
    assert settings.database.password == settings.migration_database.password == "hunter22"
    assert "hunter22" in settings.secrets
    assert load({"DATABASE_URL": URL, "PGPASSWORD": "another1"}).database == parse(URL)


def test_a_secret_in_a_file_is_read_again_whatever_was_changed_beside_it(tmp_path):
    file = tmp_path / "secret"
    file.write_text(URL)
    given = load({"DATABASE_URL_FILE": str(file)}).database
    changed = given.with_database("other").with_role("read-write")
    file.write_text(URL.replace("hunter22", "hunter33") + "\n")
    assert given.current().password == "hunter33"
    now = changed.current()
    assert (now.password, now.database, now.options["target_session_attrs"]) == ("hunter33", "other", "read-write")
    file.unlink()
    with pytest.raises(ConfigurationError, match="secret"):
        given.current()


def test_a_password_of_a_file_beside_a_url_is_read_again(tmp_path):
    file = tmp_path / "password"
    file.write_text("one")
    given = load({"DATABASE_URL": "postgresql://app@db/app", "PGPASSWORD_FILE": str(file)}).database
    file.write_text("two\n")
    assert (given.password, given.current().password) == ("one", "two")


def test_pgsslmode_counts_where_the_url_is_silent():
    assert load({"DATABASE_URL": URL, "PGSSLMODE": "require"}).database.options["sslmode"] == "require"
    silent = load({"DATABASE_URL": f"{URL}?sslmode=disable", "PGSSLMODE": "require"}).database
    assert silent.options["sslmode"] == "disable"
    with pytest.raises(ConfigurationError, match="PGSSLMODE: has an unknown value"):
        load({"DATABASE_URL": URL, "PGSSLMODE": "maybe"})


@pytest.mark.parametrize("name", ["PGHOST", "PGPASSWORD", "PGUSER", "PGDATABASE"])
def test_a_line_end_behind_a_pg_variable_is_found(name):
    given = {"PGHOST": "db", "PGDATABASE": "app", "PGUSER": "app", "PGPASSWORD": "hunter22"}
    with pytest.raises(ConfigurationError, match=f"{name}: has a line break at its end"):
        load({**given, name: given[name] + "\r\n"})


def test_a_variable_of_white_space_is_as_good_as_none():
    assert load({"DATABASE_URL": URL, "MIGRATION_DATABASE_URL": " \n", "PORT": "  "}).port == 3005
