"""What counts when two outputs of a cell are compared: all but what `compared.cfg` leaves out."""

from __future__ import annotations

import configparser
import re
from functools import cache
from pathlib import Path
from typing import Any

from natslab.authoring.files import IGNORED, Notebook, code_cells, tags

RULES = Path(__file__).with_name("compared.cfg")  # in the form that nbval reads
MEASURED = "\u2248"  # the mark before a number whose digits are free


@cache
def rules() -> list[tuple[str, str]]:
    """(pattern, replacement), in the order in which they are applied."""
    parser = configparser.RawConfigParser()
    parser.read_string(RULES.read_text(encoding="utf-8"))
    return [(parser[name]["regex"], parser[name]["replace"]) for name in parser.sections()]


def compared(notebook: Notebook) -> list[list[Any]]:
    """What nbval compares: per code cell its text outputs, nothing for cells that are measurements."""
    kept = []
    for cell in code_cells(notebook):
        outputs = [] if IGNORED in tags(cell) else cell.outputs
        kept.append([_text_part(output) for output in outputs])
    return kept


def _text_part(output: Any) -> Any:
    data = {
        kind: _what_counts(value)
        for kind, value in output.get("data", {}).items()
        if not kind.startswith("image/")
    }
    return [output.output_type, _what_counts(output.get("text", "")), data]


def _what_counts(value: Any) -> Any:
    if isinstance(value, str):
        for pattern, replacement in rules():
            value = re.sub(pattern, replacement, value)
    return value


def measures(notebook: Notebook) -> bool:
    """True when it shows what depends on how busy the machine was: pictures, free numbers."""
    return any(
        IGNORED in tags(cell) or any(map(_is_measured, cell.outputs))
        for cell in code_cells(notebook)
    )


def _is_measured(output: Any) -> bool:
    texts = [output.get("text", ""), *output.get("data", {}).values()]
    return "image/png" in output.get("data", {}) or any(MEASURED in str(text) for text in texts)
