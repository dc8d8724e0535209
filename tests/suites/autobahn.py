"""autobahn.py echo: a WebSocket echo server on loopback; prints its port.
autobahn.py run URL CASE...: runs cases of the Autobahn test suite (* is a wildcard) against URL; prints the verdicts as JSON."""

import asyncio
import json
import logging
import sys


async def echo():
    from websockets.asyncio import messages
    from websockets.asyncio.server import serve

    # Some cases cut 4 MiB into pieces of 64 bytes.
    messages.MAX_FRAGMENTS = 1 << 20

    async def answer(socket):
        async for message in socket:
            await socket.send(message)

    # Cases send invalid frames on purpose, so their errors aren't logged.
    logging.getLogger("websockets").setLevel(logging.CRITICAL)
    async with serve(answer, "127.0.0.1", 0, max_size=None, ping_interval=None) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.get_running_loop().create_future()


async def run(url, *cases):
    from kosoku import FailureError, run_fuzzingclient

    try:
        results = await run_fuzzingclient(url, cases, concurrency=4)
    except FailureError as failure:
        results = failure.results
    json.dump([[result.case_id, result.behavior.value, result.behavior_close.value, result.result] for result in results], sys.stdout)


asyncio.run({"echo": echo, "run": run}[sys.argv[1]](*sys.argv[2:]))
