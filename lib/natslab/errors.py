"""The errors of this library: each is one sentence that says what to do next."""

from __future__ import annotations

import errno
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = {errno.ENOSPC, errno.EDQUOT}
# What a file system answers; not what a network answers, which is an OSError too.
UNUSABLE = FULL | {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR),
    *(errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL, errno.EIO, errno.ESTALE),
    *(errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP),  # a file system without locks
}
ELSEWHERE = "set NATSLAB_CACHE to a folder on a local disk where you may write"


class LabError(RuntimeError):
    """Something around a lesson is missing or wrong: a server, a port, a log-in, a quorum."""

    def _render_traceback_(self) -> list[str]:
        # IPython calls this: a reader needs the sentence, not our call stack.
        return [f"{type(self).__name__}: {self}"]


class CheckFailed(LabError, AssertionError):
    """A claim of a lesson does not hold on this run."""


@contextmanager
def usable(folder: Path) -> Iterator[None]:
    """A block that writes below `folder`: what the file system refuses becomes a LabError."""
    try:
        yield
    except OSError as error:
        if error.errno not in UNUSABLE:
            raise
        raise LabError(unusable(folder, error)) from None


def unusable(folder: Path, error: OSError) -> str:
    """The sentence for an error of the file system below `folder`."""
    if error.errno in FULL:
        return f"The disk of {folder} is full: make room there, or {ELSEWHERE}."
    at = f" at {error.filename}" if error.filename and str(error.filename) != str(folder) else ""
    return f"The course cannot write to {folder} ({error.strerror}{at}): {ELSEWHERE}."


def print_in_any_encoding() -> None:
    """Let a terminal that knows no ✔ show a ? in its place, instead of an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
