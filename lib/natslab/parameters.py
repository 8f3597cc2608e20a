"""The constants in the cell tagged `parameters`, read from its text: scales and minima.

A line there states all that is known of one: `n_jobs: int = 240  # workshop: 1_000, at least 6`.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from natslab.errors import LabError

LINE = re.compile(r"(\w+): (int|float|str|bool) = ([^#\n]+?)(?:\s+#(.*))?")
TYPES = {"int": "a whole number", "float": "a number", "str": "text", "bool": "True or False"}


@dataclass(frozen=True)
class Parameter:
    """One constant: the name of its type, its value, its values at other scales, its minimum."""

    type: str
    value: Any
    scales: dict[str, Any] = field(default_factory=dict)
    minimum: float | None = None


def stated(source: str) -> dict[str, Parameter]:
    """The parameters that the text of a cell states, by name; other lines are passed over."""
    found = {}
    for line in source.splitlines():
        if match := LINE.fullmatch(line.strip()):
            name, kind, value, comment = match.groups(default="")
            found[name] = Parameter(kind, _literal(value), _scales(comment), _minimum(comment))
    return found


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return None  # an expression, or words in a comment


def _scales(comment: str) -> dict[str, Any]:
    pairs = re.findall(r"\b(\w+):\s*([^,\s]+)", comment)
    return {name: value for name, text in pairs if (value := _literal(text)) is not None}


def _minimum(comment: str) -> float | None:
    match = re.search(r"\bat least (\d[\d_]*(?:\.\d+)?)", comment)
    return ast.literal_eval(match[1]) if match else None


def at_scale(known: Mapping[str, Parameter], scale: str) -> dict[str, Any]:
    """The values at another scale; "" is the lesson's own. Raises LabError for an unknown scale.

    A line `n_orders: int = 500  # workshop: 50_000` has the value 50_000 at the scale "workshop".
    """
    values = {name: p.scales[scale] for name, p in known.items() if scale in p.scales}
    if scale and not values:
        have = sorted({name for p in known.values() for name in p.scales})
        raise LabError(f"There is no scale {scale!r}; there is: {', '.join(have) or 'none'}.")
    return values


def typed(known: Mapping[str, Parameter], words: Iterable[str]) -> dict[str, Any]:
    """`["n_jobs=6"]` as values of the types that the cell states.

    Raises LabError for a word without `=`, an unknown name, a value of another type.
    """
    values = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise LabError(f"{word!r} is no parameter: write name=value.")
        if name not in known:
            raise LabError(
                f"There is no parameter {name!r}; there is: {', '.join(known) or 'none'}."
            )
        values[name] = _typed(name, known[name].type, text)
    return values


def _typed(name: str, kind: str, text: str) -> Any:
    try:
        return _READ[kind](text)
    except ValueError:
        raise LabError(f"{name} is {TYPES[kind]}, and {text!r} is not.") from None


def _bool(text: str) -> bool:
    if text not in ("True", "False"):
        raise ValueError(text)
    return text == "True"


_READ: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "str": str, "bool": _bool}


def refuse_impossible(cells: Iterable[str], values: Mapping[str, Any]) -> None:
    """Raise LabError when a value is below the minimum that one of the cells states for it."""
    for cell in cells:
        for name, parameter in stated(cell).items():
            value, minimum = values.get(name, parameter.value), parameter.minimum
            if minimum is None:
                continue
            right = isinstance(value, int if parameter.type == "int" else int | float)
            if not (right and minimum <= value < float("inf")):  # a nan is neither
                kind = "" if right else f"{TYPES[parameter.type]} of "
                raise LabError(
                    f"{name} is {value!r}, this lesson needs {kind}at least {minimum:,}: "
                    "change it in the first code cell and run from there."
                )


def refuse_impossible_here() -> None:
    """`refuse_impossible` for the notebook that calls this; outside IPython nothing happens.

    It reads the text of the cells that were run, so it sees a value that the reader wrote there
    and one that papermill set in a cell of its own behind them.
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell:
        refuse_impossible(shell.user_ns.get("In", []), shell.user_ns)
