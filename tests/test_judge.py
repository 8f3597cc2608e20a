"""A try of an answer is told in words, and leaves nothing behind for the next one."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import nats
import pytest
from natslab import Lab, LabError, judge
from natslab.judge import Trial


@pytest.fixture
async def said(lab: Lab, capsys: pytest.CaptureFixture) -> AsyncIterator[pytest.CaptureFixture]:
    capsys.readouterr()
    yield capsys


async def greets(greet: object, trial: Trial) -> None:
    """A judge as a lesson has it."""
    nc, subject = await trial.connect(), trial.name("greet")

    async def handler(msg: object) -> None:
        await greet(nc, msg)

    await nc.subscribe(subject, cb=handler)
    await nc.flush()
    answer = await nc.request(subject, b"Ada", timeout=0.5)
    trial.same("the answer", answer.data, b"Hello Ada")


async def right(nc: nats.NATS, msg: object) -> None:
    await nc.publish(msg.reply, b"Hello " + msg.data)


async def wrong(nc: nats.NATS, msg: object) -> None:
    await nc.publish(msg.reply, b"Hello")


async def mixed(nc: nats.NATS, msg: object) -> None:
    await nc.publish(msg.reply, "Hello " + msg.data)


async def lost(nc: nats.NATS, msg: object) -> None:
    raise KeyError("Ada")


async def test_any_order_of_answers(said: pytest.CaptureFixture) -> None:
    for answer in (right, right, wrong, mixed, lost, ..., right):
        await judge("1. greet", answer, greets)
    assert said.readouterr().out.splitlines() == [
        "✔ 1. greet: solved",
        "✔ 1. greet: solved",
        "✘ 1. greet: not yet",
        "  the answer: came b'Hello', wanted b'Hello Ada'",
        "✘ 1. greet: not yet",
        "  TimeoutError: timeout",
        '  meanwhile, in a callback: TypeError: can only concatenate str (not "bytes") to str',
        "✘ 1. greet: not yet",
        "  TimeoutError: timeout",
        "  meanwhile, in a callback: KeyError: 'Ada'",
        "○ 1. greet: not attempted yet",
        "✔ 1. greet: solved",
    ]


def double(number: int) -> int:
    return 1 // number


class Broken:
    def __init__(self) -> None:
        raise ValueError("no such thing")


@pytest.mark.parametrize(
    ("answer", "test", "told"),
    [
        (
            double,
            lambda f, _: f(0),
            "ZeroDivisionError: integer division or modulo by zero, in your",
        ),
        (Broken, lambda kind, _: kind(), "ValueError: no such thing, in your line"),
        (7, lambda n, trial: trial.same("n", n, 8), "n: came 7, wanted 8"),
        (double, lambda f, trial: trial.same("it", f, 8), "it: came double, wanted 8"),
        ("x" * 999, lambda x, trial: trial.same("it", x, 8), "xxx…, wanted 8"),
        (0, lambda n, trial: trial.require(n, "it is nothing"), "it is nothing"),
        (3, lambda n, _: n(), "TypeError: 'int' object is not callable"),
    ],
)
async def test_why(said: pytest.CaptureFixture, answer: object, test: object, told: str) -> None:
    await judge("1. x", answer, test)
    first, why = said.readouterr().out.splitlines()
    assert first == "✘ 1. x: not yet"
    assert told in why
    assert "0x" not in why


async def hangs(answer: object, trial: Trial) -> None:
    await asyncio.Event().wait()


async def cancels(answer: object, trial: Trial) -> None:
    task = asyncio.create_task(asyncio.sleep(9))
    task.cancel()
    await task


async def never_there(answer: object, trial: Trial) -> None:
    await trial.soon(lambda: False, "nobody came", timeout=0.05)


async def no_error(answer: object, trial: Trial) -> None:
    await trial.raises("a bad call", asyncio.sleep(0, 5), KeyError, ValueError)


@pytest.mark.parametrize(
    ("test", "told"),
    [
        (hangs, "it did not come to an end within 0.3 s"),
        (cancels, "ended with CancelledError"),
        (never_there, "nobody came"),
        (no_error, "a bad call: came 5, wanted KeyError or ValueError"),
    ],
)
async def test_ends(said: pytest.CaptureFixture, test: object, told: str) -> None:
    await judge("1. x", 1, test, seconds=0.3)
    assert told in said.readouterr().out


async def test_an_interrupt_is_not_a_verdict(said: pytest.CaptureFixture) -> None:
    trying = asyncio.create_task(judge("1. x", 1, hangs))
    await asyncio.sleep(0.1)
    trying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await trying
    assert said.readouterr().out == ""


async def test_nothing_is_left(lab: Lab, said: pytest.CaptureFixture) -> None:
    made: list = []

    async def leaves(answer: object, trial: Trial) -> None:
        nc = await trial.connect()
        stream, bucket = trial.name("TRY"), trial.name("bucket")
        await nc.jetstream().add_stream(name=stream, subjects=[trial.name("try.x")])
        await nc.jetstream().create_key_value(bucket=bucket)
        made.extend([nc, asyncio.create_task(asyncio.sleep(99)), stream, bucket])
        lab.errors.append(KeyError("of a callback"))
        trial.require(answer, "not true")

    await judge("1. x", False, leaves)
    await judge("1. x", True, leaves)
    for nc, task, stream, _ in itertools.batched(made, 4):
        assert nc.is_closed
        assert task.cancelled()
        assert stream.startswith("TRY_")
    assert made[2] != made[6], "names are fresh"
    nc = await nats.connect(**lab.options)
    assert await nc.jetstream().streams_info() == []
    await nc.close()
    assert lab.errors == []
    assert "meanwhile, in a callback: KeyError: 'of a callback'" in said.readouterr().out


async def test_without_a_lab(cache: Path) -> None:
    with pytest.raises(LabError, match="run the set-up cell"):
        await judge("1. x", 1, greets)
