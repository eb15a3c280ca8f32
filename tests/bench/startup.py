"""From exec to the first answer on /health, against a bare aiohttp application; and from exec to READY.

    python tests/bench/startup.py [--rounds 15]

The first answer is any status (503 while starting). READY is the first 200, with 44 migrations applied already. The
bare application is `_bare_aiohttp.py`: aiohttp and one route. Reach: 250 ms where bare is 183 ms.
"""

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from _common import (
    HERE,
    Contestant,
    Sample,
    bench_server,
    clean_environment,
    compare,
    free_port,
    main,
    measured,
    orchestrator,
    orchestrator_environment,
    our_migrate,
    rounds_option,
    small_migrations,
    write_folder,
)

LIMIT_S = 30


def answer(port: int) -> bytes:
    """The answer to GET /health, empty while nobody listens."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as connection:
            connection.sendall(b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n")
            return connection.recv(65536)
    except OSError:
        return b""


def until(command: list[str], environment: dict[str, str], port: int, told: Callable[[bytes], bool]) -> Sample:
    """Seconds from exec to the answer that is waited for, and the process's CPU until then."""
    began = time.monotonic()
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while not told(answer(port)):
            if time.monotonic() > began + LIMIT_S or process.poll() is not None:
                raise SystemExit(f"no such answer from {command[-1]}")
            time.sleep(0.001)
        wall_s = time.monotonic() - began
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        cpu_s = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return Sample(wall_s, cpu_s, int(fields[21]) * os.sysconf("SC_PAGE_SIZE"))
    finally:
        process.terminate()
        process.wait()


async def bench() -> None:
    options = rounds_option(__doc__, 15)
    async with bench_server() as (server, scratch):
        folder = write_folder(scratch / "small", small_migrations(44))
        url = await server.create()
        await asyncio.to_thread(measured, *our_migrate(folder)(url)[:2])
        await server.checkpoint()

        async def bare() -> Sample:
            port = free_port()
            command = [sys.executable, str(HERE / "_bare_aiohttp.py"), str(port)]
            return await asyncio.to_thread(until, command, clean_environment(), port, bool)

        def ours(told: Callable[[bytes], bool]) -> Callable[[], asyncio.Future[Sample]]:
            async def run() -> Sample:
                port = free_port()
                environment = orchestrator_environment(
                    DATABASE_URL=url, MIGRATIONS_DIR=str(folder), HOST="127.0.0.1", PORT=str(port)
                )
                return await asyncio.to_thread(until, orchestrator("serve"), environment, port, told)

            return run

        sides = [
            Contestant("bare aiohttp: first answer", bare),
            Contestant("orchestrator serve: first answer", ours(bool)),
            Contestant("orchestrator serve: READY", ours(lambda told: told.startswith(b"HTTP/1.0 200"))),
        ]
        await compare("exec to answer", sides, rounds=options.rounds)


main(bench)
