"""SQL identifiers and literals as text, for statements that take no parameters. Pure: no I/O."""

from __future__ import annotations


def identifier(name: str) -> str:
    """`name` as a quoted identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(value: str | int | None) -> str:
    """`value` as a literal, right whatever `standard_conforming_strings` says."""
    if value is None:
        return "NULL"
    if isinstance(value, int):
        return str(value)
    text = value.replace("'", "''")
    return f" E'{text.replace(chr(92), chr(92) * 2)}'" if "\\" in text else f"'{text}'"
