"""The command `natslab`: clusters and lessons from a terminal."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from natslab import doctor
from natslab.clusters import compose_cli
from natslab.errors import LabError, print_in_any_encoding
from natslab.paths import ROOT, anchor

# For notebooks jsonschema would compile a grammar of international addresses, for 1.5 s at every
# command. Without it, it does not check whether a text is such an address, and none of ours is.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0 if all went well. Errors are one sentence on stderr and a 1."""
    print_in_any_encoding()
    anchor()
    parser = argparse.ArgumentParser(prog="natslab", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start the compose cluster")
    up.add_argument("--regions", action="store_true", help="the two regions of lesson 20 instead")
    down = commands.add_parser("down", help="stop the compose cluster")
    down.add_argument("--volumes", "-v", action="store_true", help="delete its data too")
    commands.add_parser("status", help="show the nodes of the compose cluster")
    run = commands.add_parser("run", help="run lessons, leaving their files alone")
    run.add_argument("lessons", nargs="*", type=int, metavar="NN", help="default: all")
    run.add_argument("--scale", default="", help="for example: workshop")
    run.add_argument(
        "-p",
        dest="parameters",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="set a parameter of the lessons, several times if you like",
    )
    reset = commands.add_parser("reset", help="the pristine lesson; yours is kept beside it")
    reset.add_argument("lessons", nargs="+", type=int, metavar="NN")
    refresh = commands.add_parser("refresh", help="run lessons and save their outputs")
    refresh.add_argument("lessons", nargs="*", type=int, metavar="NN", help="default: all")
    refresh.add_argument(
        "--check", action="store_true", help="run nothing, tell what is out of date"
    )
    refresh.add_argument("--pictures", action="store_true", help="save new pictures in any case")
    refresh.add_argument(
        "--busy", action="store_true", help="save measurements of a busy machine too"
    )
    commands.add_parser("index", help="write navigation lines, README table and pictures")
    commands.add_parser("doctor", help="check this machine")
    asked = parser.parse_args(arguments)
    try:
        return int(globals()[f"_{asked.command}"](asked))
    except LabError as error:
        print(error, file=sys.stderr)
    except KeyboardInterrupt:
        # The client of a kernel may leave a task behind, and asyncio would tell of it at the end.
        logging.getLogger("asyncio").disabled = True
        print("stopped", file=sys.stderr)
    return 1


def _up(asked: argparse.Namespace) -> int:
    compose_cli.up(regions=asked.regions)
    return _status(asked)


def _down(asked: argparse.Namespace) -> int:
    compose_cli.down(volumes=asked.volumes)
    return 0


def _status(_: argparse.Namespace) -> int:
    rows = compose_cli.status()
    for row in rows:
        print("  ".join(f"{value!s:10}" for value in row.values()))
    if not rows:
        print("The compose cluster is not up: natslab up")
    return 0 if rows else 1


# What reads notebooks takes a second to load: only the commands that use it wait for it.


def _run(asked: argparse.Namespace) -> int:
    from natslab import run

    paths = _chosen(asked.lessons)
    for path in paths:  # what cannot be is refused before the first one runs
        run.wanted(path, asked.scale, asked.parameters)
    failed = 0
    for path in paths:
        outcome = run.run(path, asked.scale, words=asked.parameters)
        print(f"{path.name:32} {outcome.seconds:6.1f} s  {outcome.error or 'ok'}", flush=True)
        failed += bool(outcome.error)
    return int(failed > 0)


def _reset(asked: argparse.Namespace) -> int:
    from natslab import reset

    for number in asked.lessons:
        kept = reset.reset(number)
        for path, copy in kept.items():
            print(f"{path.relative_to(ROOT)} is pristine again; yours is {copy.name}")
        if not kept:
            print(f"Lesson {number:02} is pristine already.")
    return 0


def _refresh(asked: argparse.Namespace) -> int:
    from natslab.authoring import files, refresh

    # Solutions first: the exercises of a lesson are taken from them.
    chosen = _chosen(asked.lessons)
    paths = [s for p in chosen if (s := files.solution_of(p)).exists()] + chosen
    if asked.check:
        old = {path: why for path in paths if (why := refresh.out_of_date(path))}
        for path, why in old.items():
            print(f"{path.relative_to(ROOT)}: {why}: natslab refresh, then natslab index")
        return int(bool(old))
    for path in paths:
        changed = refresh.refresh(path, pictures=asked.pictures, busy=asked.busy)
        print(f"{path.relative_to(ROOT)}: {'saved' if changed else 'unchanged'}", flush=True)
    return 0


def _index(_: argparse.Namespace) -> int:
    from natslab.authoring import index

    for path in index.index():
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


def _doctor(_: argparse.Namespace) -> int:
    return doctor.report()


def _chosen(numbers: list[int]) -> list[Path]:
    from natslab.authoring import files

    return [files.by_number(n) for n in numbers] or files.lessons()


if __name__ == "__main__":
    sys.exit(main())
