"""A syntax error of a kind that is known says what the file holds."""

import pytest

from orchestrator.migrator.sql.statements import SqlSyntaxError, statements

HINTS = {
    "CREATE TABLE a ();\n<<<<<<< HEAD\nCREATE TABLE b ();\n=======\nCREATE TABLE c ();\n>>>>>>> main": "merge conflict",
    "CREATE\u00a0TABLE a ();": "U+00A0 (no-break space)",
    "CREATE TABLE a (id int);\n\u200bCREATE TABLE b ();": "U+200B (zero width space)",
    "SELECT 1;\n\ufeffCREATE TABLE b ();": "U+FEFF (zero width no-break space)",
    "INSERT INTO t VALUES (:v);": "replaced by psql alone",
    "INSERT INTO t VALUES (:'v');": "replaced by psql alone",
}


@pytest.mark.parametrize("text", HINTS)
def test_the_remedy_names_what_is_wrong(text):
    with pytest.raises(SqlSyntaxError) as raised:
        statements(text.encode(), path="x.sql")
    assert HINTS[text] in raised.value.hint


def test_characters_of_a_language_are_no_invisible_ones():
    with pytest.raises(SqlSyntaxError) as raised:
        statements("CREATE TABEL größe ();".encode(), path="x.sql")
    assert raised.value.hint == ""
