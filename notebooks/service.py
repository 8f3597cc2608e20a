"""A NATS service that ends well, in plain nats-py: copy this file into your own project.

Lesson 03 explains it. The workers of the lessons after it import it.
"""

import asyncio
import logging
import random
import signal
import time

import nats
from nats.errors import Error
from nats.micro.request import ServiceError

log = logging.getLogger("service")


class Service:
    """A connection, what it answers, and an end.

    >>> desk = Service("desk")
    >>> nc = await desk.connect(servers="nats://127.0.0.1:4222")
    >>> await desk.answer("price.get", look_up, queue="desks")
    >>> raise SystemExit(await desk.run())
    """

    def __init__(self, name, in_hand=1, deadline=30.0, grace=10.0):
        self.name = name
        self.slots = asyncio.Semaphore(in_hand)  # messages that are worked on at once
        self.deadline = deadline  # seconds for one message: nobody waits any longer
        self.grace = grace  # seconds to finish after SIGTERM
        self.stopping = asyncio.Event()  # begin nothing new
        self.broken = asyncio.Event()  # this process is of no use any more
        self.subs, self.tasks = [], set()

    async def connect(self, **options):
        """As `nats.connect`. It looks for a server for ever, unless `max_reconnect_attempts` says less."""

        async def failed(error):
            log.warning("%s: %r", self.name, error)

        async def lost():
            if not self.stopping.is_set():  # then it is our own close
                log.warning("%s: the server is gone", self.name)

        async def found():
            log.warning("%s: back on a server", self.name)

        async def closed():
            self.broken.set()

        defaults = {"name": self.name, "max_reconnect_attempts": -1, "error_cb": failed}
        callbacks = {"disconnected_cb": lost, "reconnected_cb": found, "closed_cb": closed}
        self.nc = await nats.connect(**defaults | options | callbacks)
        return self.nc

    async def answer(self, subject, handler, queue=""):
        """Answer each message with what `await handler(msg)` returns; with nothing if that is None."""

        async def take(msg):
            await self.slots.acquire()  # none is free: the next ones wait in the subscription
            task = self.spawn(self._handle(msg, handler))
            task.add_done_callback(lambda _: self.slots.release())  # however it ends

        self.subs.append(await self.nc.subscribe(subject, queue=queue, cb=take))
        await self.nc.flush()

    async def _handle(self, msg, handler):
        try:
            async with asyncio.timeout(self.deadline):
                await self._reply(msg, await handler(msg))
        except asyncio.CancelledError:
            if asyncio.current_task().cancelling():
                raise  # the service has run out of time
            await self._refuse(msg, 500, "cancelled")
        except ServiceError as no:
            await self._refuse(msg, no.code, no.description)
        except Exception as error:  # a bad message must not end the service
            log.exception("%s: a message on %s failed", self.name, msg.subject)
            await self._refuse(msg, 500, type(error).__name__)

    async def _reply(self, msg, data, headers=None):
        if msg.reply and data is not None:
            await self.nc.publish(msg.reply, data, headers=headers)

    async def _refuse(self, msg, code, why):
        headers = {
            "Nats-Service-Error-Code": str(code),
            "Nats-Service-Error": " ".join(str(why).split()),
        }
        await self._reply(msg, b"", headers)

    def spawn(self, coroutine):
        """Run it beside the rest. One that fails ends the service: better gone than deaf."""
        task = asyncio.create_task(coroutine)
        self.tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task):
        self.tasks.discard(task)
        end = asyncio.CancelledError() if task.cancelled() else task.exception()
        if end and not (task.cancelled() and self.stopping.is_set()):
            log.error("%s: ended by %r", self.name, end)
            self.broken.set()

    async def run(self):
        """Serve until SIGTERM, or until nothing can be served any more. Returns the exit code."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.stopping.set)
        ends = [asyncio.create_task(event.wait()) for event in (self.stopping, self.broken)]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        [end.cancel() for end in ends]
        self.stopping.set()
        try:
            async with asyncio.timeout(self.grace):
                await asyncio.gather(*(sub.drain() for sub in self.subs))  # no more comes in
                while self.tasks:
                    await asyncio.wait(self.tasks)
                failed = self.broken.is_set()
                # The last answers go out. A drain waits for what a failed task has pulled, and is
                # not ended by a cancel: so in a task of its own.
                await (self.nc.flush(1) if failed else asyncio.shield(self.nc.drain()))
        except (TimeoutError, Error) as error:
            log.error("%s: did not finish: %r", self.name, error)
            failed = True
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.nc.close()
        return int(failed)


async def retry(nc, call, *can_pass, deadline=10.0, pause=0.05):
    """Await `call()` until it succeeds. Only an error of `can_pass` is worth another try.

    The pause doubles, up to 2 s, and is cut by chance, so that many callers do not come back at one
    moment. After `deadline` seconds the last error comes out; any other error does at once.
    """
    end = time.monotonic() + deadline
    while True:
        known = nc.last_error
        try:
            return await call()
        except can_pass:
            if nc.last_error is not known and "permissions violation" in str(nc.last_error):
                raise nc.last_error from None  # denied: the server told it aside
            if time.monotonic() + pause > end:
                raise
        await asyncio.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(2 * pause, 2.0)
