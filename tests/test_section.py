"""A section of a lesson can be begun again: fresh names, nothing running, nodes whole, results of this run."""

import asyncio

import nats
import nats.errors
import pytest
from natslab import Lab, LabError, until


async def sleeper(options: dict) -> None:
    import asyncio

    await asyncio.Event().wait()


async def test_a_second_run_starts_from_nothing(lab: Lab) -> None:
    run = await lab.begin("Break it")
    assert [run.name("price.work"), run.name("JOBS")] == ["price.work", "JOBS"]
    worker = run.spawn(sleeper, "sleeper", lab.address)
    task = run.task(asyncio.sleep(99))
    nc = run.keep(await nats.connect(**lab.options))
    other = await nats.connect(**lab.options)
    sub = run.keep(await other.subscribe("price.work"))
    await lab.kill("n1")
    await lab.pause("n2")
    again = await lab.begin("Break it")
    assert not worker.alive
    assert task.cancelled()
    assert nc.is_closed
    assert sub._closed and not other.is_closed
    assert await lab.cluster.unhealthy() == []
    assert [again.name("price.work"), again.name("JOBS")] == ["price.work_2", "JOBS_2"]
    other_section = await lab.begin("Another")
    assert [other_section.name(word) for word in ("x", "JOBS", "JOBS")] == ["x", "JOBS_3", "JOBS_3"]
    await other.close()


async def test_results_are_written_once_and_not_read_too_early(lab: Lab) -> None:
    run = await lab.begin("Break it: now")
    with pytest.raises(
        LabError, match='no "calls" yet: run the cells from the heading "Break it: now"'
    ):
        print(run.calls)
    run.calls = [1]
    assert run.calls == [1]
    with pytest.raises(LabError, match='run already: begin again at the heading "Break it: now"'):
        run.calls = [2]
    with pytest.raises(LabError, match='"end" is a word of the section itself'):
        run.end = 7  # its own end would fail, in another cell
    assert repr(run), "a notebook may show it"


async def test_old_handles_say_so(lab: Lab, capsys: pytest.CaptureFixture) -> None:
    nc = await nats.connect(**lab.options)
    js, run = nc.jetstream(), await lab.begin("Break it")
    new = await Lab.start(kind="embedded")
    try:
        told = "connection closed"
        with pytest.raises(nats.errors.ConnectionClosedError, match=told):
            await nc.publish("a", b"")
        with pytest.raises(nats.errors.ConnectionClosedError, match=told):
            await js.publish("a", b"")
        for call in (lambda: lab.kill("n1"), lambda: lab.begin("Break it")):
            with pytest.raises(LabError, match="This lab was closed"):
                await call()
        with pytest.raises(LabError, match="This lab was closed"):
            run.spawn(sleeper, "sleeper", {})
        assert "the lab before this one is closed" in capsys.readouterr().out
    finally:
        await new.close(quiet=True)


async def test_close_ends_what_a_section_began(lab: Lab) -> None:
    run = await lab.begin("Break it")
    task = run.task(asyncio.sleep(99))
    await lab.close(quiet=True)
    assert task.cancelled()


async def test_an_exit_code(lab: Lab) -> None:
    run = await lab.begin("Break it")
    worker = run.spawn(sleeper, "sleeper", {})
    assert worker.exit_code is None
    worker.kill()
    assert worker.exit_code == -9
    await until(lambda: not worker.alive, what="its end")
