"""Drizzle folders, written as Drizzle's own tools write them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

WHEN = 1716000000000


def _write_folder(folder: Path, *files: tuple[str, str] | tuple[str, str, int]) -> Path:
    (folder / "meta").mkdir(parents=True, exist_ok=True)
    entries = []
    for number, (tag, sql, *when) in enumerate(files):
        (folder / f"{tag}.sql").write_bytes(sql.encode())
        moment = when[0] if when else WHEN + number
        entries.append({"idx": number, "version": "7", "when": moment, "tag": tag, "breakpoints": True})
    journal = {"version": "7", "dialect": "postgresql", "entries": entries}
    (folder / "meta" / "_journal.json").write_text(json.dumps(journal))
    return folder


@pytest.fixture(scope="session")
def write() -> Callable[..., Path]:
    """`write(path, (tag, SQL), (tag, SQL, when), …)`: a v0 folder, written (again); returns its path."""
    return _write_folder
