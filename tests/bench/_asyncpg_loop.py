"""The least that a Python migrator can do: import asyncpg, log in, run each file and its row in one transaction.

    DATABASE_URL=… python _asyncpg_loop.py FOLDER

No lock, no plan, no parsing, no records, no logs, no retry.
"""

import asyncio
import hashlib
import json
import os
import sys
from pathlib import Path

import asyncpg


async def main(folder: Path) -> None:
    entries = json.loads((folder / "meta" / "_journal.json").read_bytes())["entries"]
    connection = await asyncpg.connect(os.environ["DATABASE_URL"])
    await connection.execute(
        "CREATE SCHEMA drizzle; CREATE TABLE drizzle.__drizzle_migrations"
        " (id SERIAL PRIMARY KEY, hash text NOT NULL, created_at bigint)"
    )
    async with connection.transaction():
        for entry in entries:
            raw = (folder / f"{entry['tag']}.sql").read_bytes()
            await connection.execute(raw.decode())
            await connection.execute(
                "INSERT INTO drizzle.__drizzle_migrations (hash, created_at) VALUES ($1, $2)",
                hashlib.sha256(raw).hexdigest(),
                entry["when"],
            )
    await connection.close()


asyncio.run(main(Path(sys.argv[1])))
