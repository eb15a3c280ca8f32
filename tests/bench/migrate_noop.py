"""A `migrate` that finds nothing to do, on 44 and on 10,000 applied migrations, against real Drizzle doing the same.

    python tests/bench/migrate_noop.py [--rounds 15]

Ours applies the folder once, untimed; then both look at it again and again. Reach: faster than Drizzle on both.
"""

import asyncio
from pathlib import Path

from _common import (
    Contestant,
    Sample,
    Server,
    bench_server,
    compare,
    drizzle,
    main,
    measured,
    our_migrate,
    rounds_option,
    small_migrations,
    tiny_migrations,
    write_folder,
)


async def look_again(server: Server, folder: Path, count: int, rounds: int) -> None:
    url = await server.create()
    ours, theirs = our_migrate(folder), drizzle(folder)
    await asyncio.to_thread(measured, *ours(url)[:2])
    await server.checkpoint()

    async def run_ours() -> Sample:
        return await asyncio.to_thread(measured, *ours(url)[:2])

    sides = []
    if theirs is not None:
        command, environment, cwd = theirs(url)

        async def run_theirs() -> Sample:
            return await asyncio.to_thread(measured, command, environment, cwd=cwd)

        sides.append(Contestant("drizzle-orm 0.45", run_theirs))
    await compare(
        f"nothing to do, {count:,} applied", [*sides, Contestant("orchestrator migrate", run_ours)], rounds=rounds
    )
    await server.drop(url)


async def bench() -> None:
    options = rounds_option(__doc__, 15)
    async with bench_server() as (server, scratch):
        await look_again(server, write_folder(scratch / "44", small_migrations(44)), 44, options.rounds)
        await look_again(server, write_folder(scratch / "many", tiny_migrations(10_000)), 10_000, options.rounds)


main(bench)
