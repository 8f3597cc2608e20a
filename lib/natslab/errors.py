"""The errors of this library: each is one sentence that says what to do next."""


class LabError(RuntimeError):
    """Something around a lesson is missing or wrong: a server, a port, a log-in, a quorum."""

    def _render_traceback_(self) -> list[str]:
        # IPython calls this: a reader needs the sentence, not our call stack.
        return [f"{type(self).__name__}: {self}"]


class CheckFailed(LabError, AssertionError):
    """A claim of a lesson does not hold on this run."""
