"""Anything of yours may add jobs, in its own transaction: `DATABASE_URL=… python place_order.py Ada tea milk`."""

import asyncio
import os
import sys

import asyncpg
from my_app.jobs import Order

from orchestrator.jobs import enqueue


async def main() -> None:
    customer, *items = sys.argv[1:]
    connection = await asyncpg.connect(os.environ["DATABASE_URL"])
    try:
        job = await enqueue(connection, "order.place", Order(customer, items))
        print(job.id)
    finally:
        await connection.close()


asyncio.run(main())
