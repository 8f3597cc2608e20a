"""Hold an embedded cluster until standard input ends: to other processes it is external.

    python tests/shared_cluster.py [--worker]

Prints one line of JSON: pid, folder, servers, monitors. With --left it only looks at the cluster
in $NATS_URL and fails when a stream is left there.
"""

import asyncio
import json
import os
import sys

import nats
from natslab import Lab


async def idle():
    import asyncio

    await asyncio.Event().wait()


async def left() -> None:
    nc = await nats.connect(os.environ["NATS_URL"].split(","))
    streams = [info.config.name for info in await nc.jetstream().streams_info()]
    await nc.close()
    if streams:
        sys.exit(f"streams are left on the shared cluster: {', '.join(streams)}")


async def main() -> None:
    lab = await Lab.start(kind="embedded", quiet=True)
    if "--worker" in sys.argv:
        lab.spawn(idle, "idle")
    told = {
        "pid": os.getpid(),
        "folder": str(lab.folder),
        "servers": lab.address["servers"],
        "monitors": [node.monitor for node in lab.cluster.nodes.values()],
    }
    print(json.dumps(told), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await lab.close(quiet=True)


asyncio.run(left() if "--left" in sys.argv else main())
