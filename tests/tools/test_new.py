"""`new`: the next migration is named, dated and written as drizzle-kit does it, and real drizzle-orm takes it."""

import asyncio
import json
import os
from pathlib import Path

import pytest
from drizzle.reference import NotInstallableError, install, ledger_bytes

from orchestrator.migrator.folder import read_folder, stamp_to_ms
from orchestrator.tools.new_file import NewMigrationError, write_migrations

NOW = 1_750_000_000_123


def journal(folder: Path, *entries: tuple[str, int]) -> Path:
    (folder / "meta").mkdir(parents=True)
    rows = [{"idx": i, "version": "7", "when": w, "tag": t, "breakpoints": True} for i, (t, w) in enumerate(entries)]
    text = json.dumps({"version": "7", "dialect": "postgresql", "entries": rows}, indent=2)
    (folder / "meta" / "_journal.json").write_text(text)
    for tag, _ in entries:
        (folder / f"{tag}.sql").write_text("SELECT 1;\n")
    return folder


def test_the_journal_is_written_to_the_byte_as_drizzle_kit_writes_it(tmp_path):
    folder = tmp_path / "drizzle"
    write_migrations(folder, [("add_users", "SELECT 1;\n")], now_ms=NOW)
    write_migrations(folder, [("more", "SELECT 2;\n")], now_ms=NOW)
    # JSON.stringify({…}, null, 2), as drizzle-kit 0.31 leaves it: no line break at the end.
    assert (folder / "meta" / "_journal.json").read_text() == (
        '{\n  "version": "7",\n  "dialect": "postgresql",\n  "entries": [\n'
        '    {\n      "idx": 0,\n      "version": "7",\n      "when": 1750000000123,\n'
        '      "tag": "0000_add_users",\n      "breakpoints": true\n    },\n'
        '    {\n      "idx": 1,\n      "version": "7",\n      "when": 1750000000124,\n'
        '      "tag": "0001_more",\n      "breakpoints": true\n    }\n  ]\n}'
    )
    assert sorted(path.name for path in folder.rglob("*")) == [
        "0000_add_users.sql",
        "0001_more.sql",
        "_journal.json",
        "meta",
    ]


@pytest.mark.parametrize(
    ("newest", "tag"),
    [
        ("0041_large_puma", "0001_next"),  # the index is the journal's, not the name's
        ("20250101120000_large_puma", "20250615150640_next"),
        ("1735732800_large_puma", "1750000000_next"),
        ("_large_puma", "_next"),  # prefix: "none" of drizzle-kit leaves the underscore
        ("large_puma", "next"),
    ],
)
def test_the_style_of_the_newest_name_is_kept(tmp_path, newest, tag):
    folder = journal(tmp_path / "drizzle", (newest, 1000))
    (made,) = write_migrations(folder, [("next", "")], now_ms=NOW)
    assert (made.tag, made.when_ms) == (tag, NOW)
    assert [m.name for m in read_folder(folder).migrations] == [newest, tag]


def test_time_never_goes_backwards_though_the_clock_does_or_an_entry_is_of_the_future(tmp_path):
    folder = journal(tmp_path / "v0", ("0000_a", NOW + 86_400_000), ("0001_b", NOW - 5))
    (made,) = write_migrations(folder, [("c", "")], now_ms=NOW)
    assert made.when_ms == NOW + 86_400_001
    first, second = write_migrations(tmp_path / "v1", [("a", ""), ("b", "")], now_ms=NOW, generation="v1")
    assert second.when_ms == first.when_ms + 1000  # a v1 name holds whole seconds
    assert stamp_to_ms(second.tag[:14]) == second.when_ms


def test_a_finished_journal_keeps_its_last_line_break_and_what_else_it_holds(tmp_path):
    folder = journal(tmp_path / "drizzle", ("0000_a", 1000))
    file = folder / "meta" / "_journal.json"
    known = {**json.loads(file.read_text()), "version": "6", "more": [1]}
    known["entries"][0]["version"] = "6"
    file.write_text(json.dumps(known) + "\n")
    write_migrations(folder, [("b", "")], now_ms=NOW)
    text = file.read_text()
    assert text.endswith("}\n")
    assert json.loads(text)["more"] == [1]
    assert [entry["version"] for entry in json.loads(text)["entries"]] == ["6", "6"]


