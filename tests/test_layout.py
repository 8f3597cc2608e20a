"""Who may know whom in the library, read from its imports: drawing, clusters, and what authors use."""

import ast
from pathlib import Path

import pytest
from helpers import ROOT

PACKAGE = ROOT / "lib" / "natslab"
# What a lesson imports.
FACE = {
    *("natslab", "natslab.charts", "natslab.measure", "natslab.prometheus", "natslab.auth"),
    *("natslab.batches", "natslab.crowd", "natslab.kernels"),
}


def name_of(path: Path) -> str:
    """'natslab.charts' for charts/__init__.py, 'natslab.charts.style' for charts/style.py."""
    words = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(words[:-1] if words[-1] == "__init__" else words)


FILES = {name_of(path): path for path in PACKAGE.rglob("*.py")}


def imports(module: str) -> set[str]:
    """The modules of ours that a module imports, anywhere in it; `natslab` only names its face."""
    found = set()
    for node in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found & FILES.keys() - {"natslab"}


def known_to(modules: set[str]) -> set[str]:
    """These modules and all that they import, directly or not."""
    known, new = set(), set(modules)
    while new:
        known |= new
        new = {other for module in new for other in imports(module)} - known
    return known


def within(package: str) -> set[str]:
    return {name for name in FILES if name == package or name.startswith(f"{package}.")}


@pytest.mark.parametrize(
    ("who", "stranger"),
    [
        (FACE, "natslab.authoring"),
        (within("natslab.clusters"), "natslab.authoring"),
        (within("natslab.clusters"), "natslab.charts"),
        (within("natslab.charts"), "natslab.clusters"),
    ],
    ids=["a lesson", "clusters, authors", "clusters, drawing", "drawing, clusters"],
)
def test_who_does_not_know_whom(who: set[str], stranger: str) -> None:
    assert who <= FILES.keys() and within(stranger)
    assert not known_to(who) & within(stranger)


def test_imports_are_seen() -> None:
    assert "natslab.charts.style" in imports("natslab.charts.amounts")
    assert "natslab.clusters.connect" in known_to({"natslab"})
