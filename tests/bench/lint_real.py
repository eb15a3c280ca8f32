"""`lint` over a real project's folder, squawk beside it: each of squawk's findings that we lack, and why; and the time.

    python tests/bench/lint_real.py REPOSITORY PATH

REPOSITORY is a git repository (bare or not), PATH the migrations folder inside it, e.g. of clones of
fredrikburmester/streamystats (packages/database/drizzle) and simstudioai/sim (packages/db/migrations). Needs git and
squawk-cli. Exit 1 if squawk finds what we neither find nor leave out with a reason.
"""

from __future__ import annotations

import collections
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from orchestrator.analysis.ast import relation  # noqa: E402
from orchestrator.analysis.catalog import Known  # noqa: E402
from orchestrator.analysis.follow import follow  # noqa: E402
from orchestrator.analysis.impact import impact_of  # noqa: E402 the checkout's own package
from orchestrator.analysis.lint import LintFinding, lint, read_lint_folder  # noqa: E402
from orchestrator.analysis.lint_squawk import SQUAWK, UNLIKE_SQUAWK  # noqa: E402
from orchestrator.analysis.locks import Lock  # noqa: E402
from orchestrator.analysis.sql_file import SqlFile  # noqa: E402
from orchestrator.migrator.sql.statements import SqlSyntaxError, Statement  # noqa: E402

# What we answer by another rule than the one that usually stands for squawk's.
ANSWERED = {"constraint-missing-not-valid": {"unique-builds-index", "validate-in-same-transaction"}}


def extract(repository: str, path: str, to: Path) -> Path:
    packed = subprocess.run(
        ["git", "-C", repository, "archive", "--format=tar", "HEAD", path], capture_output=True, check=True
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(to, filter="data")
    return to / path


def spans(folder: Path) -> dict[str, list[tuple[int, int, bool, str]]]:
    """Of each statement its first and last line, whether it touches what others use, and its kind."""
    known, found = Known(), {}
    for file in read_lint_folder(folder).files:
        raw = file.path.read_bytes()
        lines = []
        try:
            read = SqlFile(raw, path=str(file.path))
        except SqlSyntaxError:
            continue
        for statement, node, fields in read.trees():
            touches = impact_of(node, fields, known).touches
            in_use = any(not t.fresh and t.lock > Lock.ROW_SHARE for t in touches)
            if node == "AlterTableStmt":
                # The foreign key of a new table has no row to validate, though it locks the table that it leads to.
                in_use = not known.is_fresh(relation(fields["relation"]))
            lines.append((statement.line, _last_line(raw, statement), in_use, statement.kind))
            follow(known, node, fields)
        known.settle()
        found[str(file.path)] = lines
    return found


def _last_line(raw: bytes, statement: Statement) -> int:
    return raw.count(b"\n", 0, statement.byte_end) + 1


def main(repository: str, path: str) -> int:
    with tempfile.TemporaryDirectory(prefix="lint-real-") as directory:
        folder = extract(repository, path, Path(directory))
        began = time.perf_counter()
        report = lint(read_lint_folder(folder))
        took_s = time.perf_counter() - began
        ours: dict[str, list[LintFinding]] = collections.defaultdict(list)
        for one in [*report.findings, *report.allowed]:
            ours[one.file].append(one)
        files = sorted(str(file.path) for file in read_lint_folder(folder).files)
        squawk = Path(sys.executable).with_name("squawk")
        done = subprocess.run([squawk, "--reporter", "json", *files], capture_output=True, text=True, check=False)
        theirs = json.loads(done.stdout)
        where = spans(folder)
        counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        lacking = []
        for one in theirs:
            verdict = judge(one, ours[one["file"]], where.get(one["file"], []))
            counts[one["rule_name"]][verdict] += 1
            if verdict == "LACKING":
                lacking.append(one)
        print(f"{len(files)} files in {took_s:.2f} s: {len(report.findings)} findings; squawk {len(theirs)}")
        print("ours:", dict(collections.Counter(f"{f.level} {f.rule}" for f in report.findings).most_common()))
        for rule, verdicts in sorted(counts.items()):
            print(f"  {rule:36} {dict(verdicts)}")
        for one in lacking:
            line = Path(one["file"]).read_text().splitlines()[one["line"]]
            print(f"LACKING {one['rule_name']} {Path(one['file']).name}:{one['line'] + 1}: {line.strip()[:120]}")
        return int(bool(lacking))


def judge(theirs: dict, ours: list[LintFinding], statements_of: list[tuple[int, int, bool, str]]) -> str:
    rule, line = theirs["rule_name"], theirs["line"] + 1
    if rule in UNLIKE_SQUAWK:
        return "left out"
    first, last, in_use, _ = next((s for s in statements_of if s[0] <= line <= s[1]), (line, line, True, ""))
    same = {SQUAWK[rule], *ANSWERED.get(rule, ())}
    if any(one.rule in same and first <= one.line <= last for one in ours):
        return "found"
    return "LACKING" if in_use else "on what is new"


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