@pytest.mark.parametrize("name", ["", "a b", "../x", "é", "a/b", "-a", "x" * 101, "a.sql", "a\n"])
def test_a_name_that_a_file_should_not_have_is_refused_with_one_that_would_do(tmp_path, name):
    with pytest.raises(NewMigrationError) as refused:
        write_migrations(tmp_path / "drizzle", [(name, "")], now_ms=NOW)
    assert refused.value.remedy.startswith("For example: ")
    assert not (tmp_path / "drizzle").exists()


def test_a_name_that_is_taken_is_refused_and_so_is_a_file_that_the_journal_does_not_name(tmp_path):
    folder = journal(tmp_path / "drizzle", ("0000_add_users", 1000))
    with pytest.raises(NewMigrationError, match="0000_add_users has the name"):
        write_migrations(folder, [("Add_Users", "")], now_ms=NOW)
    (folder / "0001_left.sql").write_text("")
    with pytest.raises(NewMigrationError, match="0001_left has the name"):
        write_migrations(folder, [("left", "")], now_ms=NOW)
    with pytest.raises(NewMigrationError, match="v1 was asked for"):
        write_migrations(folder, [("b", "")], now_ms=NOW, generation="v1")
    assert len(read_folder(folder).migrations) == 1


async def test_twelve_at_a_time_all_get_a_place_of_their_own(tmp_path):
    folder = tmp_path / "drizzle"
    await asyncio.gather(*(asyncio.to_thread(write_migrations, folder, [(f"m{i}", "")], now_ms=NOW) for i in range(12)))
    read = read_folder(folder)
    assert [m.when_ms for m in read.migrations] == [NOW + i for i in range(12)]
    assert [m.name[:4] for m in read.migrations] == [f"{i:04}" for i in range(12)]
    assert read.unlisted == ()


async def test_the_command_prints_the_path_and_makes_the_folder(orchestrator, tmp_path):
    done = await orchestrator("new", "add_users", "--migrations-dir", "fresh")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path}/fresh/0000_add_users.sql\n"
    as_json = await orchestrator("new", "b", "--v1", "--json", env={"MIGRATIONS_DIR": str(tmp_path / "v1")})
    facts = json.loads(as_json.stdout)
    assert facts["generation"] == "v1"
    assert facts["name"] in {m.name for m in read_folder(tmp_path / "v1").migrations}
    refused = await orchestrator("new", "a b", env={"MIGRATIONS_DIR": str(tmp_path / "v1")})
    assert (refused.returncode, refused.events[-1]["remedy"]) == (78, "For example: a_b")
    without = await orchestrator("new", "a")
    assert without.returncode == 78
    assert "MIGRATIONS_DIR" in without.stderr


@pytest.mark.drizzle
@pytest.mark.parametrize("generation", ["v0", "v1"])
async def test_real_drizzle_runs_what_was_made_and_finds_nothing_after_us(
    orchestrator, make_database, admin, tmp_path, generation
):
    try:
        drizzle = install()
    except NotInstallableError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))
    folder, ours, theirs = tmp_path / "drizzle", await make_database(), await make_database()
    for name, sql in (("a", "CREATE TABLE a (id int);\n"), ("b", "ALTER TABLE a ADD b int;\n"), ("c", "")):
        write_migrations(folder, [(name, sql)], now_ms=NOW, generation=generation)
    assert drizzle.migrate(generation, theirs, folder).ok
    done = await orchestrator("migrate", env={"DATABASE_URL": ours, "MIGRATIONS_DIR": str(folder)})
    assert done.returncode == 0, done.stderr
    assert len(done.named("migration.applied")) >= 3
    assert drizzle.migrate(generation, ours, folder).ok
    rows = [await ledger_bytes(url, schema="drizzle", table="__drizzle_migrations") for url in (ours, theirs)]
    assert len(rows[0]) == len(rows[1])
    assert await admin.value(ours, "SELECT count(*) FROM drizzle.__drizzle_migrations") == 3
    assert await admin.value(theirs, "SELECT count(*) FROM drizzle.__drizzle_migrations") == 3
