"""What a lesson does to the compose cluster: kill, pause, cut, restart, and taking turns."""

import asyncio
import select
import time
from pathlib import Path

import helpers
import nats
import pytest
from natslab import Lab, LabError, until
from natslab.clusters.turns import Turns

pytestmark = pytest.mark.compose

TURN = """
import asyncio, sys
from natslab.clusters.turns import Turns

async def main():
    turns = Turns()
    {take}
    print("held", flush=True)
    sys.stdin.read()

asyncio.run(main())
"""


@pytest.fixture
async def compose_lab(compose: None, cache: Path) -> Lab:
    lab = await Lab.start(lesson=99, kind="compose", quiet=True)
    yield lab
    await lab.close(quiet=True)


async def test_it_is_found_without_asking(compose: None, cache: Path) -> None:
    lab = await Lab.start(quiet=True)
    assert (lab.kind, lab.nodes) == ("compose", ["n1", "n2", "n3"])
    await lab.close(quiet=True)


@pytest.mark.parametrize(
    ("fault", "cure"), [("kill", "restart"), ("pause", "resume"), ("cut", "heal")]
)
async def test_a_fault_is_seen_and_mended(compose_lab: Lab, fault: str, cure: str) -> None:
    js = (await nats.connect(**compose_lab.options)).jetstream()
    await js.add_stream(
        name="VERBS", subjects=["verbs"], num_replicas=3, description=compose_lab.mark
    )
    leader = await compose_lab.leader_of("VERBS")
    follower = next(node for node in compose_lab.nodes if node != leader)
    victim = leader if fault == "kill" else follower  # one election is enough: each takes 5 s
    broken = await getattr(compose_lab, fault)(victim)
    assert broken.verb == fault
    assert victim in await compose_lab.cluster.unhealthy()
    survivors = [n.url for n in compose_lab.cluster.nodes.values() if n.name != victim]
    nc = await nats.connect(**compose_lab.options | {"servers": survivors})

    async def stored() -> bool:
        try:
            return bool((await nc.jetstream(timeout=1).publish("verbs", b"")).seq)
        except (TimeoutError, nats.errors.Error):
            return False

    await until(stored, timeout=30, what="a leader")
    await getattr(compose_lab, cure)(victim)
    await compose_lab.wait_until_healthy()
    assert [event.verb for event in compose_lab.events] == [fault, cure]
    await nc.close()
    await js._nc.close()


async def test_an_interrupted_drill_is_mended_by_the_next_lesson(
    compose: None, cache: Path
) -> None:
    lab = await Lab.start(kind="compose", quiet=True)
    await lab.kill("n2")
    lab.cluster.turns.end()  # as when its kernel dies
    Lab._open = None
    lab.cluster.turns = Turns()
    again = await Lab.start(kind="compose", quiet=True)
    assert await again.cluster.unhealthy() == []
    await again.close(quiet=True)
    await lab.close(quiet=True)


async def test_two_of_three_dead_is_one_sentence(compose_lab: Lab) -> None:
    await compose_lab.kill("n1")
    await compose_lab.kill("n3")
    compose_lab.cluster.turns.over()
    start = time.monotonic()
    with pytest.raises(LabError, match=r"no quorum: n1, .* Start the missing nodes"):
        await type(compose_lab.cluster).join()
    assert time.monotonic() - start < 15
    await compose_lab.restart("n1")
    await compose_lab.restart("n3")
    await compose_lab.wait_until_healthy()


async def test_only_marked_streams_are_deleted(compose: None, cache: Path) -> None:
    nc = await nats.connect("nats://127.0.0.1:4221")
    js = nc.jetstream()
    await js.add_stream(name="THEIRS", subjects=["theirs"])
    lab = await Lab.start(lesson=99, kind="compose", quiet=True)
    await js.add_stream(name="OURS", subjects=["ours"], description=lab.mark)
    await lab.close(quiet=True)
    assert [info.config.name for info in await js.streams_info()] == ["THEIRS"]
    await js.delete_stream("THEIRS")
    await nc.close()


def test_a_drill_waits_for_running_cells_and_cells_for_a_drill(cache: Path) -> None:
    sharing, drilling = (
        TURN.format(take="turns.before_cell()"),
        TURN.format(take="await turns.drill()"),
    )
    with helpers.python("-c", sharing, NATSLAB_CACHE=str(cache)) as cell:
        assert cell.stdout.readline() == "held\n"
        with (
            helpers.python("-c", sharing, NATSLAB_CACHE=str(cache)) as other,
            helpers.python("-c", drilling, NATSLAB_CACHE=str(cache)) as drill,
        ):
            assert other.stdout.readline() == "held\n", "two lessons run cells side by side"
            other.kill()
            assert not select.select([drill.stdout], [], [], 1.0)[0], "the drill did not wait"
            cell.kill()  # a dead kernel gives its turn back
            assert drill.stdout.readline() == "held\n"


def test_a_lesson_that_holds_on_too_long_is_named(cache: Path, monkeypatch) -> None:
    monkeypatch.setattr("natslab.clusters.turns.PATIENCE", 0.2)
    monkeypatch.setattr("natslab.clusters.turns.CACHE", cache)
    first, second = Turns(), Turns()
    asyncio.run(first.drill())
    with pytest.raises(LabError, match="restart or close its kernel"):
        second.before_cell()
    first.end()
    second.before_cell()
    second.end()
