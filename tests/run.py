#!/usr/bin/env python3
"""Set the course up if needed and test everything:  python3 tests/run.py

Every lesson is run three times: strictly compared with its saved outputs, and twice in a row on one
shared cluster, the second time at the workshop scale; its solutions once, strictly compared. What is skipped is named and counted.
Only the standard library, any Python from 3.9: it runs before the environment exists.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as xml
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "infra"))
import failures  # noqa: E402
import up  # noqa: E402

CACHE = ROOT / ".cache"
RESULTS = CACHE / "results"
# Tests ask for the kind of cluster that they mean; nothing in the environment may choose for them.
CLUSTER_VARIABLES = ("NATS_URL", "NATS_CREDS", "NATSLAB_CLUSTER", "NATS_SERVER", "NATSLAB_PORTS")
CELL_SECONDS = 120
WORKERS = "3"  # lessons wait a good part of their time: three at a time keep two cores busy
SECONDS = ("strict", "shared", "workshop")
EACH_FILE = ["-n", WORKERS, "--dist", "loadfile"]  # a lesson's cells belong to one worker
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
NBVAL = ["--nbval", "--nbval-current-env", f"--nbval-cell-timeout={CELL_SECONDS}"]
PAIRS = "tests/test_lessons_compose.py"
ENGINE = (
    "from natslab.clusters import compose_cli as c; c.require_engine(); print(c.find_compose())"
)


class Suite:
    """What was run so far: steps with their verdicts, lessons with their times, what was skipped."""

    def __init__(self, python: Path, verbose: bool) -> None:
        self.python = python
        self.verbose = verbose
        self.children: set = set()
        self.failed: list[str] = []
        self.skipped: list[str] = []
        self.lessons: dict[str, dict] = {}
        self.counts = {"passed": 0, "failed": 0, "skipped": 0}
        self.stopping = False
        self.noting = threading.Lock()  # steps that run side by side note what they counted

    def run(self, command: list, **more: str) -> tuple[int, str]:
        """Exit code and output of a command, run with the environment's programs first on PATH."""
        if self.stopping:
            return 130, "stopped"
        path = os.pathsep.join([str(self.python.parent), os.environ.get("PATH", "")])
        env = {k: v for k, v in up.CLEAN.items() if k not in CLUSTER_VARIABLES}
        child = subprocess.Popen(
            [str(word) for word in command],
            cwd=ROOT,
            env={**env, "PATH": path, **more},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C reaches only us; we end the children in good order
        )
        self.children.add(child)
        try:
            out, _ = child.communicate()
        finally:
            self.children.discard(child)
        return child.returncode, out

    def step(self, name: str, *commands: list, report: Path | None = None, **more: str) -> bool:
        """Run commands one after the other until one fails; say why, from its report or its output."""
        if self.stopping:
            return False
        start = time.monotonic()
        print(f"… {name}", flush=True)
        code, out = 0, ""
        for command in commands:
            code, out = self.run(command, **more)
            if code:
                break
        print(f"{'✘' if code else '✔'} {name}: {time.monotonic() - start:.0f} s", flush=True)
        if code:
            self.failed.append(name)
        if self.verbose and not self.stopping:
            print(out)
        elif code and not self.stopping:
            log = RESULTS / f"{file_name(name)}.log"
            log.write_text(out)
            reported = failures.told(report) if report and report.exists() else []
            print("\n".join(reported or out.strip().splitlines()[-60:]))
            print(f"(all of it: {log.relative_to(ROOT)})", flush=True)
        return code == 0

    def pytest(self, name: str, *words: str, **more: str) -> bool:
        """One pytest run; what it counted is added up, what it skipped is named."""
        report = RESULTS / f"{file_name(name)}.xml"
        base = [self.python, "-m", "pytest", "-c", "tests/pytest.ini", "--rootdir", ROOT, "-q"]
        command = [*base, "--junitxml", report, *words]
        fine = self.step(name, command, report=report, **more)
        if report.exists():
            with self.noting:
                for case in xml.parse(report).iter("testcase"):
                    self.note(case)
        elif fine:
            self.failed.append(f"{name}: pytest left no report")
        return fine

    def note(self, case: xml.Element) -> None:
        """Count one test or one cell."""
        skip = case.find("skipped")
        bad = case.find("failure") is not None or case.find("error") is not None
        verdict = "failed" if bad else "passed" if skip is None else "skipped"
        self.counts[verdict] += 1
        if skip is not None:
            self.skipped.append(f"{case.get('name')} ({skip.get('message')})")
        if ".ipynb" in case.get("classname", ""):
            lesson = self.lesson(notebook_of(case))
            lesson["cells"] += 1
            lesson["strict"] += float(case.get("time", 0))
            if bad:
                lesson["failed"] = f"{case.get('name')} differs from what is saved"
        if again := re.fullmatch(r"test_twice_on_a_shared_cluster\[(\w+)\]", case.get("name", "")):
            lesson = self.lesson(again[1])
            lesson.update({p.get("name"): float(p.get("value")) for p in case.iter("property")})
            if bad:
                lesson["failed"] = "failed on the shared cluster"

    def lesson(self, name: str) -> dict:
        """What is known of a notebook: cells, seconds of each kind of run, why it failed."""
        return self.lessons.setdefault(name, {"cells": 0, **dict.fromkeys(SECONDS, 0.0)})

    def stop(self, *_: object) -> None:
        """End all children; their own clean-up takes a moment."""
        self.stopping = True
        for child in list(self.children):
            child.send_signal(signal.SIGTERM)
        for child in list(self.children):
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)


