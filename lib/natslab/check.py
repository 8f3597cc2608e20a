"""Say what you claim and let the run decide: check, until, settled, expect."""

from __future__ import annotations

import ast
import asyncio
import builtins
import inspect
import os
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from functools import partial
from types import FrameType, TracebackType
from typing import Any

from executing import Source
from nats.aio.client import Client
from nats.errors import NoRespondersError
from nats.js.errors import ServiceUnavailableError

from natslab import workers
from natslab.errors import CheckFailed, LabError
from natslab.tasks import by_itself

# Calls that may be repeated to show both sides of a false claim, because they change nothing.
PURE = {"abs", "all", "any", "dict", "len", "list", "max", "min", "round", "set", "sorted", "sum"}


def check(claim: str, holds: object, *, after: object = True, timed: bool = False) -> None:
    """Print one steady line when `holds` is true.

    >>> check("every order arrived", received == sent)
    ✔ every order arrived

    `after` is the event that the claim is about (`killed = await lab.kill("n1")`). Where a drill is
    skipped, because the cluster is not ours to break, its event is false, and so nothing is claimed:

    >>> check("the leader's death lost nothing", stored == accepted, after=killed)
    – the leader's death lost nothing: not shown here

    `timed` marks a claim that compares times or rates, which a busy machine can make false; its two
    sides are a factor of 3 apart or more. Raises CheckFailed with the claim and the value of both
    sides when it does not hold.
    """
    if not after:
        print(f"– {claim}: not shown here")
        return
    frame = inspect.currentframe()
    assert frame is not None and frame.f_back is not None
    try:
        true, why = _truth(holds), ""
    except Exception as error:  # whatever it is: the claim must be told
        true, why = False, f"\n  {type(error).__name__}: {error}"
    if true:
        print(f"✔ {claim}")
        return
    mark = " (a claim about time)" if timed else ""
    raise CheckFailed(f"✘ {claim}{mark}{_sides(frame.f_back)}{why}")


def _truth(value: object) -> bool:
    """Is it true? A function that nobody called or a coroutine that nobody awaited is no answer."""
    if inspect.iscoroutine(value):
        value.close()
        raise TypeError("this is a coroutine that was not awaited: write `await` before it")
    if inspect.isroutine(value):
        raise TypeError("this is a function, and it was not called: write () behind it")
    return bool(value)


def _sides(frame: FrameType) -> str:
    """': published = 500, processed = 498' for the second argument of the check(...) in `frame`."""
    call = Source.executing(frame).node
    if not isinstance(call, ast.Call) or len(call.args) < 2:
        return ""
    condition = call.args[1]
    parts, sides = [condition], []
    if isinstance(condition, ast.BoolOp) and isinstance(condition.op, ast.And):
        parts = condition.values
    for part in parts:
        sides += [part.left, *part.comparators] if isinstance(part, ast.Compare) else [part]
    texts = {ast.unparse(side): _value(side, frame) for side in sides if _repeatable(side)}
    shown = [f"{text} = {value}" for text, value in texts.items() if value]
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
    """The value of one side now; '' when it cannot be had (any more)."""
    code = compile(ast.Expression(node), "<check>", "eval")
    # As one dictionary: a generator in it sees the local names only if they are global to it.
    names = {**vars(builtins), **frame.f_globals, **frame.f_locals}
    try:
        text = repr(eval(code, names))  # noqa: S307
    except Exception:  # the claim must be told whatever becomes of its sides
        return ""
    return text if len(text) <= 200 else text[:200] + "…"


def patience() -> float:
    """By which factor waits may be longer on this machine: $NATSLAB_PATIENCE, by default 1.

    Only waits: no claim gets weaker by it. Raises LabError when it is no number from 1 to 100.
    """
    text = os.environ.get("NATSLAB_PATIENCE", "").strip() or "1"
    try:
        factor = float(text)
    except ValueError:
        factor = 0.0
    if not 1 <= factor <= 100:
        raise LabError(f"NATSLAB_PATIENCE={text}: write a number from 1 to 100, such as 3.")
    return factor


async def until(
    condition: Callable[[], Any | Awaitable[Any]], timeout: float = 5.0, what: str = ""
) -> None:
    """Wait until `condition()` is true; `condition` may be a coroutine function.

    A request in it that is not answered counts as false: right after a node came back one in a
    hundred to JetStream was not (measured, on a busy machine), and the next one was.

    Raises TimeoutError that names `what` when it is still false, or still under way, after `timeout`
    seconds (times $NATSLAB_PATIENCE), and tells what became of workers that have failed meanwhile.
    """
    seconds, unanswered = timeout * patience(), ""

    async def look() -> bool:
        nonlocal unanswered
        try:
            value = condition()
            holds = _truth(await value if inspect.isawaitable(value) else value)
        except (TimeoutError, ServiceUnavailableError) as error:
            unanswered = f"the last look: {type(error).__name__}: {error}"
            return False
        unanswered = ""
        return holds

    try:
        async with asyncio.timeout(seconds):
            while not await look():  # noqa: ASYNC110 (no event tells of any condition)
                await asyncio.sleep(0.005)
    except TimeoutError:
        # Once more: a loop that stood still must not be taken for a wait in vain.
        with suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                if await look():
                    return
        waited = f"waited {seconds:g} s for {what or 'a condition'}"
        told = [unanswered] if unanswered else []
        raise TimeoutError("\n  ".join([waited, *told, *workers.troubles()])) from None


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
    for _ in range(2):  # the first one has emptied the buffer, so the second answer is the proof
        await until(partial(_flushed, nc), timeout=15, what="the server to answer a flush")
    for subject in subjects:
        # No stream has this name, so the one that answers refuses the message.
        ask = partial(nc.request, subject, b"", headers={"Nats-Expected-Stream": "*"})
        await until(partial(_answered, ask), what=f"a stream to answer on {subject}")
    for name in consumers:
        # Not a valid request, so the consumer answers with an error and hands out nothing.
        ask = partial(nc.request, f"$JS.API.CONSUMER.MSG.NEXT.{name}", b"{")
        await until(partial(_answered, ask), what=f"consumer {name} to answer")


async def _flushed(nc: Client) -> bool:
    """A flush that its server's death cuts short is never answered: another one is, elsewhere.

    It is left to itself, and never cancelled. Of a flush that is cancelled, or whose time is out,
    nats-py 2.16 meets the late answer with an error that ends its reader (`Client._process_pong`):
    the connection looks open and hears nothing, for minutes.
    """
    flush = by_itself(nc.flush(timeout=60))
    await asyncio.wait([flush], timeout=2)
    if flush.done():
        await flush  # raises what ended it
    return flush.done()


async def _answered(ask: Callable[[], Awaitable[Any]]) -> bool:
    try:
        await ask()
    except NoRespondersError:
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
