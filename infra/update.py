"""Bring the newer course, and keep every line that the learner wrote:  python3 infra/up.py --update

Notebooks are merged by cell: what the learner wrote stays, everything else becomes the newer
course's. Where both changed one cell, the learner's stays and what was held back is named. What
only JupyterLab wrote (outputs, counters, metadata) never stands in the way. Other files are merged
by line, by the same rule. Before anything is touched, the learner's state is kept in git as
`refs/natslab/before-update`, and each file that is merged as `NAME.mine.ipynb` until it is.
Only the standard library, any Python from 3.9, as in up.py.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

BUSY = ("MERGE_HEAD", "CHERRY_PICK_HEAD", "REVERT_HEAD", "rebase-merge", "rebase-apply")
SAFE = "refs/natslab/before-update"
# git must not ask for a password here, nor speak another language.
QUIET = {"GIT_TERMINAL_PROMPT": "0", "GIT_EDITOR": "true", "LC_ALL": "C"}
NAME = {
    f"GIT_{who}_{what}": "natslab" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
}
STEERING = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX")


class Git:
    """git in one folder; `run` raises CalledProcessError, `text` is empty then."""

    def __init__(self, root: Path) -> None:
        self.root = root
        env = {name: value for name, value in os.environ.items() if name not in STEERING}
        self.env = {**env, **QUIET, **NAME}

    def run(self, *words: str | Path) -> bytes:
        command = ["git", "-c", "core.quotepath=off", *map(str, words)]
        done = subprocess.run(command, cwd=self.root, env=self.env, capture_output=True, check=True)
        return done.stdout

    def text(self, *words: str | Path) -> str:
        try:
            return self.run(*words).decode().strip()
        except subprocess.CalledProcessError:
            return ""

    def holds(self, *words: str) -> bool:
        try:
            self.run(*words)
            return True
        except subprocess.CalledProcessError:
            return False

    def paths(self, *words: str) -> set[str]:
        return {os.fsdecode(name) for name in self.run(*words, "-z").split(b"\0") if name}

    def file(self, commit: str, path: str) -> bytes | None:
        """What a commit has at a path, as it would lie on the disk; None when it has nothing."""
        try:
            return self.run("cat-file", "--filters", f"{commit}:{path}")
        except subprocess.CalledProcessError:
            return None


# ---- merging -------------------------------------------------------------------------------


def written(cell: dict) -> list:
    """What a person writes in a cell; the rest is JupyterLab's."""
    return [cell["cell_type"], "".join(cell["source"]), cell.get("attachments") or {}]


def identified(cells: list, base: list, whose: str) -> dict:
    """Cells by id. Some editors write none or new ones: then a cell is known by its text."""
    known = {cell.get("id"): cell for cell in base}
    found: dict = {}
    for number, cell in enumerate(cells):
        key = cell.get("id")
        if key not in known:
            same = (k for k, other in known.items() if written(other) == written(cell))
            taken = {*found, *(other.get("id") for other in cells)}
            key = next((k for k in same if k not in taken), key)
        if key is None or key in found:
            key = f"{whose}-{number}"
        found[key] = {**cell, "id": key}
    return found


def first_line(cell: dict) -> str:
    lines = "".join(cell["source"]).strip().splitlines() or ["an empty cell"]
    return f'"{lines[0][:60]}"'


def merge_notebook(base: dict, mine: dict, theirs: dict) -> tuple[dict, list[str]]:
    """The newer notebook with what the learner wrote in it, and what was held back, in words."""
    before = identified(base["cells"], [], "base")
    own = identified(mine["cells"], base["cells"], "mine")
    new = identified(theirs["cells"], base["cells"], "course")
    cells: dict = {}
    held = []
    for key, cell in new.items():
        old, left = before.get(key), own.get(key)
        moved_on = old is None or written(cell) != written(old)
        if left is None and old is not None:  # the learner deleted it
            if moved_on:
                held.append(f"you deleted a cell that is newer now: {first_line(cell)}")
            continue
        if left is None or (old is not None and written(left) == written(old)):
            cells[key] = cell
            continue
        cells[key] = left
        if moved_on and written(left) != written(cell):
            held.append(f"you and the course changed one cell, yours stays: {first_line(left)}")
    last = None
    for key, cell in own.items():
        old = before.get(key)
        if key not in new and (old is None or written(cell) != written(old)):
            if old is not None:
                held.append(f"the course dropped a cell that you changed: {first_line(cell)}")
            cells = inserted(cells, last, key, cell)
        if key in cells:
            last = key
    return {**theirs, "cells": list(cells.values())}, held


