"""The handlers of a project of your own: named by JOBS=my_app.jobs, imported when the migrations are done."""

import msgspec

from orchestrator.jobs import Context, enqueue, job


class Order(msgspec.Struct):
    customer: str
    items: list[str]


@job("order.place", retries=3, timeout_s=30)
async def place_order(ctx: Context, order: Order) -> dict:
    """Store an order, and queue its confirmation in the same transaction."""
    async with ctx.pool.acquire() as connection, connection.transaction():
        order_id = await connection.fetchval(
            "INSERT INTO orders (customer, items) VALUES ($1, $2) RETURNING id", order.customer, order.items
        )
        await enqueue(connection, "order.confirm", {"order_id": order_id}, dedupe_key=str(order_id))
    ctx.log.info("order.placed", order_id=order_id)
    return {"order_id": order_id}


class Confirmation(msgspec.Struct):
    order_id: int


@job("order.confirm", retries=10, concurrency=2)
async def confirm(ctx: Context, payload: Confirmation) -> None:
    """Mark an order as confirmed; at most two run at a time, over all replicas."""
    await ctx.progress(0, 1, "confirming")
    await ctx.pool.execute("UPDATE orders SET confirmed = true WHERE id = $1", payload.order_id)
    await ctx.progress(1, 1)


@job("orders.forget", schedule="0 3 * * *", timezone="Europe/Berlin")
async def forget(ctx: Context, payload: dict) -> None:
    """Delete old orders every night."""
    await ctx.pool.execute("DELETE FROM orders WHERE placed_at < now() - interval '1 year'")
