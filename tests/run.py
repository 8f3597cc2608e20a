#!/usr/bin/env python3
"""Set the course up if needed and test it:  python3 tests/run.py

Every lesson and every solution is run in a process of its own and compared with what is saved, and
every lesson once more on a cluster that it shares with others. What is skipped is named and counted.
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
import green  # noqa: E402
import up  # noqa: E402

CACHE = ROOT / ".cache"
RESULTS = CACHE / "results"
RUNS, COMPOSE_RUNS = "tests/test_lessons_run.py", "tests/test_lessons_compose.py"
AGAIN = "tests/test_lessons_again.py"
CONTAINERS = [f"tests/test_compose_{what}.py" for what in ("cluster", "verbs", "regions")]
# Tests ask for the kind of cluster that they mean; nothing in the environment may choose for them.
CLUSTER_VARIABLES = ("NATS_URL", "NATS_CREDS", "NATS_CA", "NATS_SERVER")
CLUSTER_VARIABLES += ("NATSLAB_CLUSTER", "NATSLAB_PORTS", "NATSLAB_COMPOSE_PROJECT")
LONGEST = ("up", "external", "regions", "cluster", "notebooks")  # unit tests, by file
# At a time, on two cores: lessons wait a good part of their time, tests less. Those that share a
# cluster run beside those on compose.
TESTS, LESSONS, SHARED = "3", "4", "2"
# Of the runs of a lesson: markers and columns.
KINDS = ("strict", "again", "shared", "workshop", "compose")
NO_LESSON = " and ".join(f"not {k}" for k in (*KINDS, "pairs", "browser", "containers"))
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ENGINE = "from natslab.clusters import compose_cli as c; c.require_engine(); c.find_compose()"
SPIN = "import os\nours = os.getppid()\nwhile os.getppid() == ours: pass"  # not longer than we live


class Suite:
    """What was run so far: steps with their verdicts, lessons with their times, what was skipped."""

    def __init__(self, python: Path, verbose: bool, unchanged: list[str]) -> None:
        self.python = python
        self.verbose = verbose
        self.unchanged = unchanged  # lessons that need no run
        self.children: set = set()
        self.failed: list[str] = []
        self.skipped: list[str] = []
        self.lessons: dict[str, dict] = {}
        self.counts = {"passed": 0, "failed": 0, "skipped": 0}
        self.stopping = False
        self.noting = threading.Lock()  # steps that run side by side note what they counted

    def start(self, command: list, **more) -> subprocess.Popen:
        """A child with the environment's programs first on PATH, ended with us."""
        path = os.pathsep.join([str(self.python.parent), os.environ.get("PATH", "")])
        env = {k: v for k, v in up.CLEAN.items() if k not in CLUSTER_VARIABLES}
        env.update(PATH=path, NATSLAB_RUN=str(os.getpid()), **more.pop("env", {}))
        # A session of its own: Ctrl-C reaches only us, and we end the children in good order.
        child = subprocess.Popen(
            [str(word) for word in command], cwd=ROOT, env=env, start_new_session=True, **more
        )
        self.children.add(child)
        return child

    def run(self, command: list, **env: str) -> tuple[int, str]:
        """Exit code and output of a command."""
        if self.stopping:
            return 130, "stopped"
        pipes = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.STDOUT,
        }
        child = self.start(command, env=env, text=True, errors="replace", **pipes)
        try:
            out, _ = child.communicate()
        finally:
            self.children.discard(child)
        return child.returncode, out

    def step(self, name: str, *commands: list, report: Path | None = None, **env: str) -> bool:
        """Run commands one after the other until one fails; say why, from its report or its output."""
        if self.stopping:
            return False
        start = time.monotonic()
        print(f"… {name}", flush=True)
        code, out = 0, ""
        for command in commands:
            code, out = self.run(command, **env)
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

    def pytest(self, name: str, *words: str, **env: str) -> bool:
        """One pytest run; what it counted is added up, what it skipped is named."""
        report = RESULTS / f"{file_name(name)}.xml"
        base = [self.python, "-m", "pytest", "-c", "tests/pytest.ini", "--rootdir", ROOT, "-q"]
        command = [*base, "--junitxml", report, *words]
        env = {"NATSLAB_UNCHANGED": ",".join(self.unchanged), **env}
        fine = self.step(name, command, report=report, **env)
        if report.exists():
            with self.noting:
                for case in xml.parse(report).iter("testcase"):
                    self.note(case)
        elif fine:
            self.failed.append(f"{name}: pytest left no report")
        return fine

    def note(self, case: xml.Element) -> None:
        """Count one test; of the run of a lesson, what it measured."""
        skip = case.find("skipped")
        bad = case.find("failure") is not None or case.find("error") is not None
        verdict = "failed" if bad else "passed" if skip is None else "skipped"
        self.counts[verdict] += 1
        told = {p.get("name"): p.get("value") for p in case.iter("property")}
        if skip is not None:
            self.skipped.append(f"{case.get('name')} ({skip.get('message')})")
        elif "lesson" in told:
            row = self.lessons.setdefault(told["lesson"], {})
            row[told["kind"]] = float(told["seconds"])
            row["cells"] = int(told.get("cells") or row.get("cells", 0))
            if bad:
                row.setdefault("failed", []).append(told["kind"])

    def stop(self, *_: object) -> None:
        """End all children; their own clean-up takes a moment."""
        self.stopping = True
        for child in list(self.children):
            child.send_signal(signal.SIGINT)  # on which pytest takes down what it has put up
        for child in list(self.children):
            try:
                child.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)


