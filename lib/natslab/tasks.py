"""Tasks that are waited for, however their waiting ends."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any


async def together[T](work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results, in order. The first error ends the others and is raised when they have ended.

    `asyncio.gather` does not: after an error the others go on, after a cancel they may still tidy up.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def by_itself[T](work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """A task that nobody need wait for: asyncio does not tell, in some later cell, that it failed."""
    task = asyncio.ensure_future(work)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task


async def to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Wait for `work`, which a cancel that comes meanwhile does not stop: it is waited for, 5 s."""
    task = by_itself(work)
    try:
        await asyncio.shield(task)
    finally:
        await asyncio.wait([task], timeout=5.0)