# ---- names ---------------------------------------------------------------------------------


def written() -> list[Path]:
    """The lessons that exist."""
    return sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def name_of(path: Path) -> str:
    """'solutions/01_pub_sub' for a notebook."""
    return str(path.relative_to(ROOT / "notebooks").with_suffix(""))


def notebook_of(case: xml.Element) -> str:
    """The same from the class name that nbval gives to a cell: 'notebooks.solutions.01_pub_sub.ipynb'."""
    words = case.get("classname", "").split(".")
    return "/".join(words[words.index("notebooks") + 1 : -1])


def file_name(step: str) -> str:
    """'unit-tests' for the step "unit tests"."""
    return re.sub(r"[^a-z0-9]+", "-", step.lower())


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return lines[-1][:200] if lines else "no output"


# ---- the steps -----------------------------------------------------------------------------


def lint(suite: Suite) -> None:
    bin_, code = suite.python.parent, ["lib", "infra", "tests", "notebooks"]
    suite.step(
        "ruff, mypy, saved notebooks in order",
        [bin_ / "ruff", "check", *code],
        [bin_ / "ruff", "format", "--check", *code],
        [bin_ / "mypy", "--config-file", "lib/pyproject.toml", "lib/natslab"],
        [suite.python, "-m", "natslab", "refresh", "--check"],
    )


def unit_tests(suite: Suite, only: str) -> None:
    # The file that takes longest first, or the others wait for it at the end.
    files = ["tests/test_up.py", "tests"]
    words = ["-m", "not compose and not browser and not lessons", *EACH_FILE, *files]
    suite.pytest("unit tests", *words, *(["-k", only] if only else []))


def strict(suite: Suite, lessons: list[Path]) -> None:
    """Every cell's output is what is saved: one file per worker."""
    solutions = [path.parent / "solutions" / path.name for path in lessons]
    # Later lessons take longer; they come first, so that all workers end together.
    files = [path for path in [*lessons[::-1], *solutions] if path.exists()]
    name = "lessons and solutions, strictly"
    suite.pytest(name, *NBVAL, *EACH_FILE, *map(str, files), NATSLAB_CLUSTER="embedded")


def again(suite: Suite, lessons: list[Path]) -> None:
    """Each lesson twice on a cluster of somebody else, side by side with others; nothing is left."""
    words = ["-m", "lessons", "-n", WORKERS, "--dist", "load", "--maxschedchunk", "1", "tests"]
    chosen = " or ".join(path.stem for path in lessons)
    with shared_cluster(suite) as told:
        servers = ",".join(told["servers"])
        name = "lessons twice on one shared cluster, first small, then large"
        suite.pytest(name, *words, "-k", chosen, SHARED_CLUSTER=servers)
        look = [suite.python, "tests/shared_cluster.py", "--left"]
        suite.step("nothing is left on the shared cluster", look, NATS_URL=servers)


@contextlib.contextmanager
def shared_cluster(suite: Suite):
    """A cluster in a process of its own, gone with this block."""
    holder = subprocess.Popen(
        [str(suite.python), str(ROOT / "tests" / "shared_cluster.py")],
        env=up.CLEAN,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield json.loads(holder.stdout.readline() or "{}")
    finally:
        holder.communicate(timeout=30)  # closes its standard input, and it ends its cluster


def compose(suite: Suite, name: str, *words: str) -> None:
    code, out = suite.run([suite.python, "-c", ENGINE])
    if code:
        suite.skipped.append(f"{name}: {last_line(out)}")
        return
    suite.pytest(name, "-m", "compose", *words)


def browser(suite: Suite) -> None:
    if not any(map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))):
        suite.skipped.append("browser test: no Chromium is installed")
        return
    suite.pytest("JupyterLab in a browser", "-m", "browser", "tests")