# ---- names ---------------------------------------------------------------------------------


def written() -> list[Path]:
    """The lessons that exist."""
    found = (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")
    return sorted(path for path in found if ".mine" not in path.name)  # those are a reader's


def file_name(step: str) -> str:
    """'unit-tests' for the step "unit tests"."""
    return re.sub(r"[^a-z0-9]+", "-", step.lower())


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return lines[-1][:200] if lines else "no output"


def among(lessons: list[Path]) -> list[str]:
    """The words that make pytest run these lessons only."""
    return ["-k", " or ".join(path.stem for path in lessons)]


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


def unit_tests(suite: Suite, quick: bool = False, nightly: bool = False, only: str = "") -> None:
    which = (
        NO_LESSON + ("" if nightly else " and not nightly") + (" and not servers" if quick else "")
    )
    # Whole files at a time: they share a cluster.
    words = ["-m", which, "-n", TESTS, "--dist", "loadfile", "--no-loadscope-reorder"]
    words += ["-k", only] if only else []
    name = "tests without servers" if quick else "unit tests"
    # The compose cluster of the tests that run beside these is not theirs, nor is a reader's.
    # The files that take longest first, or the others wait for them at the end.
    files = [f"tests/test_{name}.py" for name in LONGEST]
    suite.pytest(name, *words, *files, "tests", NATSLAB_COMPOSE_PROJECT="natslab-elsewhere")


def runs(
    suite: Suite, kind: str, lessons: list[Path], *more: str, n: str = LESSONS, **env: str
) -> None:
    """One kind of run of these lessons, `n` at a time; the longest first, so that all end together."""
    words = ["-n", n, "--dist", "load", "--maxschedchunk", "1", *among(lessons), *more]
    suite.pytest(f"lessons: {kind}", RUNS, AGAIN, "-m", kind, *words, **env)


def shared(suite: Suite, lessons: list[Path], all_: bool) -> None:
    """Lessons side by side on a cluster of somebody else, on which nothing may be left."""
    with shared_cluster(suite) as told:
        servers = ",".join(told["servers"])
        some = partial(runs, suite, n=SHARED, SHARED_CLUSTER=servers)
        some("shared", lessons, *([] if all_ else todays()))
        if all_:
            some("workshop", lessons)
        look = [suite.python, "tests/shared_cluster.py", "--left"]
        suite.step("nothing is left on the shared cluster", look, NATS_URL=servers)


@contextlib.contextmanager
def shared_cluster(suite: Suite):
    """A cluster in a process of its own, gone with this block."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    holder = suite.start([suite.python, "tests/shared_cluster.py"], text=True, **pipes)
    try:
        yield json.loads(holder.stdout.readline() or '{"servers": []}')
    finally:
        holder.communicate(timeout=30)  # closes its standard input, and it ends its cluster
        suite.children.discard(holder)


def compose(suite: Suite, name: str, *words: str) -> None:
    """Tests that need a Docker engine, one at a time: their ports are fixed."""
    code, out = suite.run([suite.python, "-c", ENGINE])
    if code:
        suite.skipped.append(f"{name}: {last_line(out)}")
        return
    suite.pytest(name, *words, NATSLAB_WORKER="gw4")


def browser(suite: Suite) -> None:
    if not any(map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))):
        suite.skipped.append("browser test: no Chromium is installed")
        return
    suite.pytest("JupyterLab in a browser", "tests/test_browser.py")


def side_by_side(*lanes: list) -> None:
    """Lanes run at the same time, the steps of a lane one after the other."""

    def in_order(steps: list) -> None:
        for step in steps:
            step()

    with ThreadPoolExecutor(len(lanes)) as pool:
        for lane in [pool.submit(in_order, steps) for steps in lanes]:
            lane.result()


def everything(suite: Suite, lessons: list[Path], all_: bool) -> None:
    """All steps; tests side by side claim nothing about time, or little."""
    often = [] if all_ else ["-m", "not nightly"]
    # A container that comes or goes changes the network: a browser drops its requests then.
    side_by_side(
        [partial(unit_tests, suite, nightly=all_)],
        [partial(browser, suite), partial(compose, suite, "containers", *CONTAINERS, *often)],
    )
    # Lessons wait so often that they leave a part of two cores idle.
    side_by_side([partial(runs, suite, "strict", lessons)], [partial(lint, suite)])
    # Who works on a lesson has all of it run again; where all are run, each has half of it.
    runs(suite, "again", lessons, *([] if all_ or suite.unchanged else todays()))
    on_compose = ["-m", "compose", *among(lessons)]
    pairs = ["-m", "pairs", *([] if all_ else todays())]
    lane = [partial(compose, suite, "two lessons at once on compose", COMPOSE_RUNS, *pairs)]
    if all_:
        lane.insert(0, partial(compose, suite, "lessons: compose", COMPOSE_RUNS, *on_compose))
    side_by_side([partial(shared, suite, lessons, all_)], lane)


def todays() -> list[str]:
    """What takes long is run by turns, every day something else."""
    return ["--turn", str(int(time.time() // 86400))]


# ---- margins -------------------------------------------------------------------------------


@contextlib.contextmanager
def load(suite: Suite, processes: int):
    """So many processes that do nothing but take the processor."""
    quiet = {"stderr": subprocess.DEVNULL}
    spinning = [suite.start([sys.executable, "-c", SPIN], **quiet) for _ in range(processes)]
    try:
        yield
    finally:
        for child in spinning:
            child.kill()
            child.wait()
            suite.children.discard(child)


@contextlib.contextmanager
def stalls(suite: Suite, wanted: bool):
    """Beside a process that stops some of the others for a moment, again and again."""
    if not wanted:
        yield
        return
    stalling = suite.start([suite.python, "tests/stalls.py", os.getpid()], stdin=subprocess.PIPE)
    try:
        yield
    finally:
        stalling.communicate(timeout=30)  # closes its standard input, and it ends
        suite.children.discard(stalling)


def margins(suite: Suite, lessons: list[Path]) -> None:
    """The room that the claims of these lessons have, the tightest first."""
    file = RESULTS / "margins.jsonl"
    runs(suite, "strict", lessons, NATSLAB_MARGINS=str(file))
    lines = file.read_text().splitlines() if file.exists() else []
    tightest: dict[tuple[str, str], dict] = {}
    for row in map(json.loads, lines):
        key = (row["claim"], row["source"])
        if row["room"] < tightest.get(key, {"room": float("inf")})["room"]:
            tightest[key] = row
    print(f"\n{len(lines)} comparisons of {len(tightest)} claims; room is the ratio of both sides")
    for name, timed in (("about time or rate", True), ("others", False)):
        some = sorted(
            (r for r in tightest.values() if r["timed"] == timed), key=lambda r: r["room"]
        )
        print(f"the ten tightest of the {len(some)} {name}:")
        for row in some[:10]:
            sides = ", ".join(f"{side:.4g}" for side in row["sides"])
            print(f"{row['room']:8.2f}  {row['claim']}  [{row['source']}: {sides}]")


# ---- the command ---------------------------------------------------------------------------


def table(suite: Suite, lessons: list[Path]) -> None:
    heads = "".join(f"{kind:>10}" for kind in KINDS)
    print(f"\n{'lesson':36} {'cells':>5}{heads}  verdict")
    for name, row in sorted(suite.lessons.items()):
        seconds = "".join(f"{f'{row[kind]:.1f} s' if kind in row else '':>10}" for kind in KINDS)
        verdict = f"failed: {', '.join(row['failed'])}" if "failed" in row else "ok"
        print(f"{name:36} {row['cells']:5}{seconds}  {verdict}")
    run = [path.stem for path in lessons if "strict" in suite.lessons.get(path.stem, {})]
    unchanged = [path.stem for path in lessons if path.stem in suite.unchanged]
    print(f"\n{len(run)} of {len(lessons)} lessons executed")
    shared_ = sum("shared" in row for row in suite.lessons.values())
    if 0 < shared_ < len(lessons):
        print(f"{shared_} of them had their turn on the shared cluster today; --all has each")
    if 0 < shared_ < len(lessons) and not unchanged:
        print("each had half of what is run again: its sections, or its exercises; --all has both")
    if unchanged:
        print(f"unchanged since they were green, and not run: {', '.join(unchanged)}")
    if len(run) + len(unchanged) < len(lessons):
        suite.failed.append("not every lesson was executed")


def summary(suite: Suite) -> None:
    for what in suite.skipped:
        print(f"skipped: {what}")
    for what in dict.fromkeys(suite.failed):
        print(f"failed: {what}")
    counts = ", ".join(f"{number} {verdict}" for verdict, number in suite.counts.items())
    print(f"\n{counts}", flush=True)


def command_line() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="run.py", description="Set up if needed, test what has changed since it was green."
    )
    add = parser.add_argument
    add("--lesson", type=int, action="append", metavar="NN", help="only this lesson")
    add("--quick", action="store_true", help="lint, structure, tests without servers")
    add("--fresh", action="store_true", help="skip no lesson because it has not changed")
    add("--all", action="store_true", help="also at the workshop scale, and all on compose")
    add("--margins", action="store_true", help="how much room the claims of the lessons have")
    add("--load", type=int, default=0, metavar="N", help="beside N processes that only spin")
    add("--stalls", action="store_true", help="some processes stand still, 0.4 s at a time")
    add("-k", metavar="EXPR", default="", help="only unit tests whose names match")
    add("--repeat", type=int, metavar="N", help="with --lesson: compare it N times, nothing else")
    add("--setup-only", action="store_true", help="make the environment and end")
    add("-v", "--verbose", action="store_true", help="show what every step prints")
    return parser.parse_args()


def asked(suite: Suite, args: argparse.Namespace, lessons: list[Path]) -> None:
    if args.k or args.quick:
        side_by_side(
            [partial(unit_tests, suite, args.quick, args.all, args.k)],
            [] if args.k else [partial(lint, suite)],
        )
    elif args.margins:
        margins(suite, lessons)
    elif args.repeat:
        for _ in range(args.repeat):
            runs(suite, "strict", lessons)
    elif args.lesson:
        runs(suite, "strict", lessons)
        runs(suite, "again", lessons)
        shared(suite, lessons, all_=True)
    else:
        everything(suite, lessons, args.all)


def main() -> int:
    args = command_line()
    python = up.ensure(extras=("test", "compose"))
    if args.setup_only:
        return 0
    shutil.rmtree(RESULTS, ignore_errors=True)
    RESULTS.mkdir(parents=True)
    start = time.monotonic()
    lessons = [p for p in written() if not args.lesson or int(p.name[:2]) in args.lesson]
    states = green.states(lessons, python)
    may_skip = not (args.fresh or args.all or args.lesson or args.margins or args.repeat)
    suite = Suite(python, args.verbose, green.unchanged(states) if may_skip else [])
    for number in STOPS:
        signal.signal(number, suite.stop)
    beside = args.load or (4 if args.margins else 0)  # on a quiet machine every claim has room
    with load(suite, beside), stalls(suite, args.stalls):
        asked(suite, args, lessons)
    if suite.stopping:
        print("stopped; nothing of the tests runs on", file=sys.stderr)
        return 130
    if not (args.k or args.quick):
        table(suite, lessons)
        green.note(states, suite.lessons)
    summary(suite)
    print(f"{time.monotonic() - start:.0f} s in all")
    return int(bool(suite.failed))


if __name__ == "__main__":
    sys.exit(main())
