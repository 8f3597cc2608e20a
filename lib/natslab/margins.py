"""How much room the claims of a notebook have: both sides of each comparison, written to a file.

With $NATSLAB_MARGINS=<file> set, every comparison that a cell prints or checks is noted there as it
is made, one line of JSON each. `python3 tests/run.py --margins` runs the lessons that way beside a
load and lists the tightest.
"""

from __future__ import annotations

import ast
import json
import operator
import os
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

VARIABLE = "NATSLAB_MARGINS"
NAME = "__natslab_compare__"  # what a comparison is replaced by, in the cells of the run
COMPARE: dict[type[ast.cmpop], tuple[str, Callable[[Any, Any], Any]]] = {
    ast.Lt: ("<", operator.lt),
    ast.LtE: ("<=", operator.le),
    ast.Gt: (">", operator.gt),
    ast.GtE: (">=", operator.ge),
}
BY_SIGN = dict(COMPARE.values())


def room(left: float, sign: str, right: float) -> float:
    """By which factor the larger side of a comparison is larger; below 1 when it does not hold.

    >>> room(2, "<", 10)
    5.0
    """
    small, large = (left, right) if sign.startswith("<") else (right, left)
    if small <= 0:
        return float("inf") if large > small else 0.0
    return large / small


def record(shell: Any, file: Path) -> None:
    """Note what the cells of this IPython compare from now on."""
    shell.user_ns[NAME] = _comparer(file)
    shell.ast_transformers.append(_Comparisons())


def record_if_asked() -> None:
    """`record` when $NATSLAB_MARGINS names a file and this is a notebook."""
    if not (name := os.environ.get(VARIABLE)):
        return
    from IPython.core.getipython import get_ipython

    if (shell := get_ipython()) is not None:
        record(shell, Path(name))


class _Comparisons(ast.NodeTransformer):
    """Every ordering inside `print(...)` or `check(...)` becomes a call that notes its sides."""

    def visit_Call(self, node: ast.Call) -> ast.AST:  # noqa: N802 (the name that ast looks for)
        self.generic_visit(node)
        if getattr(node.func, "id", "") not in ("print", "check"):
            return node
        texts = [a.value for a in node.args if isinstance(a, ast.Constant)]
        claim = next((text for text in texts if isinstance(text, str)), "")
        timed = any(k.arg == "timed" and getattr(k.value, "value", 0) for k in node.keywords)
        node.args = [_Inside(claim, timed).visit(argument) for argument in node.args]
        return node


class _Inside(ast.NodeTransformer):
    def __init__(self, claim: str, timed: bool) -> None:
        self.claim, self.timed = claim, timed

    def visit_Compare(self, node: ast.Compare) -> ast.AST:  # noqa: N802
        if not all(type(op) in COMPARE for op in node.ops):
            return node
        told = [
            self.claim,
            ast.unparse(node),
            self.timed,
            [COMPARE[type(op)][0] for op in node.ops],
        ]
        call = ast.Call(
            ast.Name(NAME, ast.Load()),
            [ast.parse(repr(told), mode="eval").body, node.left, *node.comparators],
            [],
        )
        return ast.fix_missing_locations(ast.copy_location(call, node))


def _comparer(file: Path) -> Callable[..., Any]:
    def compare(told: list[Any], *sides: Any) -> Any:
        claim, source, timed, signs = told
        steps = list(zip(pairwise(sides), signs, strict=True))
        if all(isinstance(side, int | float) or hasattr(side, "__float__") for side in sides):
            rooms = [room(float(a), sign, float(b)) for (a, b), sign in steps]
            shown = [float(side) for side in sides]
            row = {"claim": claim, "source": source, "timed": timed, "sides": shown}
            row |= {"room": min(rooms), "at": time.time(), "run": os.getpid()}
            with file.open("a", encoding="utf-8") as lines:  # one write: others append too
                lines.write(json.dumps(row) + "\n")
        results = [BY_SIGN[sign](a, b) for (a, b), sign in steps]
        return results[0] if len(results) == 1 else all(results)  # one may be a column of answers

    return compare
