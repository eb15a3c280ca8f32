"""`_http_load.py <port> <connections> <seconds>`: GET /health as fast as it is answered; prints JSON with the count."""

import asyncio
import json
import sys
import time

REQUEST = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


async def ask(port: int, until: float) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    count = 0
    while time.monotonic() < until:
        writer.write(REQUEST)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        await reader.readexactly(length)
        count += 1
    writer.close()
    return count


async def main() -> None:
    port, connections, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    began = time.monotonic()
    counts = await asyncio.gather(*(ask(port, began + seconds) for _ in range(connections)))
    print(json.dumps({"requests": sum(counts), "seconds": time.monotonic() - began}))


asyncio.run(main())
