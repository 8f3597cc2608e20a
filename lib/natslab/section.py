"""One run of a section of a lesson: a second one starts from nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import nats.errors
from nats.aio.client import Client
from nats.aio.subscription import Subscription

from natslab.errors import LabError

if TYPE_CHECKING:
    from natslab.lab import Lab
    from natslab.workers import Worker


class Section:
    """What one run of a section uses and finds out; `await lab.begin("Its heading")` begins a run.

    Names are this run's own, so what an earlier run left listening hears nothing of it:

    >>> run.name("price.work")
    'price.work'        (whoever asks for it first; 'price.work_2' in the next run)

    Results are kept as attributes, each written once. A cell that was run already, or too early,
    therefore says so in one sentence instead of counting what another run has left:

    >>> run.start = time.monotonic()
    LabError: This cell was run already: begin again at the heading "Break it".
    """

    def __init__(self, lab: Lab, heading: str) -> None:
        # Not by __setattr__: these are not results.
        self.__dict__.update(
            {
                "_lab": lab,
                "_heading": heading,
                "_tasks": [],
                "_workers": [],
                "_kept": [],
                "_names": {},
            }
        )

    def name(self, word: str) -> str:
        """`word` for this run alone: a subject, a group, a stream, a bucket, a key.

        Whoever asks for a word first has it as it is, each other run of any section with a number.
        """
        if word not in self._names:
            number = self._lab.named[word] = self._lab.named[word] + 1
            self._names[word] = word if number == 1 else f"{word}_{number}"
        return str(self._names[word])

    def spawn(
        self, coroutine: Callable[..., Coroutine[Any, Any, Any]], name: str, *args: Any
    ) -> Worker:
        """Like `lab.spawn`; the worker is killed when the section is begun again."""
        worker: Worker = self._lab.spawn(coroutine, name, *args)
        self._workers.append(worker)
        return worker

    def task[T](self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run it beside the cells of the section; it is cancelled when the section is begun again."""
        task = asyncio.create_task(coroutine)
        self._tasks.append(task)
        return task

    def keep[T: (Client, Subscription)](self, handle: T) -> T:
        """A connection or a subscription that is closed when the section is begun again."""
        self._kept.append(handle)
        return handle

    def __setattr__(self, name: str, value: object) -> None:
        if hasattr(type(self), name):
            raise LabError(
                f'"{name}" is a word of the section itself: give the result another name.'
            )
        if name in self.__dict__:
            raise LabError(
                f'This cell was run already: begin again at the heading "{self._heading}".'
            )
        self.__dict__[name] = value

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)  # IPython asks for many such
        raise LabError(
            f'This run has no "{name}" yet: run the cells from the heading "{self._heading}" on, in order.'
        )

    async def end(self) -> None:
        """Cancel its tasks, kill its workers, close its connections."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5)
        for worker in self._workers:
            await asyncio.to_thread(worker.kill)
        for handle in self._kept:
            with suppress(TimeoutError, OSError, nats.errors.Error):
                async with asyncio.timeout(2):
                    await (handle.close() if isinstance(handle, Client) else handle.unsubscribe())
