"""check, until, expect, exercise, settled: what a reader sees is steady and says both sides."""

import asyncio
import time

import nats
import pytest
from nats.errors import NoRespondersError
from natslab import CheckFailed, Lab, LabError, check, exercise, expect, settled, until


def said(capsys: pytest.CaptureFixture) -> list[str]:
    return capsys.readouterr().out.splitlines()


def failure(claim: str, **names: object) -> str:
    """What a false check says in a cell with this code."""
    cell = compile(claim, "<cell>", "exec")
    with pytest.raises(CheckFailed) as caught:
        exec(cell, {"check": check, **names})  # noqa: S102
    return str(caught.value)


def test_a_true_claim_is_one_line(capsys: pytest.CaptureFixture) -> None:
    check("all orders arrived", 1 + 1 == 2)
    check("some orders arrived", [1])
    assert said(capsys) == ["✔ all orders arrived", "✔ some orders arrived"]


def test_a_false_claim_shows_both_sides(capsys: pytest.CaptureFixture) -> None:
    sent, received = [1, 2, 3], [1, 2]
    with pytest.raises(CheckFailed) as caught:
        check("no order lost", len(received) == len(sent))
    assert str(caught.value).splitlines() == [
        "✘ no order lost",
        "  not true: len(received) == len(sent)",
        "  len(received) = 2",
        "  len(sent) = 3",
    ]
    assert isinstance(caught.value, LabError), "a reader sees the sentence, not a stack"
    assert isinstance(caught.value, AssertionError), "and pytest sees a failed assertion"
    assert said(capsys) == []


def test_both_sides_in_other_shapes() -> None:
    data = {"lost": 4}
    try:
        check("chained", 0 < data["lost"] < 3)
    except CheckFailed as error:
        assert "data['lost'] = 4" in str(error)
        assert "3 = 3" not in str(error), "a literal is not worth a line"
    with pytest.raises(CheckFailed, match="not true: data"):
        check("no comparison", data.get("missing"))
    x = "y" * 500
    with pytest.raises(CheckFailed) as caught:
        check("long", x == "")
    assert len(str(caught.value)) < 300


def test_a_call_that_acts_is_not_repeated() -> None:
    calls = []

    def take() -> int:
        calls.append(1)
        return len(calls)

    with pytest.raises(CheckFailed) as caught:
        check("taken", take() == 7)
    assert len(calls) == 1
    assert "take() == 7" in str(caught.value)
    assert "  take() = " not in str(caught.value)


def test_where_the_source_is_not_known() -> None:
    assert failure("check('claim', 1 == 2)") == "✘ claim"


async def test_until() -> None:
    began = time.monotonic()
    seen = []
    asyncio.get_running_loop().call_later(0.05, seen.append, 1)
    await until(lambda: seen)
    assert 0.04 < time.monotonic() - began < 1

    async def soon() -> bool:
        return len(seen) == 1

    await until(soon)
    with pytest.raises(TimeoutError, match=r"^waited 0.05 s for the moon$"):
        await until(lambda: False, timeout=0.05, what="the moon")
    with pytest.raises(ZeroDivisionError):
        await until(lambda: 1 / 0)


def test_expect_prints_one_line(capsys: pytest.CaptureFixture) -> None:
    with expect(ValueError) as expected:
        raise ValueError("no such room\nand more")
    assert isinstance(expected.error, ValueError)
    with expect(TimeoutError, ZeroDivisionError):
        _ = 1 / 0
    with expect(TimeoutError):
        raise TimeoutError
    assert said(capsys) == [
        "ValueError: no such room",
        "ZeroDivisionError: division by zero",
        "TimeoutError",
    ]


def test_expect_fails_when_nothing_or_something_else_fails() -> None:
    nothing_failed = "expected ValueError or KeyError, but nothing failed"
    with pytest.raises(CheckFailed, match=nothing_failed), expect(ValueError, KeyError):
        pass
    with pytest.raises(ZeroDivisionError), expect(ValueError):
        _ = 1 / 0


def test_exercise_judges_and_never_raises(capsys: pytest.CaptureFixture) -> None:
    exercise("1. the pattern", ..., lambda _: 1 / 0)
    exercise("1. the pattern", "a.*", lambda answer: answer == "a.*")
    exercise("1. the pattern", "b", lambda answer: answer == "a.*")
    exercise("1. the pattern", "b", lambda _: 1 / 0)
    lines = said(capsys)
    assert lines[:3] == [
        "○ 1. the pattern: not attempted yet",
        "✔ 1. the pattern: solved",
        "✘ 1. the pattern: not yet, your answer was 'b'",
    ]
    assert lines[3:] == [
        "✘ 1. the pattern: not yet, your answer was 'b' (ZeroDivisionError: division by zero)"
    ]


async def test_settled_waits_for_subscriptions_streams_and_consumers(lab: Lab) -> None:
    asker, answerer = [await nats.connect(**lab.options) for _ in range(2)]
    for number in range(20):

        async def answer(msg: nats.aio.msg.Msg) -> None:
            await msg.respond(b"here")

        await answerer.subscribe(f"ask.{number}", cb=answer)
    await settled(answerer)
    own = await nats.connect(**lab.options | {"servers": [answerer.connected_url.geturl()]})
    for number in range(20):  # at the same server: no NoRespondersError
        assert (await own.request(f"ask.{number}", b"")).data == b"here"

    js = asker.jetstream()
    for number in range(5):
        await js.add_stream(name=f"S{number}", subjects=[f"s{number}.>"], num_replicas=3)
        await js.add_consumer(f"S{number}", durable_name="c")
        await settled(asker, f"s{number}.any", consumers=[f"S{number}.c"])
        await js.publish(f"s{number}.any", b"", timeout=2)
        sub = await js.pull_subscribe_bind("c", f"S{number}")
        (msg,) = await sub.fetch(1, timeout=2)
        assert msg.metadata.sequence.stream == 1, "settled stored nothing"
    for nc in (asker, answerer, own):
        await nc.close()


async def test_settled_gives_up_in_time(lab: Lab) -> None:
    nc = await nats.connect(**lab.options)
    with pytest.raises(TimeoutError, match=r"a stream to answer on nobody\.home"):
        await settled(nc, "nobody.home")
    with pytest.raises(NoRespondersError):
        await nc.request("nobody.home", b"")
    await nc.close()
