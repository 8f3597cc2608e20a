"""Tasks that are waited for, however their waiting ends."""

import asyncio
import gc

import pytest
from natslab.tasks import to_its_end


async def test_what_fails_after_a_cancel_says_nothing_later() -> None:
    """asyncio tells of an error that nobody took when it is collected: in somebody else's cell."""
    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, about: told.append(about))
    ended = asyncio.Event()

    async def fails() -> None:
        await asyncio.sleep(0.05)
        ended.set()
        raise ConnectionError

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await to_its_end(fails())
    assert ended.is_set(), "it was waited for"
    gc.collect()
    assert not told
    with pytest.raises(ConnectionError):
        await to_its_end(fails())