def inserted(cells: dict, after: str | None, key: str, cell: dict) -> dict:
    """The cells with one more after a certain one, or at the beginning."""
    items = list(cells.items())
    place = 0 if after is None else list(cells).index(after) + 1
    return dict([*items[:place], (key, cell), *items[place:]])


def merge_notebook_bytes(base: bytes, mine: bytes, theirs: bytes) -> tuple[bytes, list[str]]:
    """The same for files. Raises ValueError, KeyError or TypeError where one is no notebook."""
    merged, held = merge_notebook(*(json.loads(text) for text in (base, mine, theirs)))
    if merged == json.loads(theirs):
        return theirs, held
    text = json.dumps(merged, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    return text.encode(), held


def merge_lines(git: Git, base: bytes, mine: bytes, theirs: bytes) -> tuple[bytes, list[str]]:
    """Lines of both; where both changed some, the learner's. A picture stays the learner's."""
    with tempfile.TemporaryDirectory() as temporary:
        names = [Path(temporary, name) for name in ("mine", "base", "theirs")]
        for number, content in enumerate((mine, base, theirs)):
            names[number].write_bytes(content)
        try:
            merged = git.run("merge-file", "-p", "--ours", *names)
        except subprocess.CalledProcessError:
            return mine, ["yours stays as it was, it cannot be merged"]
        clean = git.holds("merge-file", "-p", *names)
        return merged, [] if clean else ["you and the course changed the same lines, yours stay"]


def nothing_written(path: str, base: bytes, mine: bytes) -> bool:
    """Whether only JupyterLab wrote in a notebook."""
    try:
        old, new = (json.loads(text)["cells"] for text in (base, mine))
        return path.endswith(".ipynb") and [*map(written, old)] == [*map(written, new)]
    except (ValueError, KeyError, TypeError):
        return False


def merge(git: Git, path: str, base: bytes, mine: bytes, theirs: bytes) -> tuple[bytes, list[str]]:
    if mine == theirs:
        return theirs, []
    if not path.endswith(".ipynb"):
        return merge_lines(git, base, mine, theirs)
    return merge_notebook_bytes(base, mine, theirs)


# ---- keeping ------------------------------------------------------------------------------


def is_file(path: Path) -> bool:
    """A link counts, wherever it leads; a folder does not."""
    return path.is_symlink() or path.is_file()


def kept_beside(path: Path) -> Path:
    """A copy of the learner's file beside it, under a name that git ignores and nothing has yet."""
    number = 1
    while True:
        mark = "mine" if number == 1 else f"mine-{number}"
        copy = path.with_name(f"{path.stem}.{mark}{path.suffix}")
        if not os.path.lexists(copy):
            shutil.copy2(path, copy, follow_symlinks=False)
            return copy
        number += 1


def write(path: Path, content: bytes) -> None:
    """All or nothing."""
    draft = path.with_name(path.name + ".new")
    draft.write_bytes(content)
    shutil.copymode(path, draft)
    draft.replace(path)


# ---- the command --------------------------------------------------------------------------


def newer(git: Git) -> tuple[str, str]:
    """The commit that is here and the newest of the course; a sentence where that cannot be told."""
    if not shutil.which("git"):
        raise SystemExit("The update needs git: install it, then run the same command again.")
    if not (git.root / ".git").exists():
        raise SystemExit(
            "This folder was not cloned with git, so the newer course cannot come into it: "
            "download it again beside this one, and copy the notebooks that you changed."
        )
    here = git.text("rev-parse", "--verify", "HEAD")
    if not here:
        raise SystemExit("git cannot read this folder: `git status` here says why.")
    folder = git.root / git.text("rev-parse", "--git-dir")
    if any((folder / name).exists() for name in BUSY) or git.paths(
        "diff", "--name-only", "--diff-filter=U"
    ):
        raise SystemExit(
            "A merge or a rebase is under way here: finish or abort it (`git status` says how), "
            "then run the same command again."
        )
    branch = git.text("symbolic-ref", "--short", "HEAD")
    remote = git.text("config", f"branch.{branch}.remote") if branch else ""
    if not remote or remote == ".":
        raise SystemExit(
            "The branch here does not follow the course's: run `git switch main`, "
            "then the same command again."
        )
    try:
        git.run("fetch", "--quiet", remote)
    except subprocess.CalledProcessError as error:
        why = error.stderr.decode(errors="replace").strip().splitlines() or [""]
        raise SystemExit(
            f"  | {why[-1]}\nThe newer course could not be fetched: check the network, "
            "then run the same command again."
        ) from None
    there = git.text("rev-parse", "--verify", "@{upstream}")
    if not there:
        raise SystemExit("The branch that this one follows is gone: run `git switch main`.")
    if git.holds("merge-base", "--is-ancestor", there, here):
        return here, here  # nothing newer, whatever else is here
    if not git.holds("merge-base", "--is-ancestor", here, there):
        raise SystemExit(
            f"The branch {branch} has commits of your own: merge the course into it yourself with "
            "`git pull`, or run `git switch` to a branch without."
        )
    return here, there


def update(root: Path) -> int:
    """Bring the newer course; 0 when it is here, or was. Says what was held back."""
    git = Git(root)
    here, there = newer(git)
    if here == there:
        print("This is the newest course already.")
        return 0
    state = git.text("stash", "create") or here
    git.run("update-ref", "--create-reflog", SAFE, state)
    theirs = git.paths("diff", "--name-only", "--no-renames", here, there)
    mine = git.paths("diff", "--name-only", "--no-renames", "HEAD")
    # Also what git does not know, where the newer course has a file.
    mine |= {p for p in theirs if git.file(here, p) is None}
    # Copies first: whatever happens on the way, what the learner has is here. (What was deleted
    # comes back.)
    both = sorted(mine & theirs)
    copies = {path: kept_beside(root / path) for path in both if is_file(root / path)}
    try:
        outcomes = {path: outcome(git, path, here, there, copies[path]) for path in copies}
        step_aside(git, both, here)
        git.run("merge", "--quiet", "--ff-only", there)
    except BaseException as error:
        for path, copy in copies.items():
            copy.replace(root / path)
        if not isinstance(error, subprocess.CalledProcessError):
            raise
        why = error.stderr.decode(errors="replace").strip().splitlines() or [""]
        raise SystemExit(
            f"  | {why[-1]}\ngit could not bring the newer course, and all is as it was: mend what "
            "is said above, then run the same command again."
        ) from None
    held = {path: words for path, (_, words) in outcomes.items() if words}
    for path, (content, words) in outcomes.items():
        if content is not None:
            write(root / path, content)
        elif words:
            words.append(f"yours is kept as {copies[path].name}")
            continue
        copies[path].unlink()
    report(git, here, there, held)
    return 0


def outcome(
    git: Git, path: str, here: str, there: str, copy: Path
) -> tuple[bytes | None, list[str]]:
    """What stands at a path afterwards (None: what the newer course has), and what is to be said."""
    base, newest = git.file(here, path), git.file(there, path)
    if copy.is_symlink():
        return None, ["the newer course has a file where you have a link"]
    mine = copy.read_bytes()
    if newest is None:
        return None, [] if base and nothing_written(path, base, mine) else [
            "it is not in the newer course any more"
        ]
    if base is None:
        if mine == newest:
            return newest, []
        return None, ["the newer course has a file of this name"]
    try:
        return merge(git, path, base, mine, newest)
    except (ValueError, KeyError, TypeError):
        return None, ["it is no notebook that can be merged"]


def step_aside(git: Git, paths: list[str], here: str) -> None:
    """Put the files in question back to what they were, so that git can move on."""
    git.run("reset", "--quiet")  # what was staged is in the kept state, and still on the disk
    for path in paths:
        if git.file(here, path) is not None:
            git.run("checkout", "--quiet", "HEAD", "--", f":(literal){path}")
        elif is_file(git.root / path):
            (git.root / path).unlink()


def report(git: Git, here: str, there: str, held: dict[str, list[str]]) -> None:
    count = git.text("rev-list", "--count", f"{here}..{there}")
    print(f"The newer course is here ({count} {'change' if count == '1' else 'changes'}).")
    for path, words in held.items():
        for line in words:
            print(f"  {path}: {line}")
    if held:
        print("The course's version of a lesson: `natslab reset NN` (keeps yours beside it).")
    print("Close JupyterLab if it is open, then run `python3 infra/up.py`.")
    sys.stdout.flush()
