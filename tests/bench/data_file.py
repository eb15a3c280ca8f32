"""A data file of 50 MB as one migration, against `psql -1`: time, and the peak of the process's memory.

    python tests/bench/data_file.py [--rounds 5] [--megabytes 50]

Twice: as INSERTs of 500 rows each, and as half a million INSERTs of one row. psql runs the same file and ledger row in
one transaction. Ours parses the whole file first, by Postgres's own grammar, and keeps a packed copy of its text.
Reach: peak memory 4x the file, time 1.05x of psql.
"""

import argparse
from pathlib import Path

from _common import (
    Contestant,
    Server,
    bench_server,
    compare,
    concatenated,
    drizzle,
    has_psql,
    main,
    on_fresh_database,
    our_migrate,
    psql_once,
    write_folder,
)


def write_data(folder: Path, size_bytes: int, rows_each: int) -> Path:
    """One migration of about `size_bytes`; written piece by piece, so that this process stays small."""
    write_folder(folder, [("0000_data", "")])
    with (folder / "0000_data.sql").open("w") as file:
        file.write("CREATE TABLE data (id bigint PRIMARY KEY, name text NOT NULL, score double precision);\n")
        row = 0
        while file.tell() < size_bytes:
            rows = (
                f"({n}, 'the name of item {n}, it''s long; {n * 7919 % 99991}', {n * 0.25})"
                for n in range(row, row + rows_each)
            )
            file.write(f"INSERT INTO data VALUES {', '.join(rows)};\n")
            row += rows_each
    return folder


async def one_shape(server: Server, folder: Path, title: str, rounds: int) -> None:
    size_bytes = (folder / "0000_data.sql").stat().st_size
    sides = [
        Contestant("psql -1", on_fresh_database(server, psql_once(concatenated(folder, folder / "all.psql")))),
        Contestant("orchestrator migrate", on_fresh_database(server, our_migrate(folder))),
    ]
    if (theirs := drizzle(folder)) is not None:
        sides.append(Contestant("drizzle-orm 0.45", on_fresh_database(server, theirs)))
    await compare(f"{title}, {size_bytes / 1e6:.0f} MB", sides, rounds=rounds)
    for side in sides:
        print(f"  {side.name:34} peak is {side.median(lambda s: s.peak_bytes) / size_bytes:.2f}x the file")


async def bench() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=50)
    options = parser.parse_args()
    if not has_psql():
        return
    size_bytes = options.megabytes * 1_000_000
    async with bench_server() as (server, scratch):
        for rows_each, title in ((500, "INSERTs of 500 rows"), (1, "INSERTs of one row")):
            folder = write_data(scratch / f"data_{rows_each}", size_bytes, rows_each)
            await one_shape(server, folder, title, options.rounds)


main(bench)
