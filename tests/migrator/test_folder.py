"""One reader of a folder: what a run refuses is an error of lint, and the other way round."""

import json

import pytest

from orchestrator.analysis.lint import lint, read_lint_folder
from orchestrator.migrator.folder import FolderError, read_folder

WHEN = 1716000000000
REFUSED = {"missing-file", "broken-folder"}


def v0(folder, *entries, files=()):
    (folder / "meta").mkdir(parents=True)
    (folder / "meta" / "_journal.json").write_text(json.dumps({"entries": list(entries)}))
    for name in files:
        (folder / f"{name}.sql").write_text("SELECT 1")


def v1(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("SELECT 1")


def entry(tag, when=WHEN):
    return {"tag": tag, "when": when}


FOLDERS = {
    "whole": (lambda f: v0(f, entry("0000_a"), files=["0000_a"]), set()),
    "a file that the journal does not name": (
        lambda f: v0(f, entry("0000_a"), files=["0000_a", "0001_b"]),
        {"unlisted-file"},
    ),
    "a date that goes backwards": (
        lambda f: v0(f, entry("0000_a"), entry("0001_b", WHEN - 1), files=["0000_a", "0001_b"]),
        {"when-backwards"},
    ),
    "a file is gone": (lambda f: v0(f, entry("0000_a")), {"missing-file"}),
    "named twice": (lambda f: v0(f, entry("0000_a"), entry("0000_a"), files=["0000_a"]), {"broken-folder"}),
    "no date": (lambda f: v0(f, {"tag": "0000_a"}, files=["0000_a"]), {"broken-folder"}),
    "half a millisecond": (lambda f: v0(f, entry("0000_a", WHEN + 0.5), files=["0000_a"]), {"broken-folder"}),
    "a tag that leads out of the folder": (
        lambda f: v0(f, entry("../outside"), files=["../outside"]),
        {"broken-folder"},
    ),
    "v1, whole": (lambda f: v1(f, "20240101000000_a/migration.sql"), set()),
    "v1, a folder without its file": (
        lambda f: v1(f, "20240101000000_a/migration.sql", "20240102000000_b/x"),
        {"missing-file"},
    ),
    "v1, a folder without a date": (
        lambda f: v1(f, "20240101000000_a/migration.sql", "b/migration.sql"),
        {"broken-folder"},
    ),
    "v1, files beside the folders": (
        lambda f: v1(f, "20240101000000_a/migration.sql", "x.sql", "20240102000000_b.sql"),
        {"unlisted-file"},
    ),
    "half converted: v1 folders beside a journal": (
        lambda f: (v0(f, entry("0000_a"), files=["0000_a"]), v1(f, "20240101000000_b/migration.sql")),
        {"unlisted-file"},
    ),
    "empty": (lambda f: f.mkdir(), {"broken-folder"}),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_run_and_lint_read_the_same(name, tmp_path):
    make, rules = FOLDERS[name]
    make(tmp_path / "m")
    report = lint(read_lint_folder(tmp_path / "m"))
    assert {found.rule for found in report.findings} == rules
    assert not any("outside" in file for file in report.files)
    if rules & REFUSED:
        with pytest.raises(FolderError):
            read_folder(tmp_path / "m")
    else:
        folder = read_folder(tmp_path / "m")
        assert [migration.path for migration in folder.migrations] == report.files
        assert len(folder.unlisted) == sum(found.rule == "unlisted-file" for found in report.findings)
