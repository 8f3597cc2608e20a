"""What measuring costs a bare publish loop: run by hand, `python tests/bench_measure.py [pairs]`.

Each pair is 4,000 publishes of 100 B by a `for` loop and by a load maker, in turn and in one
process; told is the median of the pairs' ratios of the rates. A machine that does nothing else
gives steady numbers from about 30 pairs on.
"""

import asyncio
import statistics
import sys
import time

import nats
from natslab import Lab, measure

N = 4000


async def bare(call: measure.Call) -> float:
    """Calls per second of what a reader would write without the library."""
    start = time.perf_counter()
    for number in range(N):
        await call(number)
    return N / (time.perf_counter() - start)


async def counted(call: measure.Call) -> float:
    return await measure.throughput(call, N)


async def noted(call: measure.Call) -> float:
    return measure.per_second(await measure.one_by_one(call, N))


async def main(pairs: int) -> None:
    lab = await Lab.start(kind="embedded", quiet=True)
    nc = await nats.connect(**lab.options)

    async def publish(number: int) -> None:
        await nc.publish("bench", bytes(100))

    for way in (counted, noted):
        costs = []
        for pair in range(pairs):
            rates = {}
            for one in (bare, way)[:: 1 if pair % 2 else -1]:
                rates[one] = await one(publish)
                await nc.flush()
            costs.append(1 - rates[way] / rates[bare])
        print(f"{way.__name__}: {statistics.median(costs):.1%} slower than the bare loop")
    await nc.close()
    await lab.close(quiet=True)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 5))
