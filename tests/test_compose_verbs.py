"""What a lesson does to the compose cluster: kill, pause, cut, restart, and taking turns."""

import asyncio
import fcntl
import select
import time
from functools import partial
from pathlib import Path

import helpers
import kernel
import nats
import pytest
from natslab import Lab, LabError, until
from natslab.clusters import compose_cli
from natslab.clusters.compose import container, docker
from natslab.clusters.turns import STOPPED, Turns, lock_file

pytestmark = pytest.mark.containers
seldom = partial(pytest.param, marks=pytest.mark.nightly)

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

TAKES_TURNS = """
import asyncio
from natslab import cells
from natslab.clusters import turns

cells.explain_errors()
cells.runs.begin("Break it")
turns.PATIENCE = 1.5
mine = turns.Turns()
mine.each_cell()
"""

DRILLS = """
import asyncio, sys
from natslab import Lab

async def main():
    lab = await Lab.start(lesson=99, kind="compose", quiet=True)
    await lab.cluster.turns.drill()
    print("held", flush=True)
    await asyncio.sleep(1)  # the cell waits by now
    await lab.kill(sys.argv[1])
    await lab.restart(sys.argv[1])
    assert not lab.cluster.turns.drilling
    print("over", flush=True)
    await lab.close(quiet=True)

asyncio.run(main())
"""

BEGUN = """
import nats
from natslab import Lab, settled

lab = await Lab.start(lesson=98, quiet=True)
nc = await nats.connect(**lab.options)
answerer = await nats.connect(**lab.other_server(nc))

async def answer(msg):
    await msg.respond(b"answered")

async def ask():
    return (await nc.request("what", timeout=3)).data.decode()

await answerer.subscribe("what", cb=answer)
await settled(answerer, "what")
print(lab.node_of(nc))
"""


@pytest.fixture
def own_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The lock is elsewhere than that of the lessons of this machine."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return lock_file()


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
    first = await nats.connect(**compose_lab.options)
    await first.jetstream().add_stream(
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
    await first.close()


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


@pytest.mark.parametrize("verb", ["restart", "kill", seldom("stop"), seldom("lame_duck")])
async def test_what_a_paused_node_is_told_reaches_it(compose_lab: Lab, verb: str) -> None:
    await compose_lab.pause("n2")
    began = time.monotonic()
    await getattr(compose_lab, verb)("n2")
    assert time.monotonic() - began < 20
    if verb != "restart":
        assert await compose_lab.cluster.is_down("n2")
        await compose_lab.restart("n2")
    assert await compose_lab.cluster.unhealthy() == []


@pytest.mark.parametrize("verb", ["kill", seldom("stop")])
async def test_a_majority_that_a_drill_left_down_is_started(compose_lab: Lab, verb: str) -> None:
    for node in ("n1", "n3"):
        await getattr(compose_lab, verb)(node)
    compose_lab.cluster.turns.over()
    start = time.monotonic()
    again = await type(compose_lab.cluster).join()
    assert time.monotonic() - start < 40
    assert await again.unhealthy() == []
    await again.close()


async def test_a_cluster_that_is_gone_is_one_sentence(
    compose: None, cache: Path, capsys: pytest.CaptureFixture
) -> None:
    """Somebody removes containers under a lesson in the midst of its drill."""
    lab = await Lab.start(lesson=99, kind="compose", quiet=True)
    await lab.kill("n1")
    try:
        await docker("rm", "-f", *map(container, ("n1", "n3")))
        began = time.monotonic()
        with pytest.raises(LabError, match="is not there: run `natslab up`"):
            await lab.restart("n1")
        await lab.close()
        assert "run `natslab up`" in capsys.readouterr().out
        assert time.monotonic() - began < 20
        began = time.monotonic()
        with pytest.raises(LabError, match="is not there: run `natslab up`"):
            await Lab.start(kind="compose")
        assert time.monotonic() - began < 15
    finally:
        compose_cli.up()


@pytest.mark.nightly
async def test_no_node_answers_is_one_sentence(compose_lab: Lab) -> None:
    for node in compose_lab.nodes:
        await compose_lab.kill(node)
    for ask in (compose_lab.leader_of("S"), compose_lab.move_leader("S", "n1")):
        began = time.monotonic()
        with pytest.raises(LabError, match=r"^No node of the cluster answers. Start the missing"):
            await ask
        assert time.monotonic() - began < 5
    for node in compose_lab.nodes[:2]:
        await compose_lab.cluster._launch(node)  # for a quorum two must start at once
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
        TURN.format(take="turns.share_blocking()"),
        TURN.format(take="await turns.drill()"),
    )
    with helpers.python("-c", sharing, TMPDIR=str(cache)) as cell:
        assert cell.stdout.readline() == "held\n"
        with (
            helpers.python("-c", sharing, TMPDIR=str(cache)) as other,
            helpers.python("-c", drilling, TMPDIR=str(cache)) as drill,
        ):
            assert other.stdout.readline() == "held\n", "two lessons run cells side by side"
            other.kill()
            assert not select.select([drill.stdout], [], [], 1.0)[0], "the drill did not wait"
            cell.kill()  # a dead kernel gives its turn back
            assert drill.stdout.readline() == "held\n"


