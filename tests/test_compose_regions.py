"""The two regions of `infra/compose.yaml`: containers, and the relay that is the link between them."""

import signal
import socket
from pathlib import Path

import helpers
import nats
import pytest
from nats.js.api import ExternalStream, StreamSource
from natslab import Lab, LabError, settled, until
from natslab.clusters import compose, compose_cli
from natslab.clusters.compose_cli import REGION_PORTS, ComposeError

pytestmark = pytest.mark.containers

TWO = {"us-east": 3, "eu-west": 3}


@pytest.fixture
async def world(regions: None, cache: Path) -> Lab:
    lab = await Lab.start(lesson=99, regions=TWO, quiet=True)
    yield lab
    await lab.close(quiet=True)


async def test_a_lab_with_regions_finds_them_and_no_other_does(world: Lab, cache: Path) -> None:
    assert (world.kind, world.nodes) == ("compose", list(REGION_PORTS))
    assert list(world.regions) == [*TWO] and list(world.links) == ["eu-west"]
    assert await world.cluster.unhealthy() == []
    assert {row["node"] for row in compose_cli.status()} == {*REGION_PORTS}
    assert not await compose.is_up()
    await world.close(quiet=True)
    for other in ({}, {"regions": {"us-east": 3, "ap-south": 3}}, {"regions": TWO, "secure": True}):
        lab = await Lab.start(**other, quiet=True)
        assert lab.kind == "embedded", other
        await lab.close(quiet=True)


async def test_a_copy_over_the_link_and_what_is_done_to_it(world: Lab) -> None:
    """Delayed, cut, healed, frozen: the verbs of processes, and only our streams are deleted."""
    us, eu = [await nats.connect(**place.options) for place in world.regions.values()]
    link = world.links["eu-west"]
    await us.jetstream().add_stream(
        name="ORD", subjects=["ord.us.*"], num_replicas=3, description=world.mark
    )
    origin = StreamSource(name="ORD", external=ExternalStream(api="$JS.us-east.API"))
    await eu.jetstream().add_stream(
        name="COPY", mirror=origin, num_replicas=3, description=world.mark
    )
    await eu.jetstream().add_stream(name="OTHERS", subjects=["ord.eu.*"])
    await settled(us, "ord.us.1")

    async def copied(count: int) -> None:
        async def all_there() -> bool:
            return (await eu.jetstream().stream_info("COPY")).state.messages == count

        await until(all_there, 20, f"{count} in the copy")

    await us.jetstream().publish("ord.us.1", b"")
    await copied(1)
    assert await link.delay(20)
    assert 0.04 <= await link.round_trip() < 1
    assert await link.cut() and await link.is_down()
    assert (await us.jetstream().publish("ord.us.2", b"")).domain == "us-east"
    assert (await eu.jetstream().stream_info("COPY")).state.messages == 1
    assert await link.heal()
    await copied(2)
    assert await link.freeze()
    await us.jetstream().publish("ord.us.3", b"")
    assert await link.heal() and link.ms == 20
    await copied(3)

    killed = [await world.kill(node) for node in world.regions["us-east"].nodes]
    assert all(killed)
    assert (await eu.jetstream().publish("ord.eu.1", b"")).domain == "eu-west"
    await world.close(quiet=True)  # starts what is down and lets the link pass
    after = await Lab.start(lesson=98, regions=TWO, quiet=True)
    eu = await nats.connect(**after.regions["eu-west"].options)
    assert [info.config.name for info in await eu.jetstream().streams_info()] == ["OTHERS"]
    await eu.jetstream().delete_stream("OTHERS")
    assert await after.links["eu-west"].round_trip() < 0.04
    await after.close(quiet=True)


async def test_a_link_that_a_killed_kernel_left_cut_is_mended(regions: None, cache: Path) -> None:
    cut = (
        "import asyncio, os, signal\nfrom natslab import Lab\n"
        "async def main():\n"
        f"    lab = await Lab.start(regions={TWO}, quiet=True)\n"
        "    await lab.links['eu-west'].cut()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    with helpers.python("-c", cut, NATSLAB_CACHE=str(cache)) as kernel:
        assert kernel.wait(30) == -signal.SIGKILL
    lab = await Lab.start(regions=TWO, quiet=True)
    assert await lab.links["eu-west"].is_up()
    await lab.close(quiet=True)


async def test_a_relay_that_is_gone_is_one_sentence_and_up_mends_it(world: Lab) -> None:
    await compose.docker("kill", compose.container(compose_cli.WAN))
    with pytest.raises(LabError, match="does not answer: run `natslab up --regions`"):
        await world.links["eu-west"].delay(5)
    compose_cli.up(regions=True)
    await world.links["eu-west"].reset()
    await world.links["eu-west"].stands()


async def test_what_fails_beside_a_cluster_leaves_the_cluster(docker_engine: None) -> None:
    """A port of the regions is taken: n1, n2, n3 stay up, and no container of a region is left."""
    compose_cli.down()
    compose_cli.up()
    try:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", REGION_PORTS["eu-west-3"][0]))
            taken.listen()
            with pytest.raises(ComposeError, match="its regions 4231-4236"):
                compose_cli.up(regions=True)
        names = (await compose.docker("ps", "--all", "--format", "{{.Names}}")).split()
        assert sorted(names) == [compose.container(node) for node in compose_cli.PORTS]
    finally:
        compose_cli.down()
