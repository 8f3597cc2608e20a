"""A real Prometheus for a lesson: found, started, asked, and gone with the kernel.

It runs with the files of `infra/prometheus` on a port of 127.0.0.1, in a folder of its own that a
`keeper` cleans up. Or it is one that runs already, named by $PROMETHEUS_URL, such as the container
in `infra/compose.yaml`.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from natslab.clusters import keeper, server
from natslab.clusters.ports import reserve_ports
from natslab.errors import LabError, usable
from natslab.paths import CACHE, ROOT, setting

CONFIG = ROOT / "infra" / "prometheus"
START_DEADLINE = 15.0
MISSING = (
    "There is no Prometheus here, so its part of the lesson is left out: install one "
    "(Debian, Ubuntu: sudo apt install prometheus; macOS: brew install prometheus)."
)


_given: set[int] = set()  # ports by free_port


def free_port() -> int:
    """A loopback port for a target: nobody listens there, no lab has claimed it, and it is new each time.

    It is yours when you listen there; until then another program may take it. Raises LabError when
    $NATSLAB_PORTS leaves none.
    """
    labs = CACHE / "labs"
    with usable(labs), ExitStack() as kept:
        labs.mkdir(parents=True, exist_ok=True)
        while True:  # what we gave before stays reserved until there is another
            folder = kept.enter_context(TemporaryDirectory(dir=labs))
            (port,) = reserve_ports(Path(folder), 1)
            if port not in _given:
                _given.add(port)
                return port


class Prometheus:
    """A running Prometheus that scrapes the targets of one lesson.

    >>> prom = await Prometheus.start(["127.0.0.1:9100"])
    >>> await prom.number('sum(rate(requests_total[1m]))')
    """

    _open: Prometheus | None = None  # one per kernel: running the set-up cell again replaces it

    def __init__(self, url: str, targets: Path, claim: keeper.Claim | None = None) -> None:
        self.url = url
        self.version = ""
        self._targets = targets  # the file that lists them
        self._claim = claim  # on the folder of a process of ours
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    async def start(cls, targets: Sequence[str], rules: Path = CONFIG / "rules.yml") -> Prometheus:
        """Start one that scrapes `targets` ("host:port") and evaluates `rules`; or use $PROMETHEUS_URL.

        The first numbers of a target come about five seconds later. Raises LabError when there is
        no Prometheus, or it does not start, in its own words. One that runs already has its own
        rules, so `rules` cannot be chosen there.
        """
        with usable(CACHE):
            await asyncio.to_thread(keeper.reap_dead, CACHE / "labs")
        if cls._open is not None:
            cls._open.close()
        if url := running():
            if rules != CONFIG / "rules.yml":
                raise LabError(f"The Prometheus at {url} has its own rules: unset PROMETHEUS_URL.")
            self = cls(url, CACHE / "prometheus" / f"{uuid.uuid4().hex}.json")
        elif shutil.which("prometheus"):
            with usable(CACHE / "labs"):
                claim = keeper.claim(CACHE / "labs")
            self = cls("", claim.folder / "targets" / "lesson.json", claim)
        else:
            raise LabError(MISSING)
        cls._open = self  # from now on, so that another start replaces this one
        try:
            with usable(CACHE):
                self._write(targets)
                if self._claim is not None:
                    self._launch(self._claim.folder, rules)
            await self._ready()
        except BaseException:
            self.close()  # an interrupt too: nothing may be left
            raise
        return self

    # What a lesson asks. Each raises LabError with Prometheus' own words when it says no.
    async def query(self, promql: str) -> pd.DataFrame:
        """The result of a PromQL expression now: one row per series, its labels and its `value`."""
        data = await self._get("query", query=promql)
        if data["resultType"] == "scalar":
            return pd.DataFrame({"value": [float(data["result"][1])]})
        found = [{**row["metric"], "value": float(row["value"][1])} for row in data["result"]]
        return pd.DataFrame(found) if found else pd.DataFrame({"value": []}, dtype=float)

    async def number(self, promql: str) -> float:
        """The value of an expression with one result, such as a `sum`; nan when it has none."""
        values = list((await self.query(promql)).value)
        if len(values) > 1:
            raise LabError(f"{promql} has {len(values)} results: sum them, or use query.")
        return float(values[0]) if values else float("nan")

    async def over_time(
        self, promql: str, start: float, end: float, step: float = 0.25
    ) -> pd.DataFrame:
        """The expression at every step from `start` to `end` (`time.time()`): columns t, value, labels."""
        data = await self._get("query_range", query=promql, start=start, end=end, step=step)
        found = [
            {**row["metric"], "t": float(t), "value": float(value)}
            for row in data["result"]
            for t, value in row["values"]
        ]
        return pd.DataFrame(found) if found else pd.DataFrame({"t": [], "value": []}, dtype=float)

    async def alerts(self) -> list[dict[str, str]]:
        """The alerts that are pending or firing now: their labels (`alertname`, ...) and `state`."""
        data = await self._get("alerts")
        return [{**alert["labels"], "state": alert["state"]} for alert in data["alerts"]]

    def close(self) -> None:
        """End the process and delete its data; one that was there before stays, without our targets."""
        if Prometheus._open is self:
            Prometheus._open = None
        try:
            self._targets.unlink(missing_ok=True)
        finally:
            if self._claim is not None:
                self._claim.release()
            if self._process is not None:
                self._process.wait(10)

    def _write(self, targets: Sequence[str]) -> None:
        self._targets.parent.mkdir(parents=True, exist_ok=True)
        new = self._targets.with_suffix(".new")
        new.write_text(json.dumps([{"targets": list(targets)}]), encoding="utf-8")
        new.replace(self._targets)  # one that runs already never reads half of it

    def _launch(self, folder: Path, rules: Path) -> None:
        shutil.copy(CONFIG / "prometheus.yml", folder)
        shutil.copy(rules, folder / "rules.yml")
        (port,) = reserve_ports(folder, 1)
        self.url = f"http://127.0.0.1:{port}"
        command = ["prometheus", f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
        files = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [*command, *files],
                env=keeper.environment(folder),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # "interrupt kernel" signals the whole group of the kernel
            )

    async def _ready(self) -> None:
        end = time.monotonic() + START_DEADLINE
        while True:
            if Prometheus._open is not self:  # also while it gave its answer
                raise LabError("Another Prometheus.start() has replaced this one.")
            if self.version:
                return
            if self._process and self._process.poll() is not None:
                raise LabError(f"Prometheus did not start: {self._last_words()}")
            try:
                self.version = (await self._get("status/buildinfo"))["version"]
            except (OSError, ValueError, http.client.HTTPException) as error:
                # No answer, "Service Unavailable", or half an answer.
                if time.monotonic() > end:
                    named = "" if self._process else "PROMETHEUS_URL="
                    raise LabError(
                        f"Prometheus does not answer ({named}{self.url}): {error}"
                    ) from None
                await asyncio.sleep(0.02)

    def _last_words(self) -> str:
        log = self._targets.parents[1] / "log"
        text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        return "\n".join(text.strip().splitlines()[-5:]) or "it said nothing"

    async def _get(self, path: str, **parameters: Any) -> dict[str, Any]:
        def answer() -> dict[str, Any]:
            try:
                with server.open_url(url, timeout=5) as page:
                    return dict(json.load(page))
            except urllib.error.HTTPError as error:  # a 400 has a body that says what is wrong
                with error:
                    return dict(json.load(error))

        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        said = await asyncio.to_thread(answer)
        if said.get("status") != "success":
            raise LabError(f"Prometheus says: {said.get('error', said)}")
        return dict(said["data"])


def running() -> str | None:
    """The Prometheus that $PROMETHEUS_URL names, if it names one. Raises LabError when it cannot be one."""
    url = setting("PROMETHEUS_URL")
    if url is None:
        return None
    if not re.fullmatch(r"https?://[^/\s]+\S*", url):
        raise LabError(
            f"PROMETHEUS_URL={url} is no address of a Prometheus: write it like "
            "http://127.0.0.1:9090, or unset it."
        )
    return url.rstrip("/")
