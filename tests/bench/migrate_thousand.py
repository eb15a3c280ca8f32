"""1,000 tiny migrations on an empty database, as a whole process, against `psql -1`.

    python tests/bench/migrate_thousand.py [--rounds 7]

A migration is one COMMENT: the server has next to nothing to do, so the cost of each round trip and ledger row shows.
The sides are those of migrate_small.py. Reach: 1.3x of psql.
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
    tiny_migrations,
    write_folder,
)


async def bench() -> None:
    options = rounds_option(__doc__, 7)
    if not has_psql():
        return
    async with bench_server() as (server, scratch):
        folder = write_folder(scratch / "tiny", tiny_migrations(1000))
        sides = [
            Contestant("psql -1", on_fresh_database(server, psql_once(concatenated(folder, scratch / "tiny.sql")))),
            Contestant("orchestrator migrate", on_fresh_database(server, our_migrate(folder))),
            Contestant("bare asyncpg loop", on_fresh_database(server, bare_asyncpg(folder))),
        ]
        if (theirs := drizzle(folder)) is not None:
            sides.append(Contestant("drizzle-orm 0.45", on_fresh_database(server, theirs)))
        await compare("1,000 tiny migrations, whole process", sides, rounds=options.rounds)


main(bench)
