"""Two regions with a JetStream domain each, and the link between them: real servers, no root."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import helpers
import nats
import pytest
from nats.aio.client import Client
from nats.errors import NoRespondersError
from nats.js.api import ExternalStream, StreamSource
from nats.js.errors import NotFoundError
from natslab import Lab, LabError, judge, settled, until
from natslab.clusters import server
from natslab.clusters.links import Link
from natslab.judge import Trial

pytestmark = pytest.mark.servers
TWO = {"us-east": 3, "eu-west": 3}


@pytest.fixture
async def world(cache: Path) -> AsyncIterator[Lab]:
    lab = await Lab.start(kind="embedded", regions=TWO, quiet=True)
    yield lab
    await lab.close(quiet=True)
    assert helpers.nothing_left(cache)


@pytest.fixture
async def us(world: Lab) -> AsyncIterator[Client]:
    nc = await nats.connect(**world.regions["us-east"].options)
    yield nc
    await nc.close()


@pytest.fixture
async def eu(world: Lab) -> AsyncIterator[Client]:
    nc = await nats.connect(**world.regions["eu-west"].options)
    yield nc
    await nc.close()


async def messages(nc: Client, stream: str) -> int:
    return (await nc.jetstream().stream_info(stream)).state.messages


async def test_two_regions_over_one_link(world: Lab, us: Client, eu: Client) -> None:
    assert world.nodes == [f"{region}-{i}" for region in TWO for i in (1, 2, 3)]
    assert {r: place.nodes for r, place in world.regions.items()} == world.cluster.plan.regions
    assert world.options["servers"] == world.regions["us-east"].options["servers"]
    assert await world.cluster.unhealthy() == []
    link = world.links["eu-west"]
    assert await link.is_up()

    # Each region has a JetStream of its own; eu copies what is born in us.
    await us.jetstream().add_stream(name="ORD", subjects=["ord.us.*"], num_replicas=3)
    origin = StreamSource(name="ORD", external=ExternalStream(api="$JS.us-east.API"))
    await eu.jetstream().add_stream(name="COPY", mirror=origin, num_replicas=3)
    await eu.jetstream().add_stream(name="OWN", subjects=["ord.eu.*"], num_replicas=3)
    await settled(us, "ord.us.1", "ord.eu.2")
    await settled(eu, "ord.eu.1")
    assert (await us.jetstream().publish("ord.us.1", b"")).domain == "us-east"
    assert (await eu.jetstream().publish("ord.eu.1", b"")).domain == "eu-west"
    acked = await us.jetstream().publish("ord.eu.2", b"over the link")
    assert (acked.stream, acked.domain) == ("OWN", "eu-west")
    await until(lambda: copied(eu, 1), 15, "the first message in the copy")

    cut = await link.cut()
    assert cut and await link.is_down()
    for n in (2, 3, 4):  # both go on, nothing crosses
        assert (await us.jetstream().publish(f"ord.us.{n}", b"")).seq == n
        assert (await eu.jetstream().publish(f"ord.eu.{n}", b"")).domain == "eu-west"
    with pytest.raises(NoRespondersError):
        await us.request("ord.eu.5", b"")
    await asyncio.sleep(2)  # a leaf tries once a second, and must find no way around the relay
    assert await link.is_down()
    assert await messages(eu, "COPY") == 1

    healed = await link.heal()
    await until(lambda: copied(eu, 4), 15, "the rest in the copy")
    assert [(e.verb, e.node) for e in world.events] == [
        ("cut", "us-east/eu-west"),
        ("heal", "us-east/eu-west"),
    ]
    assert cut.at < healed.at


async def copied(eu: Client, count: int) -> bool:
    return await messages(eu, "COPY") == count


async def test_a_frozen_link_says_nothing_and_loses_nothing(
    world: Lab, us: Client, eu: Client
) -> None:
    link = world.links["eu-west"]
    heard = await eu.subscribe("news")
    await eu.flush()
    await until(lambda: crosses(us, heard), 5, "interest in news to cross the link")

    await link.freeze()
    assert not await link.is_down(), "both sides believe in it"
    assert not await link.is_up()
    await us.publish("news", b"held")
    await us.flush()
    with pytest.raises(TimeoutError):
        await heard.next_msg(timeout=0.5)
    await link.heal()
    assert (await heard.next_msg(timeout=5)).data == b"held"


async def crosses(us: Client, heard: nats.aio.subscription.Subscription) -> bool:
    await us.publish("news", b"test")
    await us.flush()
    try:
        await heard.next_msg(timeout=0.2)
    except TimeoutError:
        return False
    return True


async def test_a_section_heals_what_the_one_before_has_left(world: Lab, us: Client) -> None:
    link = world.links["eu-west"]
    await link.delay(10)
    await world.begin("Cut the link")
    await link.cut()
    await world.begin("Cut the link")
    assert await link.is_up() and (link.up, link.frozen) == (True, False)
    assert await link.round_trip() >= 0.02, "the delay stays"
    await link.freeze()
    await world.begin("Another")
    assert await link.is_up()
    await link.cut()
    await asyncio.gather(*map(world.kill, world.regions["us-east"].nodes))
    await world.begin("Cut the link")
    assert await world.cluster.unhealthy() == [] and await link.is_up()
    healed = len(world.events)
    await world.begin("Cut the link")
    assert len(world.events) == healed, "nothing to heal"


async def test_an_interrupted_verb_is_made_good(world: Lab) -> None:
    link = world.links["eu-west"]
    for verb in (link.cut, link.freeze, link.heal):
        for seconds in (0.0, 0.002, 0.02):
            task = asyncio.create_task(verb())
            await asyncio.sleep(seconds)
            task.cancel()
            await asyncio.wait([task])
            await world.begin("Cut the link")
            assert await link.is_up()


async def test_streams_of_another_region(world: Lab, us: Client, eu: Client) -> None:
    here, there = us.jetstream(), eu.jetstream()
    for js in (here, there):
        await js.add_stream(name="S", subjects=["s"], num_replicas=3, description=world.mark)
    assert await world.leader_of("S") in world.regions["us-east"].nodes
    leader = await world.leader_of("S", region="eu-west")
    assert leader in world.regions["eu-west"].nodes
    assert await world.move_leader("S", leader, region="eu-west") != leader
    await world.delete_stream("S", region="eu-west")
    assert not world.cluster.has_files_of("S", "eu-west") and world.cluster.has_files_of("S")
    with pytest.raises(NotFoundError):
        await there.stream_info("S")
    assert (await here.stream_info("S")).config.name == "S", (
        "that of the first region is left alone"
    )
    await world.delete_stream("S")
    with pytest.raises(NotFoundError):
        await here.stream_info("S")
    await there.add_stream(name="THEIRS", subjects=["theirs"])
    with pytest.raises(LabError, match="is not of this lesson"):
        await world.delete_stream("THEIRS", region="eu-west")
    for call in (world.delete_stream, world.leader_of):
        with pytest.raises(LabError, match="no region 'mars'; there are: us-east, eu-west"):
            await call("S", region="mars")


async def test_a_try_leaves_no_stream_in_any_region(
    world: Lab, us: Client, eu: Client, capsys: pytest.CaptureFixture
) -> None:
    async def makes_two(answer: object, trial: Trial) -> None:
        for place in world.regions.values():
            nc = await trial.connect(**place.options)
            name = trial.name("TRIED")
            await nc.jetstream().add_stream(name=name, subjects=[name])
            assert (await nc.jetstream().publish(name, b"")).domain == place.name

    await judge("1. two regions", 7, makes_two)
    assert capsys.readouterr().out == "✔ 1. two regions: solved\n"
    for nc in (us, eu):
        assert await nc.jetstream().streams_info() == []


async def quickest(link: Link) -> float:
    """Of five round trips, so that one stall of the machine does not count as a delay."""
    return min([await link.round_trip() for _ in range(5)])


async def test_a_delay_counts_each_way(world: Lab) -> None:
    link = world.links["eu-west"]
    assert await quickest(link) < 0.15
    await link.delay(150)
    assert await link.round_trip() >= 0.3
    await link.cut()
    await link.heal()
    assert await link.round_trip() >= 0.3, "the delay stays"
    await link.delay(0)
    assert await quickest(link) < 0.3
    with pytest.raises(LabError, match="0 to 10,000 ms each way, not -1"):
        await link.delay(-1)


async def test_the_link_does_not_stall_with_the_kernel(world: Lab) -> None:
    """A busy cell, as it were: what is on its way arrives meanwhile."""

    async def wait_for_it(options: dict, there: dict) -> None:
        import asyncio

        import nats

        us, eu = await nats.connect(**options), await nats.connect(**there)

        async def answer(msg: nats.aio.msg.Msg) -> None:
            await msg.respond(b"")

        await eu.subscribe("ping", cb=answer)
        while True:
            try:
                await us.request("ping", b"", timeout=1)
                print("crossed", flush=True)
            except (TimeoutError, nats.errors.NoRespondersError):
                pass
            await asyncio.sleep(0.01)

    here, there = (world.regions[region].address for region in TWO)
    worker = world.spawn(wait_for_it, "crossing", here, there)
    await until(lambda: worker.log.read_text().count("crossed"), 15, "the first crossing")
    before = worker.log.read_text().count("crossed")
    time.sleep(0.7)  # noqa: ASYNC251 (this is the stall)
    assert worker.log.read_text().count("crossed") >= before + 5
    worker.kill()


async def test_a_node_and_then_a_region_is_killed(world: Lab, eu: Client) -> None:
    await world.kill("us-east-1")
    link = world.links["eu-west"]
    await until(link.is_up, 10, "the link: two nodes of the hub are enough")
    await world.restart("us-east-1")
    await asyncio.gather(*map(world.kill, world.regions["us-east"].nodes))
    await until(link.is_down, 5, "the outer nodes to notice")
    await eu.jetstream().add_stream(name="S", subjects=["s"], num_replicas=3)
    await settled(eu, "s")
    assert (await eu.jetstream().publish("s", b"")).seq == 1
    await asyncio.gather(*map(world.restart, world.regions["us-east"].nodes))
    await world.wait_until_healthy()
    assert await link.heal(), "the same word waits for the link"


async def test_a_relay_that_died_is_one_sentence(world: Lab) -> None:
    world.cluster.relay.process.kill()
    world.cluster.relay.process.wait()
    with pytest.raises(LabError, match="The relay between the regions is gone"):
        await world.links["eu-west"].cut()


async def test_three_regions_hang_on_the_first(cache: Path) -> None:
    lab = await Lab.start(kind="embedded", regions={**TWO, "ap-south": 3}, quiet=True)
    assert list(lab.links) == ["eu-west", "ap-south"]
    await lab.links["eu-west"].cut()
    assert await lab.links["ap-south"].is_up(), "one link is cut, not the other"
    await lab.close(quiet=True)
    assert helpers.nothing_left(cache)
    with pytest.raises(LabError, match="The relay between the regions is gone"):
        await lab.links["ap-south"].cut()


async def test_the_relay_ends_with_its_kernel(cache: Path) -> None:
    script = cache / "holder.py"
    script.write_text(
        "import asyncio\nfrom natslab import Lab\n"
        "async def main():\n"
        f"    await Lab.start(kind='embedded', regions={TWO})\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    with helpers.python("-u", script, NATSLAB_CACHE=str(cache)) as holder:
        line = await asyncio.to_thread(holder.stdout.readline)
        assert line == "lab ready: 6 nodes, JetStream on (embedded)\n"
        assert sum("relay.py" in words for words in helpers.processes_in(cache)) == 1
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        await until(lambda: helpers.nothing_left(cache), 10, "everything to be gone")


async def test_gateways(cache: Path) -> None:
    lab = await Lab.start(
        kind="embedded", regions={"us-east": 3, "eu-west": 1}, joined="gateway", quiet=True
    )
    assert lab.links == {} and list(lab.regions) == ["us-east", "eu-west"]
    us, eu = [await nats.connect(**place.options) for place in lab.regions.values()]

    async def answer(msg: nats.aio.msg.Msg) -> None:
        await msg.respond(b"")

    async def answered() -> bool:
        try:
            await us.request("far", b"", timeout=0.5)
        except (TimeoutError, NoRespondersError):
            return False
        return True

    await eu.subscribe("far", cb=answer)
    await eu.flush()
    await until(answered, 15, "an answer through the gateway")
    gateways = await server.ask(f"{lab.cluster.nodes['us-east-1'].monitor}/gatewayz")
    assert list(gateways["outbound_gateways"]) == ["eu-west"]
    for nc in (us, eu):
        await nc.close()
    await lab.close(quiet=True)
    assert helpers.nothing_left(cache)


async def test_another_cluster_without_regions_is_passed_over(
    external: dict, cache: Path, capsys: pytest.CaptureFixture
) -> None:
    lab = await Lab.start(regions=TWO)
    assert lab.kind == "embedded"
    assert not {*lab.options["servers"]} & {*external["servers"]}
    assert capsys.readouterr().out.startswith(
        "lab ready: 6 nodes, JetStream on (embedded: the external cluster has no regions)\n"
    )
    assert await lab.kill("us-east-1"), "its drills are shown"
    await lab.close(quiet=True)


async def test_regions_that_cannot_be_are_refused(cache: Path) -> None:
    with pytest.raises(LabError, match="needs three nodes"):
        await Lab.start(kind="embedded", regions={"us-east": 3, "eu-west": 2})
    assert helpers.nothing_left(cache)
