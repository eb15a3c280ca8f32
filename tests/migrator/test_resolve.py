"""What a run decides: tables of files and ledger rows, without a database."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.migrator.folder import Folder, Migration, ms_to_stamp, stamp_to_ms
from orchestrator.migrator.resolve import Kind, Ledger, LedgerRow, Plan, make_plan


def migration(name: str, when_ms: int, content: str | None = None) -> Migration:
    return Migration(name, when_ms, content or f"hash of {name}", Path(f"/m/{name}.sql"), 10)


def folder(*migrations: Migration, generation: str = "v0") -> Folder:
    return Folder(Path("/m"), generation, migrations)


def rows(*facts: tuple) -> tuple[LedgerRow, ...]:
    return tuple(LedgerRow(i, hash_, created_at, *rest) for i, (hash_, created_at, *rest) in enumerate(facts, start=1))


def ledger(*facts: tuple, has_name: bool = False) -> Ledger:
    return Ledger(exists=True, has_name=has_name, rows=rows(*facts))


NO_LEDGER = Ledger(exists=False, has_name=False)
A, B, C = migration("0000_a", 100), migration("0001_b", 200), migration("0002_c", 300)
V1A, V1B = migration("20240101000000_a", 1704067200000), migration("20240102000000_b", 1704153600000)


@dataclass
class Case:
    folder: Folder
    ledger: Ledger
    pending: tuple[str, ...]
    findings: tuple[tuple[Kind, str], ...] = ()
    resumable: tuple[str, ...] = ()


CASES = {
    "nothing is applied: everything runs": Case(folder(A, B, C), NO_LEDGER, ("0000_a", "0001_b", "0002_c")),
    "everything is applied: nothing runs": Case(folder(A, B), ledger((A.hash, 100), (B.hash, 200)), ()),
    "what is newer than the newest row runs": Case(folder(A, B, C), ledger((A.hash, 100)), ("0001_b", "0002_c")),
    "an edited file is not run again": Case(
        folder(A, B), ledger(("other", 100), (B.hash, 200)), (), ((Kind.EDITED, "0000_a"),)
    ),
    "v0 skips what is older than the newest row": Case(
        folder(A, B, C), ledger((A.hash, 100), (C.hash, 300)), (), ((Kind.OUT_OF_ORDER, "0001_b"),)
    ),
    "the same time as the newest row is not newer": Case(
        folder(A, migration("0001_x", 100)), ledger((A.hash, 100)), (), ((Kind.OUT_OF_ORDER, "0001_x"),)
    ),
    "on an empty ledger every entry runs, also one whose time goes backwards": Case(
        folder(A, C, B), NO_LEDGER, ("0000_a", "0002_c", "0001_b"), (), ("0001_b",)
    ),
    "a file dated anew runs again": Case(
        folder(A, migration("0001_b", 400, B.hash)),
        ledger((A.hash, 100), (B.hash, 200)),
        ("0001_b",),
        ((Kind.REDATED, "0001_b"),),
    ),
    "a file dated back does not": Case(
        folder(A, migration("0001_b", 150, B.hash)),
        ledger((A.hash, 100), (B.hash, 200)),
        (),
        ((Kind.REDATED, "0001_b"),),
    ),
    "a row without a file is an orphan": Case(
        folder(A, C),
        ledger((A.hash, 100), ("gone", 150), (C.hash, 300)),
        (),
        ((Kind.ORPHANED, "ledger row 2 (hash gone…)"),),
    ),
    "a row that is newer than every file is ahead": Case(
        folder(A), ledger((A.hash, 100), ("newer", 900)), (), ((Kind.AHEAD, "ledger row 2 (hash newer…)"),)
    ),
    "no files and a full ledger is ahead": Case(
        folder(), ledger(("x", 5)), (), ((Kind.AHEAD, "ledger row 1 (hash x…)"),)
    ),
    "the same row twice is one migration": Case(folder(A), ledger((A.hash, 100), (A.hash, 100)), ()),
    "two files of one time are told apart by their hash": Case(
        folder(A, migration("0001_x", 100)), ledger(("hash of 0001_x", 100), (A.hash, 100)), ()
    ),
    "an empty created_at is damage": Case(
        folder(A), ledger((A.hash, 100), ("x", None)), (), ((Kind.DAMAGED, "ledger row 2 (hash x…)"),)
    ),
    "v1 applies each name that the ledger lacks": Case(
        folder(V1A, V1B, generation="v1"), ledger((V1A.hash, V1A.when_ms, V1A.name), has_name=True), (V1B.name,)
    ),
    "v1 runs what is out of order, and says so": Case(
        folder(V1A, V1B, generation="v1"),
        ledger((V1B.hash, V1B.when_ms, V1B.name), has_name=True),
        (V1A.name,),
        ((Kind.OUT_OF_ORDER, V1A.name),),
    ),
    "v1 knows an edited file by its name": Case(
        folder(V1A, generation="v1"),
        ledger(("other", V1A.when_ms, V1A.name), has_name=True),
        (),
        ((Kind.EDITED, V1A.name),),
    ),
    "v1 runs a folder that was dated anew": Case(
        folder(migration("20240103000000_a", 1704240000000, V1A.hash), generation="v1"),
        ledger((V1A.hash, V1A.when_ms, V1A.name), has_name=True),
        ("20240103000000_a",),
        ((Kind.REDATED, "20240103000000_a"),),
    ),
    "v1 takes a v0 ledger's rows by time truncated to seconds": Case(
        folder(V1A, V1B, generation="v1"), ledger((V1A.hash, V1A.when_ms + 456)), (V1B.name,)
    ),
    "v1 takes a v0 ledger's rows by hash where no time fits": Case(
        folder(V1A, V1B, generation="v1"), ledger((V1A.hash, 777)), (V1B.name,)
    ),
}


def names(plan: Plan) -> tuple[str, ...]:
    return tuple(m.name for m in plan.pending)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_run_decides_as_drizzle_does(case: Case):
    plan = make_plan(case.folder, case.ledger)
    assert names(plan) == case.pending
    assert tuple((f.kind, f.name) for f in plan.findings) == case.findings
    assert tuple(m.name for m in plan.resumable) == case.resumable


@pytest.mark.parametrize("case", [c for c in CASES.values() if c.findings])
def test_strict_refuses_every_history_that_is_not_straight(case: Case):
    plan = make_plan(case.folder, case.ledger, policy="strict")
    assert len(plan.refusals) == len(case.findings)
    assert all("nothing was run" in f.decision for f in plan.refusals)


def test_ahead_is_refused_under_both_policies_unless_it_is_to_be_a_warning():
    files, full = folder(A), ledger((A.hash, 100), ("newer", 900))
    for policy in ("drizzle", "strict"):
        assert [f.kind for f in make_plan(files, full, policy=policy).refusals] == [Kind.AHEAD]
        assert make_plan(files, full, policy=policy, ahead="warn").refusals == ()


def test_a_cosmetic_edit_passes_strict_and_is_told_all_the_same():
    plan = make_plan(folder(A), ledger(("other", 100)), policy="strict", cosmetic=frozenset({A.name}))
    assert plan.refusals == ()
    assert [(f.kind, f.cosmetic) for f in plan.findings] == [(Kind.EDITED, True)]


def test_a_file_that_was_edited_and_dated_anew_is_known_by_its_recorded_name():
    plan = make_plan(
        folder(A, migration("0001_b", 400, "edited")), ledger((A.hash, 100), (B.hash, 200)), known_names={2: "0001_b"}
    )
    assert [(f.kind, f.name) for f in plan.findings] == [(Kind.REDATED, "0001_b")]


def test_a_v0_ledger_that_lacks_a_file_cannot_be_upgraded_under_any_policy():
    plan = make_plan(folder(V1A, generation="v1"), ledger((V1A.hash, V1A.when_ms), ("gone", 3)))
    assert [(f.kind, f.row_id) for f in plan.refusals] == [(Kind.ORPHANED, 2)]


def test_an_interrupted_run_goes_on_with_what_drizzle_would_pass_over():
    backwards = folder(A, C, B)
    half = ledger((A.hash, 100), (C.hash, 300))
    assert names(make_plan(backwards, half)) == ()
    assert names(make_plan(backwards, half, unfinished=frozenset({"0001_b"}))) == ("0001_b",)


@given(st.permutations(range(1, 9)), st.integers(0, 8))
def test_a_run_that_stops_anywhere_and_goes_on_applies_each_file_once(order, stopped_after):
    files = folder(*(migration(f"{i:04}_m", when * 10) for i, when in enumerate(order)))
    first = make_plan(files, NO_LEDGER)
    done = first.pending[:stopped_after]
    left = frozenset(m.name for m in first.resumable) - {m.name for m in done}
    facts = [(m.hash, m.when_ms) for m in done]
    second = make_plan(files, ledger(*facts), unfinished=left)
    assert [m.name for m in (*done, *second.pending)] == [m.name for m in first.pending]


@given(st.integers(0, 253402300799))
def test_a_stamp_and_its_milliseconds_are_the_same_instant(second):
    assert stamp_to_ms(ms_to_stamp(second * 1000)) == second * 1000


@pytest.mark.parametrize(
    ("stamp", "instant"),
    [("20241301000000", "20250101000000"), ("20240230000000", "20240301000000"), ("20240101240000", "20240102000000")],
)
def test_a_stamp_out_of_range_carries_over_as_in_javascript(stamp, instant):
    assert stamp_to_ms(stamp) == stamp_to_ms(instant)
