#!/usr/bin/env python3
"""Write lib/lock anew, after a change of lib/pyproject.toml:  python3 infra/lock.py

Every package that is ever installed, with its version and the hashes of its files, for all
platforms and Python versions. One file for the course and one for each extra, which holds only
what the extra adds. Versions that are locked stay; with --newest the newest of everything is
taken, and the versions in lib/pyproject.toml follow (where they hang on a platform, they stay).
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import tomllib  # author's command: any Python that the course runs on
from pathlib import Path

import up

PIN = re.compile(r'"([\w.-]+)((?:\[[\w,-]+\])?)==([\w.]+)"')
BLOCK = re.compile(r"^[a-z0-9].*?(?=^[a-z0-9]|\Z)", re.M | re.S)


def compiled(uv: str, needs: list[str], known: str) -> str:
    """The lock of some requirements; packages keep the versions that `known`, a lock, gives them."""
    with tempfile.TemporaryDirectory() as temporary:
        wanted, out = Path(temporary, "wanted.in"), Path(temporary, "lock.txt")
        wanted.write_text("\n".join(needs))
        out.write_text(known)
        command = [uv, "pip", "compile", wanted, "--output-file", out, "--no-header", "--quiet"]
        command += ["--universal", "--generate-hashes", "--no-annotate", "--python-version"]
        command += [
            f"3.{min(up.MINORS)}",
            "--no-emit-index-url",
            "--no-emit-find-links",
            *up.WHEELS[:4],
        ]
        done, tail = up.logged(command)
        if not done:
            raise up.failed(tail)
        return out.read_text()


def blocks(lock: str) -> dict[str, str]:
    """Requirement, with its marker, to its lines."""
    found = (match[0] for match in BLOCK.finditer(lock))
    return {block.split("\\")[0].strip(): block for block in found}


def newest(uv: str, text: str) -> str:
    """lib/pyproject.toml with the newest version of each package that it names."""
    names = sorted({f"{name}{extras}" for name, extras, _ in PIN.findall(text)})
    versions = dict(re.findall(r"^([\w.-]+)==([\w.]+)", compiled(uv, names, ""), re.M))
    return PIN.sub(lambda m: f'"{m[1]}{m[2]}=={versions[m[1].lower()]}"', text)


def write(uv: str, text: str, known: str) -> None:
    data = tomllib.loads(text)
    course, extras = data["project"]["dependencies"], data["project"]["optional-dependencies"]
    build = data["build-system"]["requires"]
    # All together, so that no two files ask for two versions of one package.
    every = [*build, *course, *(need for extra in extras.values() for need in extra)]
    whole = compiled(uv, every, known)
    base = blocks(compiled(uv, [*build, *course], whole))
    up.LOCKS.mkdir(exist_ok=True)
    for name, needs in {"build": build, "course": course, **extras}.items():
        found = blocks(compiled(uv, needs, whole))
        left = found if name in ("build", "course") else {k: found[k] for k in found.keys() - base}
        lines = "".join(left[key] for key in sorted(left))
        (up.LOCKS / f"{name}.txt").write_text(f"# Written by infra/lock.py.\n{lines}")
        up.say(f"lib/lock/{name}.txt: {len(left)} packages")


def main() -> int:
    parser = argparse.ArgumentParser(prog="lock.py", description=__doc__.splitlines()[0])
    parser.add_argument("--newest", action="store_true", help="the newest of everything")
    asked = parser.parse_args()
    uv = up.find_uv() or str(up.VENV / "bin" / "uv")
    if not up.output(uv, "--version"):
        raise SystemExit("This needs uv: `pip install uv`, then run the same command again.")
    text = up.PYPROJECT.read_text()
    if asked.newest:
        text = newest(uv, text)
        up.PYPROJECT.write_text(text)
    known = "" if asked.newest else "".join(p.read_text() for p in up.LOCKS.glob("*.txt"))
    write(uv, text, known)
    return 0


if __name__ == "__main__":
    sys.exit(main())
