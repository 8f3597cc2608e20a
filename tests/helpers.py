"""What several test files need: waiting, looking for what is left, a cluster held by another process."""

import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as xml
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import failures
import psutil
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
KERNELS = ROOT / "lib" / "natslab" / "kernels.py"
HOLDER = ROOT / "tests" / "shared_cluster.py"
# A shell has what it starts with a `&` ignore SIGINT, and so would our children, whose interruptions
# are tested.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# What may point a lesson at a cluster of somebody else.
CLUSTER_VARIABLES = ("NATS_URL", "NATS_CREDS", "NATS_CA", "NATSLAB_CLUSTER", "NATS_SERVER")
Note = Callable[[str, object], None]  # pytest's record_property
CELL_SECONDS = 240  # for one cell: what it waits for has given up by then, and says its name
RUN_SECONDS = 400  # for one notebook
# Without a grammar of international addresses that jsonschema compiles for 1.5 s and no notebook needs.
LEAN = "import sys; sys.modules['rfc3987_syntax'] = None"
# nbval with the kernels of `natslab run` and `refresh`; without the whole of natslab, which takes time.
PYTEST = f"""{LEAN}
import nbval.kernel, pytest, runpy
nbval.kernel.KernelManager = runpy.run_path({str(KERNELS)!r})["KernelManager"]
sys.exit(pytest.main())"""
PATIENCE = "3"  # waits may take three times as long beside other tests; claims do not know of it
SANITIZER = ROOT / "lib" / "natslab" / "authoring" / "compared.cfg"


def until[T](seen: Callable[[], T], seconds: float = 10.0, what: str = "that") -> T:
    """The first true value of seen(), polled."""
    deadline = time.monotonic() + seconds
    while not (value := seen()):
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.005)
    return value


def processes_in(folder: Path) -> list[str]:
    """The command lines of the processes that were started with a path in `folder`."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        if process.info["status"] != psutil.STATUS_ZOMBIE and any(str(folder) in w for w in words):
            found.append(" ".join(words))
    return found


def labs_in(cache: Path) -> list[Path]:
    """The folders of labs below a cache."""
    return list((cache / "labs").glob("*/"))


def nothing_left(cache: Path) -> bool:
    """No process and no folder of any lab below this cache."""
    return not processes_in(cache) and not labs_in(cache)


def clean_environment(**more: str) -> dict[str, str]:
    """This environment without any wish for a certain cluster, and with `more`."""
    env = {name: v for name, v in os.environ.items() if name not in CLUSTER_VARIABLES}
    return env | more


@contextmanager
def environment(**more: str) -> Iterator[None]:
    """This process' environment as `clean_environment` has it, for as long as the block lasts."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update({k: v for k, v in before.items() if k not in CLUSTER_VARIABLES} | more)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def name_of(path: Path) -> str:
    """'solutions/01_pub_sub' for a notebook."""
    return str(path.relative_to(NOTEBOOKS).with_suffix(""))


def note_run(note: Note, path: Path, kind: str, seconds: float, **more: object) -> None:
    """What `run.py` reads of the run of a lesson."""
    told = {"lesson": name_of(path), "kind": kind, "seconds": seconds, **more}
    for name, value in told.items():
        note(name, value)


def compare(path: Path, kind: str, folder: Path, note: Note, **env: str) -> None:
    """Run a notebook in a process of its own, in which nbval compares every output with what is saved.

    Notes lesson, kind, cells and seconds; the report stays in `folder`. Fails with the claim that
    does not hold, or with the outputs that differ.
    """
    report, begun = folder / "report.xml", time.monotonic()
    options = ["-c", "tests/pytest.ini", "--rootdir", ROOT, "-W", "default", "--junitxml", report]
    nbval = ["--nbval", "--nbval-current-env", f"--nbval-cell-timeout={CELL_SECONDS}"]
    nbval += ["--nbval-sanitize-with", SANITIZER]
    with python(
        "-c", PYTEST, "-q", *options, *nbval, path, NATSLAB_PATIENCE=PATIENCE, **env
    ) as run:
        try:
            out, err = run.communicate(timeout=RUN_SECONDS)
        except subprocess.TimeoutExpired:
            run.terminate()
            out, err = run.communicate()
            out += f"\nnot done after {RUN_SECONDS} s"
    cells = len(list(xml.parse(report).iter("testcase"))) if report.exists() else 0
    note_run(note, path, kind, time.monotonic() - begun, cells=cells)
    if run.returncode or not cells:
        why = failures.told(report) if cells else []
        pytest.fail("\n".join(why or [f"{out}{err}"[-4000:]]), pytrace=False)


def listens_at(folder: Path) -> str:
    """The address of a server that was told to write its ports file into `folder`."""
    (ports,) = until(lambda: list(folder.glob("*.ports")), 10, "the ports file of a server")
    return until(lambda: ports.read_text() and json.loads(ports.read_text()))["nats"][0]


@contextmanager
def python(*words: str | Path, **more: str) -> Iterator[subprocess.Popen[str]]:
    """A Python child with pipes, in a session of its own; killed at the end if it still runs."""
    child = subprocess.Popen(
        [sys.executable, *map(str, words)],
        env=clean_environment(**more),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


@contextmanager
def shared_cluster(cache: Path, *, worker: bool = False) -> Iterator[dict[str, Any]]:
    """A cluster held by another process, for as long as the block lasts.

    Yields what that process told: pid, folder, servers, monitors.
    """
    with python(HOLDER, *(["--worker"] if worker else []), NATSLAB_CACHE=str(cache)) as holder:
        line = holder.stdout.readline()
        assert line, holder.communicate()[1]
        yield json.loads(line) | {"process": holder}
        if holder.poll() is None:
            holder.communicate(timeout=30)  # closes its standard input: it closes the lab
