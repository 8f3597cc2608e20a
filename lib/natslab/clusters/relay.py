"""The network between two regions: a relay of TCP connections that delays, cuts and freezes.

A process of its own, because a busy cell would stall it in the kernel's event loop; a script with
no imports of ours, so that it starts at once, and runs in a container as it is. Its first argument
is the address that it listens on, the second a file with the doors of each link:

    {"eu-west": {"20010": "127.0.0.1:20004", ...}, ...}     link: {port: address it leads to}

Each line on standard input sets a link, {"link": "eu-west", "up": true, "frozen": false,
"delay": 0.02}, and is answered by an empty line once it holds. When the input ends, so does the relay.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

CHUNK = 65_536
IN_FLIGHT = 1_000  # chunks on their way in one direction: a sender that is faster has to wait


class Link:
    """What holds for all connections of one link."""

    def __init__(self) -> None:
        self.delay, self.up = 0.0, True
        self.flows = asyncio.Event()
        self.flows.set()
        self.ends: set[asyncio.StreamWriter] = set()

    def set(self, up: bool, frozen: bool, delay: float) -> None:
        """Cut is a reset of every connection; frozen keeps them, and what is sent on them."""
        self.delay, self.up = delay, up
        (self.flows.clear if frozen else self.flows.set)()
        if not up:
            for end in self.ends:
                end.transport.abort()

    async def serve(
        self, to: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """One connection from outside, led on to `to`."""
        ends = {writer}
        try:
            if not self.up:
                return
            host, port = to.rsplit(":", 1)
            there, to_there = await asyncio.open_connection(host, int(port))
            ends.add(to_there)
            self.ends |= ends
            if self.up:  # it may have been cut meanwhile
                await asyncio.gather(self.carry(reader, to_there), self.carry(there, writer))
        except OSError:
            pass  # nobody listens there, or one side is gone: the other learns it
        finally:
            self.ends -= ends
            for end in ends:
                end.transport.abort()

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Everything that is read arrives `delay` later, in order. Ends by OSError or at the end."""
        now = asyncio.get_running_loop().time
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(IN_FLIGHT)

        async def arrive() -> None:
            while True:
                due, data = await queue.get()
                if (wait := due - now()) > 0:
                    await asyncio.sleep(wait)
                await self.flows.wait()
                if not data:
                    writer.transport.abort()
                    return
                writer.write(data)
                await writer.drain()

        arrives = asyncio.create_task(arrive())
        try:
            while data := await reader.read(CHUNK):
                await queue.put((now() + self.delay, data))
            await queue.put((now() + self.delay, b""))
            await arrives
        finally:
            arrives.cancel()
            await asyncio.gather(arrives, return_exceptions=True)


async def main(listen: str, links: dict[str, dict[str, str]]) -> None:
    """Open all doors, say so, and do what standard input says."""
    held, doors = {name: Link() for name in links}, []
    for name, ports in links.items():
        for port, to in ports.items():
            # A task per connection: its errors are dealt with in `serve`.
            door = await asyncio.start_server(_door(held[name], to), listen, int(port))
            doors.append(door)
    _say()
    while line := await asyncio.to_thread(sys.stdin.readline):
        wish = json.loads(line)
        held[wish.pop("link")].set(**wish)
        _say()


def _door(link: Link, to: str) -> Any:
    def opened(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Any:
        return link.serve(to, reader, writer)

    return opened


def _say() -> None:
    print(flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], json.loads(Path(sys.argv[2]).read_text())))
