"""Names from a database are shown as they are, and steer no terminal: no escape sequence, no markup, no crash."""

import json

import pytest

from orchestrator.printable import printable

HOSTILE = [
    *("[/]bad", "[link=http://evil]x[/link]", "[bold red]x", "a\r\nb"),
    *("\x1b]0;title\x07\x1b[2J", "\x9b2J", "\u202egnp.exe"),
]


@pytest.fixture
async def hostile(database_url, admin):
    """A database whose tables, schemas and columns have such names, its ledger as well."""
    for name in HOSTILE:
        table = (
            f'CREATE SCHEMA "{name}"; CREATE TABLE "{name}"."{name}" ("{name}" int); CREATE TABLE public."{name}" ()'
        )
        await admin.script(database_url, table)
    return database_url


async def test_no_command_lets_a_name_steer_the_terminal(orchestrator, hostile, write, tmp_path):
    file = 'CREATE TABLE "[/]new" ("[/b]" int); ALTER TABLE "[/]new" DROP COLUMN "[/b]";'
    folder = write(tmp_path / "m", ("0000_a", file))
    env = {"DATABASE_URL": hostile, "MIGRATIONS_DIR": str(folder), "BACKUP_DIR": str(tmp_path / "b")}
    commands = [
        ["status"],
        ["status", "--json"],
        ["plan"],
        ["plan", "--json"],
        ["lint"],
        ["migrate"],
        ["verify"],
        ["verify", "--json"],
        ["repair", "unapplied", "0000_a", "--yes"],
        ["rehearse"],
        ["backup"],
        ["backup", "--list"],
    ]
    for command in commands:
        for log_format in ("console", "json"):
            result = await orchestrator(*command, env=env | {"LOG_FORMAT": log_format})
            assert "Traceback" not in result.stderr, (command, result.stderr)
            assert "a bug of" not in result.stderr, (command, result.stderr)
            for text in (result.stdout, result.stderr):
                assert [c for c in text if c != "\n" and printable(c) != c] == [], (command, text)
            if "--json" in command:
                assert json.loads(result.stdout or "0"), (command, result.stderr)
            if command == ["status"]:
                for name in ("[/]bad", "[link=http://evil]x[/link]", "[bold red]x", "\\u001b]0;title"):
                    assert name in result.stdout