def test_two_checkouts_share_one_lock(cache: Path, tmp_path_factory) -> None:
    drilling = TURN.format(take="await turns.drill()")
    caches = [str(tmp_path_factory.mktemp("checkout")) for _ in range(2)]
    with helpers.python("-c", drilling, NATSLAB_CACHE=caches[0], TMPDIR=str(cache)) as first:
        assert first.stdout.readline() == "held\n"
        with helpers.python("-c", drilling, NATSLAB_CACHE=caches[1], TMPDIR=str(cache)) as second:
            assert not select.select([second.stdout], [], [], 1.0)[0], "the second drills too"
            first.kill()
            assert second.stdout.readline() == "held\n"


def test_a_cell_that_waited_for_a_drill_is_on_a_living_server(compose: None, cache: Path) -> None:
    with kernel.kernel(NATSLAB_CLUSTER="compose") as reader:
        begun = reader.run(BEGUN)
        assert begun.text.startswith("n"), begun.shown
        with helpers.python("-c", DRILLS, begun.text.strip()) as drill:
            assert drill.stdout.readline() == "held\n"
            asked = reader.run("print(await ask())")
            assert drill.stdout.readline() == "over\n"
        assert asked.text == "answered\n", asked.shown
        assert asked.seconds > 1, "it did not wait"
        reader.run("await lab.close()")


@pytest.mark.parametrize("cell", ["print('ran')", "await asyncio.sleep(0); print('ran')"])
def test_a_cell_that_gets_no_turn_is_not_run(cache: Path, cell: str) -> None:
    drilling = TURN.format(take="await turns.drill()")
    with kernel.kernel(TMPDIR=str(cache)) as reader:
        reader.run(TAKES_TURNS)
        with helpers.python("-c", drilling, TMPDIR=str(cache)) as drill:
            assert drill.stdout.readline() == "held\n"
            late = reader.run(cell)
            assert (late.text, late.error[:29]) == ("", "LabError: Another lesson has ")
            assert 1.5 < late.seconds < 5
            stopped = reader.run(cell, interrupt_after=0.3)
            assert (stopped.text, stopped.seconds < 1.4) == ("", True)
            assert stopped.error == f"LabError: {STOPPED}"
            assert stopped.shown == stopped.error, "more than the sentence"
            reader.run("missing")
        assert reader.run(cell).text == "ran\n"
        failed = reader.run("missing")
        assert (failed.text, failed.error[:9]) == ("", "NameError"), "it was not run before"


async def test_a_drill_that_is_cancelled_takes_no_lock(own_lock: Path) -> None:
    cell, drill, other = Turns(), Turns(), Turns()
    cell.share_blocking()
    drill.share_blocking()
    waiting = asyncio.create_task(drill.drill())
    await asyncio.sleep(0.1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    cell.end()
    await asyncio.sleep(0.2)
    assert not drill.drilling
    other.share_blocking()  # the cancelled one shares again
    assert not other._took(fcntl.LOCK_EX), "the cell of the cancelled drill still runs"
    drill.after_cell()
    await other.drill()
    for turns in (drill, other):
        turns.end()


def test_a_lock_in_a_place_of_somebody_else_is_not_used(own_lock: Path) -> None:
    assert lock_file() == own_lock
    assert own_lock.parent.stat().st_mode & 0o777 == 0o700
    own_lock.unlink()
    own_lock.parent.rmdir()
    own_lock.parent.symlink_to("/nowhere")
    with pytest.raises(LabError, match="is not a folder of yours: remove it, or set TMPDIR"):
        Turns()


def test_a_lesson_that_holds_on_too_long_is_named(own_lock: Path, monkeypatch) -> None:
    monkeypatch.setattr("natslab.clusters.turns.PATIENCE", 0.2)
    first, second = Turns(), Turns()
    asyncio.run(first.drill())
    with pytest.raises(LabError, match="restart or close its kernel"):
        second.share_blocking()
    with pytest.raises(LabError, match="restart or close its kernel"):
        asyncio.run(second.drill())
    first.end()
    second.share_blocking()
    second.end()
