"""`orchestrator healthcheck` against a service that is READY: wall and CPU, beside what starts faster or is often used.

    python tests/bench/healthcheck.py [--rounds 31]

Reach: 60 ms. `python -c pass` is the floor for anything in Python.
"""

import asyncio
import subprocess
import sys
import time

from _common import (
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
    rounds_option,
)

LIMIT_S = 30


def ended_with(command: list[str], environment: dict[str, str]) -> int:
    return subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False).returncode


async def bench() -> None:
    options = rounds_option(__doc__, 31)
    async with bench_server() as (server, _):
        url, port = await server.create(), free_port()
        environment = orchestrator_environment(DATABASE_URL=url, HOST="127.0.0.1", PORT=str(port))
        service = await asyncio.create_subprocess_exec(
            *orchestrator("serve"), env=environment, stderr=asyncio.subprocess.DEVNULL
        )
        try:
            command = orchestrator("healthcheck")
            deadline = time.monotonic() + LIMIT_S
            while (await asyncio.to_thread(ended_with, command, environment)) != 0:
                if time.monotonic() > deadline:
                    raise SystemExit("the service did not get READY")

            def side(name: str, command: list[str]) -> Contestant:
                async def run() -> Sample:
                    env = environment if name.startswith("orch") else clean_environment()
                    return await asyncio.to_thread(measured, command, env)

                return Contestant(name, run)

            sides = [
                side("python -c pass", [sys.executable, "-c", "pass"]),
                side("orchestrator healthcheck", command),
                side("python -c 'import urllib.request'", [sys.executable, "-c", "import urllib.request"]),
            ]
            await compare("healthcheck of a READY service", sides, rounds=options.rounds)
        finally:
            service.terminate()
            await service.wait()


main(bench)
