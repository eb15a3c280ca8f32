"""What a migration says by RAISE is shown, with its file, and bounded."""

import pytest

WARNS = "DO $$ BEGIN RAISE WARNING 'rows of % left', 'orders' USING HINT = 'delete them', DETAIL = 'three'; END $$;"
NOTES = "DO $$ BEGIN RAISE NOTICE 'half way'; RAISE INFO 'done'; RAISE LOG 'for the log'; END $$;"
MANY = "DO $$ BEGIN FOR i IN 1..20000 LOOP RAISE NOTICE 'row %', i; END LOOP; RAISE WARNING 'the end'; END $$;"
LONG = "DO $$ BEGIN RAISE WARNING '%', repeat('x', 2000000); END $$;"


@pytest.fixture
def notices(orchestrator, database_url, tmp_path, write):
    async def run(*texts: str):
        folder = write(tmp_path / "m", *((f"{n:04}_m", text) for n, text in enumerate(texts)))
        result = await orchestrator("migrate", env={"DATABASE_URL": database_url, "MIGRATIONS_DIR": str(folder)})
        assert result.returncode == 0, result.stderr[-2000:]
        return [event for event in result.events if event["event"] == "database.notice_received"]

    return run


async def test_a_warning_and_a_notice_are_shown_with_their_file(notices):
    shown = await notices(WARNS, NOTES, "CREATE TABLE behind ();")
    assert [(one["migration"], one["level"], one["severity"], one["message"]) for one in shown] == [
        ("0000_m", "warning", "WARNING", "rows of orders left"),
        ("0001_m", "info", "NOTICE", "half way"),
        ("0001_m", "info", "INFO", "done"),
    ]
    assert (shown[0]["hint"], shown[0]["detail"]) == ("delete them", "three")


async def test_they_are_bounded_in_number_and_length_and_a_warning_is_not_lost_among_notices(notices):
    shown = await notices(MANY, LONG)
    rows = [one for one in shown if one["level"] == "info"]
    assert (len(rows), rows[0]["message"]) == (50, "row 1")
    assert "the last that is shown" in rows[-1]["remedy"]
    end, long = [one for one in shown if one["level"] == "warning"]
    assert (end["message"], len(long["message"])) == ("the end", 1000)


async def test_small_files_that_share_a_message_are_named_together(notices):
    shown = await notices(*(f"DROP TABLE IF EXISTS t{n};" for n in range(3)))
    assert [(one["migration"], one["message"]) for one in shown] == [
        ("0000_m to 0002_m", f'table "t{n}" does not exist, skipping') for n in range(3)
    ]


async def test_what_is_said_to_our_own_sql_is_not_shown(notices):
    assert await notices("CREATE TABLE a ();", "COMMIT; CREATE TABLE b ();", "INSERT INTO a DEFAULT VALUES;") == []
