"""Batches in the raw protocol, and crowds: they store all, say what went wrong, and count what they cost."""

import nats
import pytest
from nats.errors import NoRespondersError
from nats.js.errors import BadRequestError
from natslab import Lab, batches, measure, settled, until
from natslab.crowd import Crowd, busy, memory


@pytest.mark.parametrize("n", [1, 2, 3, 1000])
async def test_an_atomic_batch_is_stored(lab: Lab, n: int) -> None:
    await stores(lab, f"ATOMIC_{n}", batches.atomic, n)


@pytest.mark.parametrize("n", [2, 3, 499, 500, 501, 1000, 1001, 5000])
async def test_a_fast_batch_is_stored(lab: Lab, n: int) -> None:
    await stores(lab, f"FAST_{n}", batches.fast, n)


async def stores(lab: Lab, stream: str, batch, n: int) -> None:
    nc = await nats.connect(**lab.options)
    js, subject = nc.jetstream(), f"{stream}.x"
    allow = {"allow_atomic": True, "allow_batched": True}
    await js.add_stream(name=stream, subjects=[f"{stream}.*"], description=lab.mark, **allow)
    await settled(nc, subject)
    assert await batch(nc, subject, [b"%d" % i for i in range(n)]) == n
    rows = await measure.stored(nc, stream)
    assert [row.data for row in rows] == [b"%d" % i for i in range(n)]
    assert [row.sequence for row in rows] == [*range(1, n + 1)]
    await js.delete_stream(stream)
    await nc.close()


@pytest.mark.parametrize("batch", [batches.atomic, batches.fast])
async def test_a_batch_that_cannot_be_stored_says_why(lab: Lab, batch) -> None:
    nc = await nats.connect(**lab.options)
    js = nc.jetstream()
    await js.add_stream(name="NO_BATCHES", subjects=["nobatch.*"], description=lab.mark)
    await settled(nc, "nobatch.x")
    with pytest.raises(BadRequestError):
        await batch(nc, "nobatch.x", [b""] * 5)
    with pytest.raises(NoRespondersError):
        await batch(nc, "nobody.listens", [b""] * 5)
    for n in (0, 1001) if batch is batches.atomic else (0, 1):
        with pytest.raises(ValueError, match="batch has"):
            await batch(nc, "nobatch.x", [b""] * n)
    assert await measure.stored(nc, "NO_BATCHES") == []
    await js.delete_stream("NO_BATCHES")
    await nc.close()


async def test_a_crowd_counts_what_it_got_and_cost(lab: Lab) -> None:
    nc = await nats.connect(**lab.options)
    crowd = Crowd(lab.same_server(nc), ["crowd.a", "crowd.b"])
    await crowd.grow(5)
    await crowd.grow(10)
    await nc.publish("crowd.a", b"")
    await until(lambda: crowd.ticks == 5, what="each second one to hear it")
    used = crowd.used()
    assert used["open"] == 10 and used["ticks"] == 5 and used["seconds"] > 0
    assert not crowd.told
    assert busy() > 0 and await memory(lab) > 1_000_000
    await crowd.close()
    assert all(client.is_closed for client in crowd.open)
    await nc.close()
