"""Say what you claim and let the run decide: check, until, settled, expect, exercise."""

from __future__ import annotations

import ast
import asyncio
import builtins
import inspect
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from types import FrameType, TracebackType
from typing import Any

from executing import Source
from nats.aio.client import Client
from nats.errors import NoRespondersError

from natslab import workers
from natslab.errors import CheckFailed

# Calls that may be repeated to show both sides of a false claim, because they change nothing.
PURE = {"abs", "all", "any", "dict", "len", "list", "max", "min", "round", "set", "sorted", "sum"}


def check(claim: str, holds: object) -> None:
    """Print one steady line when `holds` is true.

    >>> check("every order arrived", received == sent)
    ✔ every order arrived

    Raises CheckFailed with the claim and the value of both sides when it is not.
    """
    if holds:
        print(f"✔ {claim}")
        return
    frame = inspect.currentframe()
    assert frame is not None and frame.f_back is not None
    raise CheckFailed(f"✘ {claim}{_sides(frame.f_back)}")


def _sides(frame: FrameType) -> str:
    """': published = 500, processed = 498' for the second argument of the check(...) in `frame`."""
    call = Source.executing(frame).node
    if not isinstance(call, ast.Call) or len(call.args) < 2:
        return ""
    condition = call.args[1]
    sides = (
        [condition.left, *condition.comparators]
        if isinstance(condition, ast.Compare)
        else [condition]
    )
    shown = [f"{ast.unparse(side)} = {_value(side, frame)}" for side in sides if _repeatable(side)]
    shown = [text for text in shown if not text.endswith("= ")]
    return f"\n  not true: {ast.unparse(condition)}" + "".join(f"\n  {text}" for text in shown)


def _repeatable(node: ast.expr) -> bool:
    """True for names, attributes, subscripts and pure built-ins: not for literals or calls that act."""
    if isinstance(node, ast.Constant):
        return False
    return all(
        not isinstance(part, ast.Await | ast.Yield | ast.YieldFrom | ast.NamedExpr)
        and not (isinstance(part, ast.Call) and getattr(part.func, "id", "") not in PURE)
        for part in ast.walk(node)
    )


def _value(node: ast.expr, frame: FrameType) -> str:
    code = compile(ast.Expression(node), "<check>", "eval")
    text = repr(eval(code, {**vars(builtins), **frame.f_globals}, frame.f_locals))  # noqa: S307
    return text if len(text) <= 200 else text[:200] + "…"


async def until(
    condition: Callable[[], Any | Awaitable[Any]], timeout: float = 5.0, what: str = ""
) -> None:
    """Wait until `condition()` is true; `condition` may be a coroutine function.

    Raises TimeoutError that names `what` when it is still false after `timeout` seconds, and tells
    what became of workers that have failed meanwhile.
    """
    end = time.monotonic() + timeout
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return
        if time.monotonic() > end:
            waited = f"waited {timeout:g} s for {what or 'a condition'}"
            raise TimeoutError("\n  ".join([waited, *workers.troubles()]))
        await asyncio.sleep(0.005)


async def settled(nc: Client, *subjects: str, consumers: Iterable[str] = ()) -> None:
    """Return when the server of `nc` has processed what `nc` sent, and knows what is new.

    `subjects`: wait until the stream behind each of them answers. `consumers`: the same for pull
    consumers, named "STREAM.consumer". Nothing is stored and nothing is fetched.

    Two things make this necessary. First, the `flush` of nats-py 2.16 writes its ping *ahead* of
    what is still in the client's buffer (`Client._send_ping`), so its answer may come too early:
    of 2,000 requests made right after one flush, 22 to 58 found no responder, after two flushes
    none. Second, the servers of a cluster learn of a new stream or consumer a moment after the
    call that made it has returned; until then a publish raises NoStreamResponseError and a fetch
    ServiceUnavailableError. The Go client publishes again by itself, nats-py does not.
    """
    await nc.flush()
    await nc.flush()  # the first one has emptied the buffer, so the second answer is the proof
    for subject in subjects:
        # No stream has this name, so the one that answers refuses the message.
        ask = partial(nc.request, subject, b"", headers={"Nats-Expected-Stream": "*"})
        await until(partial(_answered, ask), what=f"a stream to answer on {subject}")
    for name in consumers:
        # Not a valid request, so the consumer answers with an error and hands out nothing.
        ask = partial(nc.request, f"$JS.API.CONSUMER.MSG.NEXT.{name}", b"{")
        await until(partial(_answered, ask), what=f"consumer {name} to answer")


async def _answered(ask: Callable[[], Awaitable[Any]]) -> bool:
    try:
        await ask()
    except (NoRespondersError, TimeoutError):
        return False
    return True


class expect:  # noqa: N801 (reads as a statement: with expect(TimeoutError): ...)
    """Run a block that must fail, and print the failure as one line.

    >>> with expect(NoRespondersError):
    ...     await nc.request("nobody.home", b"")
    NoRespondersError: nats: no responders available for request

    The error is kept as `.error`. Raises CheckFailed when the block ends without it.
    """

    def __init__(self, *kinds: type[BaseException]) -> None:
        self.kinds = kinds
        self.error: BaseException | None = None

    def __enter__(self) -> expect:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> bool:
        names = " or ".join(k.__name__ for k in self.kinds)
        if error is None:
            raise CheckFailed(f"✘ expected {names}, but nothing failed")
        if not isinstance(error, self.kinds):
            return False
        self.error = error
        text = str(error).strip().splitlines()
        if isinstance(error, TimeoutError) or not text:
            # fetch raises Python's own TimeoutError or that of nats-py, by turns: one name for both.
            print(type(error).__name__)
        else:
            print(f"{type(error).__name__}: {text[0]}")
        return True


def exercise(task: str, answer: object, solved: Callable[[Any], bool]) -> None:
    """Judge your answer to an exercise: not attempted while it is still `...`, else solved or not.

    Never raises: an exercise that is not solved yet must not stop "run all".
    """
    if answer is ...:
        print(f"○ {task}: not attempted yet")
        return
    try:
        right, why = bool(solved(answer)), ""
    except Exception as error:  # an answer of another kind than the task asks for
        right, why = False, f" ({type(error).__name__}: {error})"
    print(f"✔ {task}: solved" if right else f"✘ {task}: not yet, your answer was {answer!r}{why}")
