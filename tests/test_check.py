"""check, until, expect, exercise, settled: what a reader sees is steady and says both sides."""

import asyncio
import time

import nats
import pytest
from nats.errors import NoRespondersError
from nats.js.errors import ServiceUnavailableError
from natslab import CheckFailed, Lab, LabError, check, expect, settled, until
from natslab.clusters.base import Event


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


def test_both_sides_of_each_part_of_a_claim() -> None:
    a, b = 3, 2
    with pytest.raises(CheckFailed) as caught:
        check("both", a < b and b > 0)
    lines = str(caught.value).splitlines()
    assert lines[1:] == ["  not true: a < b and b > 0", "  a = 3", "  b = 2"]


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


def test_a_false_claim_in_a_function_keeps_its_message() -> None:
    sent, got = [1, 2], [1]
    with pytest.raises(CheckFailed, match="all sent came"):
        check("all sent came", all(x in got for x in sent))
    words = {"a": 1}
    with pytest.raises(CheckFailed, match="no word was lost"):
        check("no word was lost", words.pop("a") == 2 and words["b"])  # cannot be asked again


def test_nothing_ticks_without_an_answer(capsys: pytest.CaptureFixture) -> None:
    async def later() -> bool:
        return False

    with pytest.raises(CheckFailed, match="it was not called"):
        check("a function", later)
    with pytest.raises(CheckFailed, match="was not awaited"):
        check("a coroutine", later())
    with pytest.raises(CheckFailed, match="no word was lost"):
        check("no word was lost", Undecided())


class Undecided:
    """As a table is neither true nor false."""

    def __bool__(self) -> bool:
        raise ValueError("neither")


def test_what_was_not_shown_is_not_claimed(capsys: pytest.CaptureFixture) -> None:
    seen = Event(1.0, "kill", "n1", 0.1)
    check("nothing was lost", True, after=seen)
    check("nothing was lost", True, after=None)
    check("nothing was lost", False, after=None)
    assert said(capsys) == ["✔ nothing was lost", *["– nothing was lost: not shown here"] * 2]
    with pytest.raises(CheckFailed):
        check("nothing was lost", False, after=seen)


def test_a_claim_about_time_says_so() -> None:
    fast, slow = 1.0, 2.0
    with pytest.raises(CheckFailed, match=r"✘ it is faster \(a claim about time\)"):
        check("it is faster", slow < fast, timed=True)


async def test_until_keeps_its_deadline() -> None:
    async def hangs() -> bool:
        await asyncio.sleep(5)
        return True

    began = time.monotonic()
    with pytest.raises(TimeoutError, match="waited 0.1 s for the answer"):
        await until(hangs, timeout=0.1, what="the answer")
    assert time.monotonic() - began < 1

    with pytest.raises(TypeError, match="it was not called"):
        await until(lambda: asyncio.Event().is_set)


async def test_until_asks_again_when_a_request_is_not_answered() -> None:
    told = [nats.errors.TimeoutError(), ServiceUnavailableError()]

    async def asks() -> bool:
        if told:
            raise told.pop(0)
        return True

    await until(asks, timeout=1)
    assert not told

    async def nobody_is_there() -> bool:
        raise NoRespondersError

    with pytest.raises(NoRespondersError):  # at once
        await until(nobody_is_there)

    async def never_answered() -> bool:
        raise TimeoutError("mine")

    with pytest.raises(TimeoutError, match=r"for a star\n  the last look: TimeoutError: mine$"):
        await until(never_answered, timeout=0.1, what="a star")


async def test_until_looks_once_more_after_a_loop_that_stood_still() -> None:
    came: list[int] = []
    asyncio.get_running_loop().call_later(0.02, time.sleep, 0.3)  # over the deadline
    asyncio.get_running_loop().call_later(0.03, came.append, 1)
    await until(lambda: came, timeout=0.1)


async def test_patience_stretches_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATSLAB_PATIENCE", "3")
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"waited 0.3 s"):
        await until(lambda: False, timeout=0.1)
    assert time.monotonic() - began >= 0.3
    for wrong in ("much", "0.5", "-1", "nan"):
        monkeypatch.setenv("NATSLAB_PATIENCE", wrong)
        with pytest.raises(LabError, match=f"NATSLAB_PATIENCE={wrong}: write a number"):
            await until(lambda: True)


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


@pytest.mark.nightly
async def test_settled_gives_up_in_time(lab: Lab) -> None:
    nc = await nats.connect(**lab.options)
    with pytest.raises(TimeoutError, match=r"a stream to answer on nobody\.home"):
        await settled(nc, "nobody.home")
    with pytest.raises(NoRespondersError):
        await nc.request("nobody.home", b"")
    await nc.close()