def repeat(suite: Suite, lessons: list[Path], times: int) -> None:
    """The same lesson again and again, on whatever cluster the environment asks for."""
    chosen = {name: os.environ[name] for name in CLUSTER_VARIABLES if name in os.environ}
    for i in range(times):
        files = [str(path) for path in lessons]
        suite.pytest(f"run {i + 1} of {times}", *NBVAL, *files, **chosen)


def side_by_side(*lanes: list) -> None:
    """Lanes run at the same time, the steps of a lane one after the other."""

    def in_order(steps: list) -> None:
        for step in steps:
            step()

    with ThreadPoolExecutor(len(lanes)) as pool:
        for lane in [pool.submit(in_order, steps) for steps in lanes]:
            lane.result()


def everything(suite: Suite, lessons: list[Path], *, quick: bool, only_lessons: bool) -> None:
    """All steps, some side by side.

    Not the strict runs, whose outputs tell of measurements; and not the unit tests beside the
    compose tests, because some ask whether the compose cluster is up.
    """
    units, check = partial(unit_tests, suite, ""), partial(lint, suite)
    compared, repeated = partial(strict, suite, lessons), partial(again, suite, lessons)
    browsed = partial(browser, suite)
    contained = partial(compose, suite, "compose tests", "tests", "--ignore", PAIRS)
    if not only_lessons:
        side_by_side([units], [check] if quick else [check, browsed])
    if quick:
        compared()
    elif only_lessons:
        side_by_side([compared, repeated])
    else:
        compared()
        side_by_side([repeated], [contained])
        compose(suite, "lessons on compose, two at once", PAIRS)


# ---- the command ---------------------------------------------------------------------------


def table(suite: Suite, lessons: list[Path]) -> None:
    print(f"\n{'lesson':36} {'cells':>5} {'compared':>9} {'shared':>7} {'workshop':>9}  verdict")
    for name, row in sorted(suite.lessons.items()):
        verdict = row.get("failed", "ok")
        seconds = [f"{row[kind]:.1f} s" if row[kind] else "" for kind in SECONDS]
        print(
            f"{name:36} {row['cells']:5} {seconds[0]:>9} {seconds[1]:>7} {seconds[2]:>9}  {verdict}"
        )
    names = [name_of(path) for path in lessons]
    executed = sum(suite.lessons.get(name, {}).get("cells", 0) > 0 for name in names)
    print(f"\n{executed} of {len(names)} lessons executed, {len(names) - executed} skipped")
    if executed < len(names):
        suite.failed.append("not every lesson was executed")
    for what in suite.skipped:
        print(f"skipped: {what}")
    for what in dict.fromkeys(suite.failed):
        print(f"failed: {what}")
    counts = ", ".join(f"{number} {verdict}" for verdict, number in suite.counts.items())
    print(f"\n{counts}", flush=True)


def command_line() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="run.py", description="Set up if needed, test everything."
    )
    add = parser.add_argument
    add("--lesson", type=int, action="append", metavar="NN", help="only this lesson")
    add("--quick", action="store_true", help="lint, unit tests, one strict run of the lessons")
    add("-k", metavar="EXPR", default="", help="only unit tests whose names match")
    add("--repeat", type=int, metavar="N", help="with --lesson: run it N times, nothing else")
    add("--setup-only", action="store_true", help="make the environment and end")
    add("-v", "--verbose", action="store_true", help="show what every step prints")
    return parser.parse_args()


def main() -> int:
    args = command_line()
    python = up.ensure(extras=("test", "compose"))
    if args.setup_only:
        return 0
    shutil.rmtree(RESULTS, ignore_errors=True)
    RESULTS.mkdir(parents=True)
    start = time.monotonic()
    suite = Suite(python, args.verbose)
    for number in STOPS:
        signal.signal(number, suite.stop)
    lessons = [p for p in written() if not args.lesson or int(p.name[:2]) in args.lesson]
    if args.repeat:
        repeat(suite, lessons, args.repeat)
    elif args.k:
        unit_tests(suite, args.k)
        lessons = []
    else:
        everything(suite, lessons, quick=args.quick, only_lessons=bool(args.lesson))
    if suite.stopping:
        print("stopped; nothing of the tests runs on", file=sys.stderr)
        return 130
    table(suite, lessons)
    print(f"{time.monotonic() - start:.0f} s in all")
    return int(bool(suite.failed))


if __name__ == "__main__":
    sys.exit(main())
