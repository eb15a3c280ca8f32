"""44 small migrations on an empty database, as a whole process, against `psql -1`.

    python tests/bench/migrate_small.py [--rounds 15]

psql: one transaction over one file that holds Drizzle's ledger, every migration and its ledger row. A bare asyncpg loop
does the same from Python. Drizzle is the real one. Ours does more on the same clock: the service's own schema and its
migration, a lock, the grammar over every file, a transaction each, and a record of each file's text.
Reach: 2x of psql.
"""

from _common import (
    Contestant,
    bare_asyncpg,
    bench_server,
    compare,
    concatenated,
    drizzle,
    has_psql,
    main,
    on_fresh_database,
    our_migrate,
    psql_once,
    rounds_option,
    small_migrations,
    write_folder,
)


async def bench() -> None:
    options = rounds_option(__doc__, 15)
    if not has_psql():
        return
    async with bench_server() as (server, scratch):
        folder = write_folder(scratch / "small", small_migrations(44))
        sides = [
            Contestant("psql -1", on_fresh_database(server, psql_once(concatenated(folder, scratch / "small.sql")))),
            Contestant("orchestrator migrate", on_fresh_database(server, our_migrate(folder))),
            Contestant("bare asyncpg loop", on_fresh_database(server, bare_asyncpg(folder))),
        ]
        if (theirs := drizzle(folder)) is not None:
            sides.append(Contestant("drizzle-orm 0.45", on_fresh_database(server, theirs)))
        await compare("44 small migrations, whole process", sides, rounds=options.rounds)


main(bench)
