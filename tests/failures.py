"""What failed, in a few lines: the cause, not the test's source. Standard library, Python from 3.9."""

from __future__ import annotations

import re
import xml.etree.ElementTree as xml
from pathlib import Path

COLOUR = re.compile(r"(?:\x1b|#x1B)\[[0-9;]*m")
MOST_LINES = 14  # of one failure
MOST_CHARACTERS = 200  # of one line


def told(report: Path) -> list[str]:
    """Lines for each test, and for the first cell of each notebook, that failed in a JUnit report."""
    lines, seen = [], set()
    for case in xml.parse(report).iter("testcase"):
        bad = case.find("failure")
        bad = case.find("error") if bad is None else bad
        place, name = case.get("classname", ""), case.get("name", "")
        notebook = place if ".ipynb" in place else None
        if bad is None or notebook in seen:
            continue  # the cells after a failed one fail too
        if notebook:
            seen.add(notebook)
        lines += [f"✘ {place} {name}", *(f"    {line}" for line in cause(bad.text or ""))]
    return lines


def cause(text: str) -> list[str]:
    """The end of a failure: of a cell its exception or the outputs that differ, of a test its `E` lines."""
    text = COLOUR.sub("", text).split("\nTraceback:\n")[-1]
    lines = [line.rstrip()[:MOST_CHARACTERS] for line in text.splitlines() if line.strip()]
    marked = [line for line in lines if line.startswith("E ")]
    return (marked[:MOST_LINES] if marked else lines[-MOST_LINES:]) or ["no text"]
