"""Judge an answer to an exercise: in a try of its own, with fresh names, that leaves nothing behind."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import linecache
import traceback
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import ContextVar
from types import CodeType
from typing import Any

import nats
import nats.errors
from nats.aio.client import Client

from natslab.check import patience, until
from natslab.clusters import ready
from natslab.errors import LabError
from natslab.lab import Lab

TRY_SECONDS = 20.0  # for one answer
SHOWN = 160  # letters of one value

_numbers = itertools.count(1)  # of tries, in this kernel: no two share a name
_trial: ContextVar[Trial | None] = ContextVar("trial", default=None)

Test = Callable[[Any, "Trial"], Awaitable[None] | None]


class NotYet(Exception):  # noqa: N818 (no error: a verdict)
    """What came, and what was wanted."""


async def judge(task: str, answer: object, test: Test, *, seconds: float = TRY_SECONDS) -> None:
    """Print the verdict on an answer: not attempted while it is still `...`, else solved or not.

    `test(answer, trial)` tries the answer, a plain or a coroutine function; it ends without an error
    for a right one, and says by `trial.same` and its siblings what came and what was wanted. Never
    raises, whatever the answer does: an exercise that is not solved yet must not stop "run all". An
    answer that has not come to its end after so many `seconds` (times $NATSLAB_PATIENCE) is told so.

    >>> await judge("1. the greeting", greet, greets)
    ✘ 1. the greeting: not yet
      the answer to b'Ada': came b'Hello', wanted b'Hello Ada'
    """
    if answer is ...:
        print(f"○ {task}: not attempted yet")
        return
    trial = Trial(Lab.here())
    mark = _trial.set(trial)
    try:
        why = await _verdict(answer, test, trial, seconds)
    finally:
        _trial.reset(mark)
        heard = await trial._end()
    print(f"✘ {task}: not yet\n  {why}" if why else f"✔ {task}: solved")
    for line in dict.fromkeys(heard if why else []):
        print(f"  meanwhile, in a callback: {line}")


async def _verdict(answer: object, test: Test, trial: Trial, seconds: float) -> str:
    """Why the answer is wrong; '' when it is right."""
    try:
        async with asyncio.timeout(seconds * patience()) as limit:
            done = test(answer, trial)
            if inspect.isawaitable(done):
                await done
    except NotYet as verdict:
        return str(verdict)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():  # somebody interrupts the cell, not the answer itself
            raise
        return "your code ended with CancelledError: it waited for a task that was cancelled"
    except Exception as error:  # whatever it is: the answer is told
        if limit.expired():
            return f"it did not come to an end within {seconds:g} s"
        return _in_words(error) + _where(error, answer, test)
    return ""


class Trial:
    """One try of an answer. What it makes has names of its own, and is gone when the try is over."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.number = next(_numbers)
        self._names: list[str] = []
        self._connections: list[Client] = []
        self._errors_before = len(lab.errors)

    def name(self, word: str) -> str:
        """`word` for this try alone: a subject, a group, or a stream or bucket, which is deleted after it."""
        self._names.append(f"{word}_{self.number}")
        return self._names[-1]

    async def connect(self, **options: Any) -> Client:
        """A connection that is closed after the try, with all its subscriptions.

        All of one try are on one server, so that `flush` proves a subscription. `options` as for
        `nats.connect`, such as those of another region.
        """
        here = self.lab.same_server(self._connections[0]) if self._connections else self.lab.options
        self._connections.append(await nats.connect(**{**here, **options}))
        return self._connections[-1]

    @property
    def errors(self) -> list[Exception]:
        """What callbacks of this try have raised."""
        return self.lab.errors[self._errors_before :]

    def same(self, what: str, came: object, wanted: object) -> None:
        """The answer is wrong unless `came == wanted`."""
        if came != wanted:
            raise NotYet(f"{what}: came {_shown(came)}, wanted {_shown(wanted)}")

    def require(self, holds: object, why: str) -> None:
        """The answer is wrong, and this is why, unless `holds`."""
        if not holds:
            raise NotYet(why)

    async def soon(self, condition: Callable[[], Any], why: str, timeout: float = 2.0) -> None:
        """The answer is wrong, and this is why, unless `condition()` is true within `timeout` seconds."""
        try:
            await until(condition, timeout, why)
        except TimeoutError:
            raise NotYet(why) from None

    async def raises(self, what: str, call: Awaitable[Any], *kinds: type[Exception]) -> None:
        """The answer is wrong unless `call` ends with an error of one of these kinds."""
        wanted = " or ".join(kind.__name__ for kind in kinds)
        try:
            came = await call
        except kinds:
            return
        raise NotYet(f"{what}: came {_shown(came)}, wanted {wanted}")

    async def _end(self) -> list[str]:
        """Take away what the try has made; what its callbacks have raised, in words."""
        heard = [_in_words(error) for error in self.errors]
        for nc in self._connections:
            with suppress(nats.errors.Error, OSError, TimeoutError):
                async with asyncio.timeout(2):
                    await nc.close()
        await self._cancel_tasks()
        await self._delete_streams()
        del self.lab.errors[self._errors_before :]
        return heard

    async def _cancel_tasks(self) -> None:
        """Tasks that were made in this try carry it in their context."""
        left = [
            task
            for task in asyncio.all_tasks()
            if task is not asyncio.current_task() and task.get_context().get(_trial) is self
        ]
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=2)

    async def _delete_streams(self) -> None:
        # The three kinds of streams that a name without dots can belong to.
        streams = {
            f"{kind}{name}"
            for name in self._names
            if "." not in name
            for kind in ("", "KV_", "OBJ_")
        }
        if not streams:
            return
        for options in self.lab.everywhere:
            # Its next start deletes what is left; the verdict is what counts here.
            with suppress(TimeoutError, nats.errors.Error, LabError):
                await ready.delete_those(options, lambda c: c.name in streams, timeout=10)


def _shown(value: object) -> str:
    # A function shows its name: its address tells nobody anything.
    text = getattr(value, "__name__", None) or repr(value)
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"


def _in_words(error: BaseException) -> str:
    text = str(error).strip().partition("\n")[0].removeprefix("nats: ")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _where(error: BaseException, answer: object, test: Test) -> str:
    """', in your line 3: return price' for the last line of the answer's cell that had a part in it."""
    file, judge = getattr(_code(answer), "co_filename", ""), test.__qualname__
    at = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        code = frame.f_code
        if code.co_filename == file and not code.co_qualname.startswith(judge):
            at = f", in your line {line}: {linecache.getline(file, line).strip()}"
    return at


def _code(answer: object) -> CodeType | None:
    """The code of a function, or of the first method of a class or an object of it."""
    if isinstance(code := getattr(answer, "__code__", None), CodeType):
        return code
    kind = answer if isinstance(answer, type) else type(answer)
    methods = (getattr(value, "__code__", None) for value in vars(kind).values())
    return next((code for code in methods if isinstance(code, CodeType)), None)
